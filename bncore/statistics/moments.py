"""`Moments`: count, mean and sum of squared deviations of every channel."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.arrays import dtype_shown, is_floating, plain_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.statistics.values import Stat, copied, frozen, new, of_class, pair, reduced, same

FIELDS = ("count", "mean", "m2")

# A count that is above a correction by no more than this part of it is taken as equal: so far from
# 1 are sums of float32 weights that have been divided by their sum.  `fast_running.pxi` has it
# again for Cython, and `torch/kernels.h` for C++.
ROUNDING = 1e-5


def _two_sum(a: Stat, b: Stat) -> tuple[Stat, Stat]:
    """Return the rounded a + b and the exact rounding error (Knuth 1969).

    The error is returned as 0 where it is not finite.
    """
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, np.where(np.isfinite(lost), lost, 0.0)


def counts_of(number: float, channels: int) -> Stat:
    """Return the counts of channels that all have the same number of values."""
    return np.full(channels, float(number))


def _given_counts(count: object, channels: int) -> Stat:
    """Return the argument `count`, a number or an array of one number per channel, as float64."""
    if isinstance(count, numbers.Real):
        return counts_of(scalars.real("count", count, 0.0), channels)
    given = plain_array("count", count)
    if given.dtype.kind not in "iu" and not is_floating(given.dtype):
        raise TypeError(f"count: expected real numbers, got {dtype_shown(count, given)}")
    if given.shape != (channels,):
        raise ValueError(f"count: expected a number or shape ({channels},), got {given.shape}")
    counts = copied(given)
    wrong = ~(np.isfinite(counts) & (counts >= 0.0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"count: expected finite numbers >= 0, got {float(counts[at])} for channel {at}"
        )
    return counts


def divisor(count: Any, correction: Any, module: Any = np) -> Any:
    """Return count - correction, or 0 where the count is not above it by more than rounding.

    A count that is a whole number has not been rounded.  `module` is that of the arrays, for JAX.
    """
    with silent_arithmetic():
        left = count - correction
        rounded = (left <= ROUNDING * correction) & (count != module.floor(count))
        return module.where(rounded | (left <= 0.0), 0.0, left)


def variance(count: Stat | float, m2: Stat, correction: float) -> Stat:
    """Compute m2 / (count - correction) without warnings; NaN or inf where it divides by 0."""
    with silent_arithmetic():
        result: Stat = m2 / divisor(count, correction)
        return result


class Moments:
    """Count, mean and sum of squared deviations of every channel.

    Moments are immutable and their arrays are read-only.  (If you make an array writable with
    ``setflags``, you can change the moments.)  Two of them can be merged into the moments of both
    batches together.  So statistics of micro-batches, of chunks of a file or of several machines
    need no second pass over the data.

    Parameters
    ----------
    count : float or (C,) array_like of real numbers
        Values per channel, finite and >= 0: one number for all channels, or one for each.  If the
        values have weights, it is the sum of the weights.
    mean : (C,) array_like of float
        Mean per channel, in x's unit.  Copied.
    m2 : (C,) array_like of float
        Sum of squared deviations from the mean per channel, in x's unit squared.  Copied.

    Raises
    ------
    TypeError, ValueError
        If a count is not a real number, or is negative or not finite, if `mean` or `m2` is not 1-D,
        has no floating dtype or differs from the other in size, or if an m2 is negative.

    Notes
    -----
    A channel without a value has count 0, mean NaN and m2 0, whatever `mean` and `m2` say.

    Examples
    --------
    >>> import numpy as np
    >>> from bncore import Moments
    >>> a = Moments(2, np.array([1.0]), np.array([2.0]))  # 0, 2
    >>> b = Moments(2, np.array([5.0]), np.array([2.0]))  # 4, 6
    >>> a.merge(b)
    Moments(count=array([4.]), mean=array([3.]), m2=array([20.]))
    >>> a.merge(b).var()
    array([5.])
    """

    __slots__ = ("_count", "_low", "_m2", "_mean")
    __hash__ = None  # type: ignore[assignment]  # as arrays

    _count: Stat
    _mean: Stat
    _m2: Stat
    _low: Stat | float  # the rounding error of a merged mean

    def __init__(
        self, count: float | npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike
    ) -> None:
        own_mean, own_m2 = pair("mean", mean, "m2", m2)
        counts = _given_counts(count, own_mean.shape[0])
        if (own_m2 < 0.0).any():
            at = int(np.argmax(own_m2 < 0.0))
            raise ValueError(f"m2: expected values >= 0, got {float(own_m2[at])} for channel {at}")
        own_mean[counts == 0.0], own_m2[counts == 0.0] = np.nan, 0.0
        self._count = frozen(counts)
        self._mean = frozen(own_mean)
        self._m2 = frozen(own_m2)
        self._low = 0.0

    @property
    def count(self) -> Stat:
        """Values per channel, or the sum of their weights; read-only."""
        return self._count

    @property
    def mean(self) -> Stat:
        """Mean per channel, in x's unit; NaN where count is 0; read-only."""
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
            The merged moments.  A channel that has no value in one of the two keeps the moments
            that it has in the other.  If one of the two has no value at all, the other one itself
            is returned.

        Raises
        ------
        TypeError, ValueError
            If `other` is not a Moments or has another number of channels, or if the counts of a
            channel add up to more than float64 can represent.

        References
        ----------
        T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance:
        Analysis and Recommendations", The American Statistician 37 (1983) 242-247, equation 2.1.
        D. E. Knuth, The Art of Computer Programming, volume 2 (1969), section 4.2.2: TwoSum.  What
        rounding takes from a merged mean goes into the next merge.
        """
        other = checked_moments("other", other, self.mean.shape[0])
        if not other.count.any():
            return self
        if not self.count.any():
            return other
        with silent_arithmetic():
            count = self.count + other.count
            share = other.count / count
            delta, lost = _two_sum(other.mean, -self.mean)
            delta += lost + (other._low - self._low)
            mean, lost = _two_sum(self.mean, delta * share)
            mean, low = _two_sum(mean, lost + self._low)
            m2 = (self.m2 + other.m2) + (delta * delta) * (self.count * share)
        finite = np.isfinite(count)
        if not finite.all():
            at = int(np.argmin(finite))
            raise ValueError(f"other: expected counts with a finite sum, got inf for channel {at}")
        for one, only in ((self, other.count == 0.0), (other, self.count == 0.0)):
            np.copyto(mean, one.mean, where=only)
            np.copyto(low, one._low, where=only)
            np.copyto(m2, one.m2, where=only)
        return trusted_moments(count, mean, m2, low)

    def var(self, correction: float = 0) -> Stat:
        """Return the variance per channel, m2 / (count - correction).

        Parameters
        ----------
        correction : float, default 0
            0 for the population variance, which batch norm normalizes by; 1 for the unbiased
            estimate.  It is subtracted from the count of each channel.  So weights count as that
            many copies of their values.  A sum of weights that is above it by a part of 1e-5 or
            less, and no whole number, is taken as equal to it.

        Returns
        -------
        (C,) ndarray of float64
            The variance, in x's unit squared.  Where `count` is not above `correction`, it is inf
            if m2 > 0, and otherwise NaN.
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
            same(self.count, other.count)
            and same(self.mean, other.mean)
            and same(self.m2, other.m2)
        )

    def __repr__(self) -> str:
        return f"Moments(count={self.count!r}, mean={self.mean!r}, m2={self.m2!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(self, Moments.__slots__)


def trusted_moments(count: Stat, mean: Stat, m2: Stat, low: Stat | float = 0.0) -> Moments:
    """Make Moments of arrays that nobody else writes to, without checks or copies."""
    return frozen_moments(frozen(count), frozen(mean), frozen(m2), low)


def frozen_moments(count: Stat, mean: Stat, m2: Stat, low: Stat | float = 0.0) -> Moments:
    """Make Moments of read-only arrays that nobody else writes to."""
    self = new(Moments)
    self._count = count
    self._mean = mean
    self._m2 = m2
    self._low = low
    return self


def concatenated(runs: Sequence[Moments]) -> Moments:
    """Join the moments of consecutive ranges of channels."""
    if len(runs) == 1:
        return runs[0]
    low = np.concatenate([np.broadcast_to(run._low, run.mean.shape) for run in runs])
    count, mean, m2 = (np.concatenate([getattr(run, name) for run in runs]) for name in FIELDS)
    return trusted_moments(count, mean, m2, low)


def channels_of(moments: Moments, start: int, stop: int) -> Moments:
    """Return the moments of the channels from `start` to before `stop`."""
    low = np.broadcast_to(moments._low, moments.mean.shape)[start:stop]
    count, mean, m2 = (getattr(moments, name)[start:stop] for name in FIELDS)
    return frozen_moments(count, mean, m2, low)


def shifted(moments: Moments, by: Stat) -> Moments:
    """Return the moments of the values plus a number per channel.

    The mean is the exact sum of `by` and the mean of before, to twice the digits of float64.
    """
    with silent_arithmetic():
        mean, low = _two_sum(by, moments.mean)
        return trusted_moments(moments.count, mean, moments.m2, low + moments._low)


def given_moments(name: str, value: object) -> Moments:
    """Return `value` if it is a Moments; raise otherwise."""
    if not issubclass(type(value), Moments):
        raise TypeError(f"{name}: expected Moments, got {scalars.shown(value)}")
    moments: Moments = of_class(Moments, value)
    return moments


def checked_moments(name: str, value: object, channels: int) -> Moments:
    """Return `value` if it is a Moments with this number of channels; raise otherwise."""
    moments = given_moments(name, value)
    if moments.mean.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {moments.mean.shape[0]}")
    return moments


def shown_count(counts: Stat, channel: int) -> str:
    """Describe the count of a channel for a message, without a decimal point if it is whole."""
    count = float(counts[channel])
    return f"{count:.0f}" if count.is_integer() else repr(count)


def require_counts(
    moments: Moments, fit: npt.NDArray[np.bool_], expected: str, place: str = "channel"
) -> None:
    """Refuse moments with a count that does not fit, and name the first such channel.

    `fit` tells of every count whether it fits.  `place` is what an entry of the moments belongs to.
    """
    if fit.all():
        return
    at = int(np.argmin(fit))
    got = shown_count(moments.count, at)
    raise ValueError(f"moments: expected {expected}, got {got} for {place} {at}")


def require_divisors(
    counts: Stat, correction: float, what: str = "moments: expected count", where: str = ""
) -> None:
    """Refuse counts that are neither 0 nor above the correction of a variance.

    `what` begins the message: an argument of the function that the user has called, and what the
    count is there.  `where` ends it.
    """
    few = (counts != 0.0) & ~(divisor(counts, correction) > 0.0)
    if few.any():
        at = int(np.argmax(few))
        more = " by more than rounding" if counts[at] > correction else ""
        raise ValueError(
            f"{what} > correction = {correction:g}{more}, "
            f"got {shown_count(counts, at)} for channel {at}{where}"
        )
