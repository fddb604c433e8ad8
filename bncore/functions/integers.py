"""Arrays of integers in the functions that read them: the kernels, and what a scale does.

`scale` is what the integers are multiplied with, or None for an array of floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.weights import Weights
from bncore.backends.contract import Data, Fusion, Stat
from bncore.backends.integers import moments_of_blocks
from bncore.backends.partition import tile_slices
from bncore.statistics import Moments, concatenated, trusted_moments

WEIGHTED = 1 << 17  # the largest number of values that are converted to float64 at a time


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
    """Compute the moments of x * scale, and the count that `weights` asks for."""
    if scale is None:
        kernels.moments(mean, m2, x, n_threads, float64_sums, weights)
        return
    if weights is None or weights.values is None:  # no integer is NaN
        kernels.integer_moments(mean, m2, x, n_threads)
        if weights is not None:
            weights.count[:] = x.shape[0] * x.shape[2]
    else:
        _weighted(kernels, mean, m2, x, n_threads, weights)
    if scale != 1.0:
        with silent_arithmetic():
            mean *= scale
            m2 *= scale * scale


def _weighted(
    kernels: Any, mean: Stat, m2: Stat, x: Data, n_threads: int, weights: Weights
) -> None:
    """Compute the moments of weighted integers.

    A mask, and weights that are all 0 or 1, give the exact ones.
    """
    values = weights.values
    assert values is not None
    if values.dtype == np.uint8 or ((values == 0.0) | (values == 1.0)).all():
        mask = values.astype(np.uint8, copy=False)
        weights.count[:] = moments_of_blocks(mean, m2, x, mask)
        return
    found: dict[int, Moments] = {}  # by the first channel of a block
    for block in tile_slices(x.shape[0], x.shape[1], x.shape[2], WEIGHTED):
        part = _of_block(kernels, x[block], _part_of(values, block, x.shape[1]), n_threads)
        first = block[1].start
        found[first] = part if first not in found else found[first].merge(part)
    total = concatenated([found[first] for first in sorted(found)])
    mean[:], m2[:], weights.count[:] = total.mean, total.m2, total.count


def _part_of(
    values: npt.NDArray[Any], block: tuple[slice, slice, slice], channels: int
) -> npt.NDArray[Any]:
    """Return the weights of a block of x; there are those of all channels, or one for all."""
    own = block[1] if values.shape[1] == channels else slice(None)
    return np.ascontiguousarray(values[block[0], own, block[2]])


def _of_block(kernels: Any, x: Data, values: npt.NDArray[Any], n_threads: int) -> Moments:
    """Compute the weighted moments of a block, in float64."""
    mean, m2, count = np.empty((3, x.shape[1]))
    given = Weights(values, False, None, count)
    kernels.moments(mean, m2, x.astype(np.float64), n_threads, True, given)
    return trusted_moments(count, mean, m2)


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
    if weights is not None and weights.values is not None and weights.fill is not None:
        for block in tile_slices(x.shape[0], x.shape[1], x.shape[2], WEIGHTED):
            empty = _part_of(weights.values, block, x.shape[1]) == 0
            np.copyto(y[block], np.float32(weights.fill), where=empty)
