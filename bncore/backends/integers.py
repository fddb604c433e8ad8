"""Arrays of integers in the Python backends: exact sums, and blocks that are normalized as floats.

The sums of a channel are integers: x = 2**16 * a + b with 0 <= b < 2**16 gives those of x, a**2,
a * b and b**2.  Integers of 8 and 16 bits have a = 0 and b = x.  No term has more than 33 bits, so
that int64 holds 2**30 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.backends.contract import Fusion
from bncore.backends.partition import Data, Stat, tile_slices

SUMS = 4  # of x, a**2, a * b, b**2
MOST = 1 << 30  # values whose sums int64 holds
BLOCK = 49152  # the largest number of values that are converted at a time


def is_narrow(x: Data) -> bool:
    """Tell whether the integers have at most 16 bits."""
    return x.dtype.itemsize <= 2


def no_sums(channels: int, count: int) -> npt.NDArray[Any]:
    """Return zeros to which the sums of `count` values per channel are added."""
    return np.zeros((SUMS, channels), np.int64 if count <= MOST else object)


def block_sums(values: npt.NDArray[np.int64], narrow: bool) -> npt.NDArray[np.int64]:
    """Return the sums of a block, (outer, channels, inner); its values have 16 bits if narrow."""
    sums = np.zeros((SUMS, values.shape[1]), np.int64)
    sums[0] = channel_sums(values)
    low = values if narrow else values & 0xFFFF
    sums[3] = channel_sums(low * low)
    if not narrow:
        high = values >> 16
        sums[1], sums[2] = channel_sums(high * high), channel_sums(high * low)
    return sums


def channel_sums(terms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum the terms of every channel.

    NumPy takes long to add up short rows, so some of them are first read as one.
    """
    outer, channels, inner = terms.shape
    fold = max(min(256 // (channels * inner), outer), 1)
    whole = outer - outer % fold
    wide = terms[:whole].reshape(-1, fold * channels * inner).sum(axis=0)
    sums: npt.NDArray[np.int64] = terms[whole:].sum(axis=(0, 2))
    sums += wide.reshape(fold, channels, inner).sum(axis=(0, 2))
    return sums


def moments_of_blocks(
    mean: Stat, m2: Stat, x: Data, mask: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.int64]:
    """Write the exact moments of the values whose mask is 1; return how many these are.

    The mask has the shape of x, or one value for all channels.
    """
    outer, channels, inner = x.shape
    sums, count = no_sums(channels, outer * inner), np.zeros(channels, np.int64)
    for block in tile_slices(outer, channels, inner, BLOCK):
        o, c, i = block
        values = x[block].astype(np.int64)
        if mask is None:
            counted = values.shape[0] * values.shape[2]
        else:
            taken = mask[o, c if mask.shape[1] == channels else slice(None), i]
            values *= taken
            counted = taken.sum(axis=(0, 2), dtype=np.int64)
        sums[:, c] += block_sums(values, is_narrow(x))
        count[c] += counted
    set_moments(mean, m2, count, sums)
    return count


def set_moments(mean: Stat, m2: Stat, count: npt.NDArray[np.int64], sums: npt.NDArray[Any]) -> None:
    """Write the mean and m2 that follow from the sums; NaN and 0 for a channel without a value.

    A quotient of Python's integers is rounded once, to nearest even.
    """
    for c, (n, (x, aa, ab, bb)) in enumerate(zip(count.tolist(), sums.T.tolist(), strict=True)):
        squares = (aa << 32) + (ab << 17) + bb
        mean[c] = x / n if n else np.nan
        m2[c] = (n * squares - x * x) / n if n else 0.0


def normalize_blocks(
    normalize: Callable[..., None],
    y: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    bias: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None,
) -> None:
    """Compute `Backend.integer_normalize` by the backend's `normalize`, block by block."""
    center = np.zeros_like(mean)
    if not is_narrow(x):
        center[:] = mean.astype(np.float32)
        mean = mean - center
    outer, channels_in_all, inner = x.shape
    for block in tile_slices(outer, channels_in_all, inner, BLOCK):
        channels = block[1]
        if is_narrow(x):
            values = x[block].astype(np.float32)
        else:
            values = (x[block] - center[channels, np.newaxis]).astype(np.float32)
        given = (p if p is None else p[channels] for p in (mean, var, weight, bias))
        normalize(y[block], values, *given, eps, n_threads, _part(fusion, block))


def _part(fusion: Fusion | None, block: tuple[slice, ...]) -> Any:
    """Return what is fused with the values of a block."""
    if fusion is None:
        return None
    residual = None if fusion.residual is None else fusion.residual[block]
    return SimpleNamespace(activation=fusion.activation, slope=fusion.slope, residual=residual)
