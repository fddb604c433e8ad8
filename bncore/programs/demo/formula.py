"""Batch normalization as everybody writes it in NumPy, for comparison with bncore.

Arrays may have any layout.  ``axes`` are the axes to sum over, and parameters broadcast against the
array.  The functions compute in the array's own dtype, so with ``numpy.longdouble`` they are the
reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Axes = tuple[int, ...]


def statistics(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Compute mean and population variance, in two passes as ``numpy.var`` does."""
    return x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)


def infer(x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalize with given statistics."""
    y: Array = (x - mean) * (weight / np.sqrt(var + eps)) + bias
    return y


def train(x: Array, weight: Array, bias: Array, axes: Axes, eps: float) -> Array:
    """Normalize with the statistics of the batch."""
    mean, var = statistics(x, axes)
    return infer(x, mean, var, weight, bias, eps)


def sums(
    dy: Array, x: Array, mean: Array, var: Array, axes: Axes, eps: float
) -> tuple[Array, Array]:
    """Sum dy and dy * xhat: the gradients of bias and weight."""
    xhat = (x - mean) / np.sqrt(var + eps)
    return dy.sum(axis=axes, keepdims=True), (dy * xhat).sum(axis=axes, keepdims=True)


def input_terms(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    weight: Array,
    eps: float,
) -> tuple[Array, Array, Array]:
    """Return three terms whose sum is dx: through y, through the mean and through the variance."""
    count = x.size // mean.size
    invstd = 1.0 / np.sqrt(var + eps)
    scale = weight * invstd
    xhat = (x - mean) * invstd
    return scale * dy, -scale * (sum_dy / count), -scale * (sum_dy_xhat / count) * xhat


def backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, axes: Axes, eps: float
) -> tuple[Array, Array, Array]:
    """Compute the gradients of x, weight and bias in training mode."""
    sum_dy, sum_dy_xhat = sums(dy, x, mean, var, axes, eps)
    through_y, through_mean, through_var = input_terms(
        dy, x, mean, var, sum_dy, sum_dy_xhat, weight, eps
    )
    return through_y + through_mean + through_var, sum_dy_xhat, sum_dy


def infer_backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, axes: Axes, eps: float
) -> tuple[Array, Array, Array]:
    """Compute the gradients of x, weight and bias with constant statistics."""
    sum_dy, sum_dy_xhat = sums(dy, x, mean, var, axes, eps)
    return dy * (weight / np.sqrt(var + eps)), sum_dy_xhat, sum_dy
