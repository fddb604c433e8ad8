"""Moments and sums of gradients as tuples, which compiled code can pass on."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from bncore.numba.calls import doubles

# A call from Python lets other threads of Python run meanwhile.
compiled = njit(nogil=True)


class Moments(NamedTuple):
    """Statistics of a batch.

    Attributes
    ----------
    count : int
        Values per channel.
    mean : (C,) array of float64
        In x's unit.
    m2 : (C,) array of float64
        Sums of squared deviations from the mean, in x's unit squared.
    """

    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    mean: Any
    m2: Any


class GradSums(NamedTuple):
    """Sums of a gradient over a batch, which are those by bias and weight.

    Attributes
    ----------
    sum_dy, sum_dy_xhat : (C,) array of float64
        Of dy, and of ``dy * xhat``, in dy's unit.
    """

    sum_dy: Any
    sum_dy_xhat: Any


@compiled
def mean_var(moments, channels):
    """Give mean and variance as the C functions read them, once they fit x."""
    mean = doubles(moments.mean, channels, "moments: expected one mean per channel of x")
    m2 = doubles(moments.m2, channels, "moments: expected one m2 per channel of x")
    return mean, m2 / max(moments.count, 1)


@compiled
def mean_var_of_all(x, moments, channels, count):
    """Refuse moments of a batch that x cannot be, or be a piece of."""
    if moments.count < count and x.size:
        raise ValueError("moments: expected the count of x's values per channel or more, got less")
    return mean_var(moments, channels)
