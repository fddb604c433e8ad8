"""`GradSums`: the sums of the gradients over every channel."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.statistics.values import Stat, frozen, new, of_class, pair, reduced, same


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
        self._sum_dy, self._sum_dy_xhat = map(
            frozen, pair("sum_dy", sum_dy, "sum_dy_xhat", sum_dy_xhat)
        )

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
        return same(self.sum_dy, other.sum_dy) and same(self.sum_dy_xhat, other.sum_dy_xhat)

    def __repr__(self) -> str:
        return f"GradSums(sum_dy={self.sum_dy!r}, sum_dy_xhat={self.sum_dy_xhat!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(self, GradSums.__slots__)


def trusted_sums(sum_dy: Stat, sum_dy_xhat: Stat) -> GradSums:
    """Make GradSums of arrays that nobody else writes to, without checks or copies."""
    return frozen_sums(frozen(sum_dy), frozen(sum_dy_xhat))


def frozen_sums(sum_dy: Stat, sum_dy_xhat: Stat) -> GradSums:
    """Make GradSums of read-only arrays that nobody else writes to."""
    self = new(GradSums)
    self._sum_dy = sum_dy
    self._sum_dy_xhat = sum_dy_xhat
    return self


def checked_sums(name: str, value: object, channels: int) -> GradSums:
    """Return `value` if it is a GradSums with this number of channels; raise otherwise."""
    if not issubclass(type(value), GradSums):
        raise TypeError(f"{name}: expected GradSums, got {scalars.shown(value)}")
    sums: GradSums = of_class(GradSums, value)
    if sums.sum_dy.shape[0] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {sums.sum_dy.shape[0]}")
    return sums
