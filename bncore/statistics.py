"""Per-channel statistics as values: what training returns, backward takes and ranks exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.parameters import vector

Stat: TypeAlias = npt.NDArray[np.float64]

_new = object.__new__


def _frozen_copy(values: npt.NDArray[np.floating[Any]]) -> Stat:
    """Copy to a float64 array that nobody can write to."""
    with np.errstate(all="ignore"):
        copy = np.array(values, dtype=np.float64, order="C")
    copy.flags.writeable = False
    return copy


def _pair(first: str, a: object, second: str, b: object) -> tuple[Stat, Stat]:
    """Copy two per-channel arrays of one size."""
    one = vector(first, a, None)
    two = vector(second, b, one.shape[0])
    return _frozen_copy(one), _frozen_copy(two)


def _same(a: Stat, b: Stat) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _below_2_63(count: int) -> int:
    if count >= 1 << 63:
        raise ValueError(f"count: expected an integer below 2**63, got {count}")
    return count


def variance(count: int, m2: Stat, correction: float) -> Stat:
    """Compute m2 / (count - correction), in silence; NaN or inf where that divides by 0."""
    with np.errstate(all="ignore"):
        return m2 / max(count - correction, 0.0)


def _two_sum(a: Stat, b: Stat) -> tuple[Stat, Stat]:
    """Return fl(a + b) and what it lost, exactly (Knuth 1969); lost is 0 where it is not finite."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, np.where(np.isfinite(lost), lost, 0.0)


def _reduced(value: object, slots: tuple[str, ...]) -> tuple[Any, ...]:
    """Return what pickle and copy make an object again from."""
    fields = {name: getattr(value, name) for name in slots}
    return _restored, (type(value), fields), getattr(value, "__dict__", None)


def _restored(kind: type, fields: dict[str, Any]) -> Any:
    """Make an object of one of this module's classes, or of a subclass, of its saved fields."""
    self: Any = _new(kind)
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        setattr(self, name, value)
    return self


def _of_class(kind: Any, value: object) -> Any:
    """Return an object of one of this module's classes: `value`, or what a subclass holds.

    A subclass may override the properties, and answer with arrays of any size, or with another one
    every time.
    """
    if type(value) is kind:
        return value
    fields = {name: vars(kind)[name].__get__(value) for name in kind.__slots__}
    return _restored(kind, fields)


class Moments:
    """Count, mean and sum of squared deviations of every channel.

    Immutable; its arrays are read-only (whoever undoes that with ``setflags`` changes the moments).
    Two of them merge into the moments of both batches together, so statistics of
    micro-batches, of chunks of a file or of several machines need no second pass over data.

    Parameters
    ----------
    count : int
        Values per channel, >= 0.
    mean : (C,) array_like of float
        Mean per channel, in x's unit.  Copied.
    m2 : (C,) array_like of float
        Sum of squared deviations from the mean per channel, in x's unit squared.  Copied.

    Raises
    ------
    TypeError, ValueError
        Where `count` is no integer or negative, or an array is not 1-D, of a floating dtype and of
        the same size as the other, or an m2 is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from bncore import Moments
    >>> a = Moments(2, np.array([1.0]), np.array([2.0]))  # 0, 2
    >>> b = Moments(2, np.array([5.0]), np.array([2.0]))  # 4, 6
    >>> a.merge(b)
    Moments(count=4, mean=array([3.]), m2=array([20.]))
    >>> a.merge(b).var()
    array([5.])
    """

    __slots__ = ("_count", "_low", "_m2", "_mean")
    __hash__ = None  # type: ignore[assignment]  # as arrays

    _count: int
    _mean: Stat
    _m2: Stat
    _low: Stat | float  # what rounding took from the mean, where it was merged

    def __init__(self, count: SupportsIndex, mean: npt.ArrayLike, m2: npt.ArrayLike) -> None:
        number = _below_2_63(scalars.integer_at_least("count", count, 0))
        frozen_mean, frozen_m2 = _pair("mean", mean, "m2", m2)
        if (frozen_m2 < 0.0).any():
            at = int(np.argmax(frozen_m2 < 0.0))
            raise ValueError(
                f"m2: expected values >= 0, got {float(frozen_m2[at])} for channel {at}"
            )
        self._count = number
        self._mean = frozen_mean
        self._m2 = frozen_m2
        self._low = 0.0

    @property
    def count(self) -> int:
        """Values per channel."""
        return self._count

    @property
    def mean(self) -> Stat:
        """Mean per channel, in x's unit; read-only."""
        return self._mean

    @property
    def m2(self) -> Stat:
        """Sum of squared deviations from the mean per channel; read-only."""
        return self._m2

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both batches together.

        Parameters
        ----------
        other : Moments
            Of the same number of channels.

        Returns
        -------
        Moments
            ``self`` or ``other`` itself where the other one has count 0.

        Raises
        ------
        TypeError, ValueError
            Where `other` is no Moments or has other channels, or 2**63 values come together.

        References
        ----------
        T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance:
        Analysis and Recommendations", The American Statistician 37 (1983) 242-247, equation 2.1.
        D. E. Knuth, The Art of Computer Programming, volume 2 (1969), section 4.2.2: TwoSum.  What
        rounding takes from a merged mean goes into the next merge.
        """
        other = checked_moments("other", other, self.mean.shape[0])
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = _below_2_63(self.count + other.count)
        share = other.count / count
        with np.errstate(all="ignore"):
            delta, lost = _two_sum(other.mean, -self.mean)
            delta += lost + (other._low - self._low)
            mean, lost = _two_sum(self.mean, delta * share)
            mean, low = _two_sum(mean, lost + self._low)
            m2 = (self.m2 + other.m2) + (delta * delta) * (self.count * share)
        return trusted_moments(count, mean, m2, low)

    def var(self, correction: float = 0) -> Stat:
        """Return the variance per channel, m2 / (count - correction).

        Parameters
        ----------
        correction : float, default 0
            0 for the population variance, which normalizes; 1 for the unbiased estimate.

        Returns
        -------
        (C,) ndarray of float64
            In x's unit squared.  NaN, or inf where m2 > 0, if `count` is not above `correction`.
        """
        return variance(self.count, self.m2, scalars.real("correction", correction))

    def std(self, correction: float = 0) -> Stat:
        """Return the standard deviation per channel, the square root of ``var(correction)``."""
        with np.errstate(all="ignore"):
            return np.sqrt(self.var(correction))

    def invstd(self, eps: float) -> Stat:
        """Return 1 / sqrt(var() + eps) per channel, the factor that normalizes.

        Parameters
        ----------
        eps : float
            Added to the variance, >= 0, in x's unit squared.

        Returns
        -------
        (C,) ndarray of float64
            inf where the variance and `eps` are 0.
        """
        eps = scalars.real("eps", eps, 0.0)
        with np.errstate(all="ignore"):
            return 1.0 / np.sqrt(self.var() + eps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return (
            self.count == other.count and _same(self.mean, other.mean) and _same(self.m2, other.m2)
        )

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean!r}, m2={self.m2!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self, Moments.__slots__)


def trusted_moments(count: int, mean: Stat, m2: Stat, low: Stat | float = 0.0) -> Moments:
    """Make Moments of arrays that nobody else writes to, unchecked and not copied."""
    mean.setflags(write=False)
    m2.setflags(write=False)
    return frozen_moments(count, mean, m2, low)


def frozen_moments(count: int, mean: Stat, m2: Stat, low: Stat | float = 0.0) -> Moments:
    """Make Moments of read-only arrays that nobody else writes to."""
    self = _new(Moments)
    self._count = count
    self._mean = mean
    self._m2 = m2
    self._low = low
    return self


def concatenated(runs: Sequence[Moments]) -> Moments:
    """Return the moments of all channels, from those of runs of channels; of one count."""
    if len(runs) == 1:
        return runs[0]
    low = np.concatenate([np.broadcast_to(run._low, run.mean.shape) for run in runs])
    mean, m2 = (np.concatenate([getattr(run, name) for run in runs]) for name in ("mean", "m2"))
    return trusted_moments(runs[0].count, mean, m2, low)


def given_moments(name: str, value: object) -> Moments:
    """Return `value`, which has to be Moments."""
    if not issubclass(type(value), Moments):
        raise TypeError(f"{name}: expected Moments, got {scalars.shown(value)}")
    moments: Moments = _of_class(Moments, value)
    return moments


def checked_moments(name: str, value: object, channels: int) -> Moments:
    """Return `value`, which has to be Moments of so many channels."""
    moments = given_moments(name, value)
    if moments.mean.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {moments.mean.shape[0]}")
    return moments


class GradSums:
    """Sums of dy and of dy * xhat over every channel: the gradients of bias and of weight.

    Immutable, as `Moments` are.  Sums of pieces of a batch add up: ``a + b``, or ``a.merge(b)``.

    Parameters
    ----------
    sum_dy : (C,) array_like of float
        Sum of dy per channel.  Copied.
    sum_dy_xhat : (C,) array_like of float
        Sum of dy * xhat per channel, xhat = (x - mean) / sqrt(var + eps).  Copied.

    Raises
    ------
    TypeError, ValueError
        Where an array is not 1-D, of a floating dtype and of the same size as the other.

    Examples
    --------
    >>> from bncore import GradSums
    >>> GradSums([1.0], [2.0]) + GradSums([3.0], [0.5])
    GradSums(sum_dy=array([4.]), sum_dy_xhat=array([2.5]))
    """

    __slots__ = ("_sum_dy", "_sum_dy_xhat")
    __hash__ = None  # type: ignore[assignment]  # as arrays

    _sum_dy: Stat
    _sum_dy_xhat: Stat

    def __init__(self, sum_dy: npt.ArrayLike, sum_dy_xhat: npt.ArrayLike) -> None:
        self._sum_dy, self._sum_dy_xhat = _pair("sum_dy", sum_dy, "sum_dy_xhat", sum_dy_xhat)

    @property
    def sum_dy(self) -> Stat:
        """Sum of dy per channel, the gradient of bias; read-only."""
        return self._sum_dy

    @property
    def sum_dy_xhat(self) -> Stat:
        """Sum of dy * xhat per channel, the gradient of weight; read-only."""
        return self._sum_dy_xhat

    def merge(self, other: GradSums) -> GradSums:
        """Return the sums over both pieces.  Raise where `other` is of other channels or type."""
        other = checked_sums("other", other, self.sum_dy.shape[0])
        with np.errstate(all="ignore"):
            return trusted_sums(self.sum_dy + other.sum_dy, self.sum_dy_xhat + other.sum_dy_xhat)

    def __add__(self, other: GradSums) -> GradSums:
        if not isinstance(other, GradSums):
            return NotImplemented
        return self.merge(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GradSums):
            return NotImplemented
        return _same(self.sum_dy, other.sum_dy) and _same(self.sum_dy_xhat, other.sum_dy_xhat)

    def __repr__(self) -> str:
        return f"GradSums(sum_dy={self.sum_dy!r}, sum_dy_xhat={self.sum_dy_xhat!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self, GradSums.__slots__)


def trusted_sums(sum_dy: Stat, sum_dy_xhat: Stat) -> GradSums:
    """Make GradSums of arrays that nobody else writes to, unchecked and not copied."""
    sum_dy.setflags(write=False)
    sum_dy_xhat.setflags(write=False)
    return frozen_sums(sum_dy, sum_dy_xhat)


def frozen_sums(sum_dy: Stat, sum_dy_xhat: Stat) -> GradSums:
    """Make GradSums of read-only arrays that nobody else writes to."""
    self = _new(GradSums)
    self._sum_dy = sum_dy
    self._sum_dy_xhat = sum_dy_xhat
    return self


def checked_sums(name: str, value: object, channels: int) -> GradSums:
    """Return `value`, which has to be GradSums of so many channels."""
    if not issubclass(type(value), GradSums):
        raise TypeError(f"{name}: expected GradSums, got {scalars.shown(value)}")
    sums: GradSums = _of_class(GradSums, value)
    if sums.sum_dy.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {sums.sum_dy.shape[0]}")
    return sums
