"""Batch norm inside functions that Numba compiles: ``import bncore.numba`` imports Numba.

The functions have the names of the package's and compute the same bits, in nopython mode, by
calling the C library.  They differ in what they take: x and dy are C-contiguous arrays of float32
or float64, with channels on any `axis` (1 for NCHW, -1 for NHWC memory); nothing is copied.
Parameters and statistics are arrays of float32 or float64.  `n_threads` is 1 where it is not given.
Called from Python they release its lock.

`Moments` and `GradSums` are tuples here: ``bncore.Moments(*moments)`` is what merges,
``bn.Moments(m.count, m.mean, m.m2)`` the way back.

Examples
--------
>>> import numba
>>> import numpy as np
>>> import bncore.numba as bn  # doctest: +SKIP
>>> @numba.njit  # doctest: +SKIP
... def step(x, weight, bias, dy):
...     y, moments = bn.batch_norm_train(x, weight, bias)
...     return y, bn.batch_norm_train_backward(dy, x, moments, weight)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from bncore.numba_calls import as_parameter, call, checked, doubles, same_as, sizes_of

# A call from Python lets other threads of Python run meanwhile.
compiled = njit(nogil=True)


class Moments(NamedTuple):
    """Per channel the mean and the sum of squared deviations from it, of `count` values."""

    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    mean: Any
    m2: Any


class GradSums(NamedTuple):
    """Per channel the sums of dy and of dy * xhat."""

    sum_dy: Any
    sum_dy_xhat: Any


@compiled
def _mean_var(moments, channels):
    """Give mean and variance as the C functions read them, once they fit x."""
    mean = doubles(moments.mean, channels, "moments: expected one mean per channel of x")
    m2 = doubles(moments.m2, channels, "moments: expected one m2 per channel of x")
    return mean, m2 / max(moments.count, 1)


@compiled
def _mean_var_of_all(x, moments, channels, count):
    """Refuse moments of a batch that x cannot be, or be a piece of."""
    if moments.count < count and x.size:
        raise ValueError("moments: expected the count of x's values per channel or more, got less")
    return _mean_var(moments, channels)


@compiled
def moments(x, axis=1, n_threads=1):
    """Take the `Moments` of every channel; see `bncore.moments`."""
    channels, count = sizes_of(x, axis)
    mean, m2 = np.zeros(channels), np.zeros(channels)
    checked(call("bncore_moments", x, axis, 0.0, n_threads, (mean, m2, x)))
    return Moments(count, mean, m2)


@compiled
def batch_norm_train(x, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Return y and `Moments`; see `bncore.batch_norm_train`."""
    channels, count = sizes_of(x, axis)
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    if count == 1:
        raise ValueError("x: expected more than one value per channel in training, got 1")
    y, mean, m2 = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    checked(call("bncore_train", x, axis, eps, n_threads, (y, mean, m2, x, gamma, beta)))
    return y, Moments(count, mean, m2)


@compiled
def batch_norm_train_backward(dy, x, moments, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Return dx, dweight and dbias; see `bncore.batch_norm_train_backward`."""
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    mean, var = _mean_var(moments, channels)
    if moments.count != count:
        raise ValueError("moments: expected the count of x's values per channel, got another one")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mean, var, gamma)
    checked(call("bncore_train_backward", x, axis, eps, n_threads, arrays))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)


@compiled
def batch_norm_infer(x, mean, var, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Return y by given statistics; see `bncore.batch_norm_infer`."""
    channels, _ = sizes_of(x, axis)
    mu = doubles(mean, channels, "mean: expected one value per channel of x")
    sigma = doubles(var, channels, "var: expected one value per channel of x")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    y = np.empty_like(x)
    checked(call("bncore_normalize", x, axis, eps, n_threads, (y, x, mu, sigma, gamma, beta)))
    return y


@compiled
def batch_norm_infer_backward(dy, x, mean, var, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Return dx, dweight and dbias; see `bncore.batch_norm_infer_backward`."""
    channels, _ = sizes_of(x, axis)
    same_as(dy, x)
    mu = doubles(mean, channels, "mean: expected one value per channel of x")
    sigma = doubles(var, channels, "var: expected one value per channel of x")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mu, sigma, gamma)
    checked(call("bncore_infer_backward", x, axis, eps, n_threads, arrays))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)


@compiled
def normalize(x, moments, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Return y by `Moments`, which may be merged ones; see `bncore.normalize`."""
    channels, _ = sizes_of(x, axis)
    mean, var = _mean_var(moments, channels)
    if moments.count < 1 and x.size:
        raise ValueError("moments: expected a count above 0 for an x that is not empty, got less")
    return batch_norm_infer(x, mean, var, weight, bias, axis, eps, n_threads)


@compiled
def grad_sums(dy, x, moments, axis=1, eps=1e-5, n_threads=1):
    """Return `GradSums`; see `bncore.grad_sums`."""
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    mean, var = _mean_var_of_all(x, moments, channels, count)
    sum_dy, sum_dy_xhat = np.zeros(channels), np.zeros(channels)
    arrays = (sum_dy, sum_dy_xhat, dy, x, mean, var)
    checked(call("bncore_grad_sums", x, axis, eps, n_threads, arrays))
    return GradSums(sum_dy, sum_dy_xhat)


@compiled
def grad_input(dy, x, moments, sums, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Return dx by `Moments` and `GradSums`, which may be merged ones; see `bncore.grad_input`."""
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    mean, var = _mean_var_of_all(x, moments, channels, count)
    total = doubles(sums.sum_dy, channels, "sums: expected one sum_dy per channel of x")
    weighted = doubles(
        sums.sum_dy_xhat, channels, "sums: expected one sum_dy_xhat per channel of x"
    )
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx = np.empty_like(x)
    if x.size:
        arrays = (dx, dy, x, mean, var, total, weighted, float(moments.count), gamma)
        checked(call("bncore_grad_input", x, axis, eps, n_threads, arrays))
    return dx
