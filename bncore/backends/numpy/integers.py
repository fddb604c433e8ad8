"""The exact moments of integers in NumPy."""

from __future__ import annotations

import numpy as np

from bncore.backends.integers import BLOCK, is_narrow, no_sums, set_moments
from bncore.backends.partition import Data, Stat, tile_slices


def integer_moments(mean: Stat, m2: Stat, x: Data, n_threads: int) -> None:
    """Write the exact mean and m2 of every channel, each rounded once."""
    outer, channels, inner = x.shape
    sums = no_sums(channels, outer * inner)
    for block in tile_slices(outer, channels, inner, BLOCK):
        values = x[block].astype(np.int64)
        low = values if is_narrow(x) else values & 0xFFFF
        terms = [(0, values), (3, low * low)]
        if not is_narrow(x):
            high = values >> 16
            terms += [(1, high * high), (2, high * low)]
        for k, term in terms:
            sums[k, block[1]] += term.sum(axis=(0, 2))
    set_moments(mean, m2, outer * inner, sums)
