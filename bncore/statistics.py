"""Per-channel statistics: `Moments`, which training returns, and `GradSums` of backward.

Both can be merged, pickled and exchanged between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import vector

Stat: TypeAlias = npt.NDArray[np.float64]

_new = object.__new__


def _frozen_copy(values: npt.NDArray[np.floating[Any]]) -> Stat:
    """Copy the values to a read-only float64 array."""
    with silent_arithmetic():
        copy = np.array(values, dtype=np.float64, order="C")
    copy.flags.writeable = False
    return copy


def _pair(first: str, a: object, second: str, b: object) -> tuple[Stat, Stat]:
    """Copy two per-channel arrays, which must have the same size."""
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
    """Compute m2 / (count - correction) without warnings; NaN or inf where it divides by 0."""
    with silent_arithmetic():
        return m2 / max(count - correction, 0.0)


def _two_sum(a: Stat, b: Stat) -> tuple[Stat, Stat]:
    """Return the rounded a + b and the exact rounding error (Knuth 1969).

    The error is returned as 0 where it is not finite.
    """
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, np.where(np.isfinite(lost), lost, 0.0)


def _reduced(value: object, slots: tuple[str, ...]) -> tuple[Any, ...]:
    """Return what pickle and copy need to make the object again."""
    fields = {name: getattr(value, name) for name in slots}
    return _restored, (type(value), fields), getattr(value, "__dict__", None)


def _restored(kind: type, fields: dict[str, Any]) -> Any:
    """Make an object of one of this module's classes, or of a subclass, from its saved fields."""
    self: Any = _new(kind)
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        setattr(self, name, value)
    return self


def _of_class(kind: Any, value: object) -> Any:
    """Return `value`, or for an instance of a subclass an object of this module's own class.

    A subclass may override the properties, and return arrays of any size or another array every
    time.
    """
    if type(value) is kind:
        return value
    fields = {name: vars(kind)[name].__get__(value) for name in kind.__slots__}
    return _restored(kind, fields)


class Moments:
    """Count, mean and sum of squared deviations of every channel.

    Moments are immutable and their arrays are read-only.  (If you make an array writable with
    ``setflags``, you can change the moments.)  Two of them can be merged into the moments of both
    batches together.  So statistics of micro-batches, of chunks of a file or of several machines
    need no second pass over the data.

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
        If `count` is not an integer or is negative, if an array is not 1-D, has no floating dtype
        or differs from the other in size, or if an m2 is negative.

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
    _low: Stat | float  # the rounding error of a merged mean

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
            Moments with the same number of channels.

        Returns
        -------
        Moments
            The merged moments.  If one of the two has count 0, the other one itself is returned.

        Raises
        ------
        TypeError, ValueError
            If `other` is not a Moments or has another number of channels, or if the counts add up
            to 2**63 or more.

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
        with silent_arithmetic():
            share = other.count / count
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
            0 for the population variance, which batch norm normalizes by; 1 for the unbiased
            estimate.

        Returns
        -------
        (C,) ndarray of float64
            The variance, in x's unit squared.  If `count` is not above `correction`, it is inf
            where m2 > 0, and NaN elsewhere.
        """
        return variance(self.count, self.m2, scalars.real("correction", correction))

    def std(self, correction: float = 0) -> Stat:
        """Return the standard deviation per channel, the square root of ``var(correction)``."""
        with silent_arithmetic():
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
            It is inf where both the variance and `eps` are 0.
        """
        eps = scalars.real("eps", eps, 0.0)
        with silent_arithmetic():
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
    """Make Moments of arrays that nobody else writes to, without checks or copies."""
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
    """Join the moments of consecutive ranges of channels, which must have the same count."""
    if len(runs) == 1:
        return runs[0]
    low = np.concatenate([np.broadcast_to(run._low, run.mean.shape) for run in runs])
    mean, m2 = (np.concatenate([getattr(run, name) for run in runs]) for name in ("mean", "m2"))
    return trusted_moments(runs[0].count, mean, m2, low)


def given_moments(name: str, value: object) -> Moments:
    """Return `value` if it is a Moments; raise otherwise."""
    if not issubclass(type(value), Moments):
        raise TypeError(f"{name}: expected Moments, got {scalars.shown(value)}")
    moments: Moments = _of_class(Moments, value)
    return moments


def checked_moments(name: str, value: object, channels: int) -> Moments:
    """Return `value` if it is a Moments with this number of channels; raise otherwise."""
    moments = given_moments(name, value)
    if moments.mean.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {moments.mean.shape[0]}")
    return moments


class GradSums:
    """Sums of dy and of dy * xhat over every channel: the gradients of bias and of weight.

    They are immutable, as `Moments` are.  Add the sums of the pieces of a batch with ``a + b`` or
    ``a.merge(b)``.

    Parameters
    ----------
    sum_dy : (C,) array_like of float
        Sum of dy per channel.  Copied.
    sum_dy_xhat : (C,) array_like of float
        Sum of dy * xhat per channel, xhat = (x - mean) / sqrt(var + eps).  Copied.

    Raises
    ------
    TypeError, ValueError
        If an array is not 1-D, has no floating dtype or differs from the other in size.

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
        """Return the sums over both pieces; raise if `other` has other channels or another type."""
        other = checked_sums("other", other, self.sum_dy.shape[0])
        with silent_arithmetic():
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
    """Make GradSums of arrays that nobody else writes to, without checks or copies."""
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
    """Return `value` if it is a GradSums with this number of channels; raise otherwise."""
    if not issubclass(type(value), GradSums):
        raise TypeError(f"{name}: expected GradSums, got {scalars.shown(value)}")
    sums: GradSums = _of_class(GradSums, value)
    if sums.sum_dy.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {sums.sum_dy.shape[0]}")
    return sums
