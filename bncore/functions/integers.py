"""Arrays of integers in the functions that read them: the kernels, and what a scale does.

`scale` is what the integers are multiplied with, or None for an array of floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.arguments.float_environment import silent_arithmetic
from bncore.backends.contract import Data, Fusion, Stat, Weights


def moments(
    kernels: Any,
    mean: Stat,
    m2: Stat,
    x: Data,
    n_threads: int,
    float64_sums: bool,
    scale: float | None,
    weights: Weights | None = None,
) -> None:
    """Compute the moments of x * scale.

    If integers have weights, they are converted first, without rounding.
    """
    if scale is None:
        kernels.moments(mean, m2, x, n_threads, float64_sums, weights)
        return
    if weights is None or weights.values is None:  # no integer is NaN
        kernels.integer_moments(mean, m2, x, n_threads)
    else:
        wide = x.astype(np.float64 if x.itemsize > 2 else np.float32)
        kernels.moments(mean, m2, wide, n_threads, False, weights)
    if scale != 1.0:
        with silent_arithmetic():
            mean *= scale
            m2 *= scale * scale


def normalize(
    kernels: Any,
    y: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    bias: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None,
    scale: float | None,
    weights: Weights | None = None,
) -> None:
    """Normalize x * scale: (x * scale - mean) * weight is (x - mean / scale) * (weight * scale)."""
    if scale is None:
        kernels.normalize(y, x, mean, var, weight, bias, eps, n_threads, fusion, weights)
        return
    if scale != 1.0:
        with silent_arithmetic():
            weight = np.full_like(mean, scale) if weight is None else weight * scale
            mean = mean / scale
    kernels.integer_normalize(y, x, mean, var, weight, bias, eps, n_threads, fusion)
    if weights is not None and weights.values is not None:
        assert weights.fill is not None
        np.copyto(y, np.float32(weights.fill), where=weights.values == 0)
