"""Moments and gradient sums as tuples, which compiled code can pass on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from bncore.numba.calls import doubles

# A call from Python releases the GIL.
compiled = njit(nogil=True)


class Moments(NamedTuple):
    """The statistics of a batch.

    Attributes
    ----------
    count : (C,) array of float64
        The number of values of every channel.
    mean : (C,) array of float64
        The mean of every channel, in x's unit; NaN where count is 0.
    m2 : (C,) array of float64
        Sums of squared deviations from the mean, in x's unit squared.
    """

    count: Any
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
def statistics(moments, channels):
    """Check that moments fit x; return count, mean and variance as the C functions read them."""
    count = doubles(moments.count, channels, "moments: expected one count per channel of x")
    mean = doubles(moments.mean, channels, "moments: expected one mean per channel of x")
    m2 = doubles(moments.m2, channels, "moments: expected one m2 per channel of x")
    return count, mean, m2 / count


@compiled
def statistics_of_all(x, moments, channels, least):
    """Refuse moments that can be neither those of x nor those of a batch that contains x."""
    count, mean, var = statistics(moments, channels)
    if x.size and np.any(count < least):
        raise ValueError("moments: expected the count of x's values per channel or more, got less")
    return count, mean, var
