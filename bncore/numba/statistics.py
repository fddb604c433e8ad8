"""Moments and gradient sums as tuples, which compiled code can pass on."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from bncore.numba.calls import doubles

# A call from Python releases the GIL.
compiled = njit(nogil=True)


class Moments(NamedTuple):
    """The statistics of a batch.

    Attributes
    ----------
    count : int
        The number of values per channel.
    mean : (C,) array of float64
        The mean of every channel, in x's unit.
    m2 : (C,) array of float64
        Sums of squared deviations from the mean, in x's unit squared.
    """

    count: int  # type: ignore[assignment]  # tuple has a method with this name
    mean: Any
    m2: Any


class GradSums(NamedTuple):
    """The gradient sums of a batch: the gradients of bias and weight.

    Attributes
    ----------
    sum_dy, sum_dy_xhat : (C,) array of float64
        The sums of dy and of ``dy * xhat`` over every channel, in dy's unit.
    """

    sum_dy: Any
    sum_dy_xhat: Any


@compiled
def mean_var(moments, channels):
    """Check that moments fit x, and return mean and variance as the C functions read them."""
    mean = doubles(moments.mean, channels, "moments: expected one mean per channel of x")
    m2 = doubles(moments.m2, channels, "moments: expected one m2 per channel of x")
    return mean, m2 / max(moments.count, 1)


@compiled
def mean_var_of_all(x, moments, channels, count):
    """Refuse moments that can be neither those of x nor those of a batch that contains x."""
    if moments.count < count and x.size:
        raise ValueError("moments: expected the count of x's values per channel or more, got less")
    return mean_var(moments, channels)
