"""Batch normalization as everybody writes it in NumPy: what bncore is compared with.

Arrays of any layout; ``axes`` are the axes summed over, parameters broadcast against the array.
The arithmetic is done in the array's own dtype, so on ``numpy.longdouble`` this is the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Axes = tuple[int, ...]


def statistics(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Mean and population variance, in two passes as ``numpy.var`` does."""
    return x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)


def infer(x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalize with given statistics."""
    y: Array = (x - mean) * (weight / np.sqrt(var + eps)) + bias
    return y


def train(x: Array, weight: Array, bias: Array, axes: Axes, eps: float) -> Array:
    """Normalize with the statistics of the batch."""
    mean, var = statistics(x, axes)
    return infer(x, mean, var, weight, bias, eps)


def backward_terms(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, axes: Axes, eps: float
) -> tuple[Array, Array, Array]:
    """Three terms whose sum is dx: through y itself, through the mean, and through the variance."""
    invstd = 1.0 / np.sqrt(var + eps)
    xhat = (x - mean) * invstd
    mean_dy = dy.mean(axis=axes, keepdims=True)
    mean_dy_xhat = (dy * xhat).mean(axis=axes, keepdims=True)
    scale = weight * invstd
    return scale * dy, -scale * mean_dy, -scale * xhat * mean_dy_xhat


def backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, axes: Axes, eps: float
) -> Array:
    """Gradient of the loss by x, in training mode."""
    through_y, through_mean, through_var = backward_terms(dy, x, mean, var, weight, axes, eps)
    dx: Array = through_y + through_mean + through_var
    return dx
