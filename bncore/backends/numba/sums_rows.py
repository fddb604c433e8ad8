"""Sums of the Numba backend over rows: x[row * width + column], the last row short.

A kernel works on a range of tasks, holds no lock, and writes what no other task writes.  Arrays of
data are flat; `parts` is that of `numba_state`.
"""

from __future__ import annotations

import numpy as np

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import keep_last, load, prefetch, store, widen
from bncore.backends.numba.state import N, P, Q, S, close, first_pivot, flush_columns
from bncore.backends.partition import LANES, PIVOT_ROWS, ROW_BLOCK, Data, Stat

STRIP = 1024  # columns of a strip (the last one takes the rest): their sums stay in cache
ROW_TILE = 4  # rows at a time: their accumulators stay in registers, their lines in the cache
AHEAD = 8  # rows from the load of a cache line to the first use


@jit
def rows_moments_segment(
    state: Stat,
    x: Data,
    width: int,
    full: int,
    short: int,
    j0: int,
    j1: int,
    begin: int,
    end: int,
) -> None:
    """Walk the rows begin to end of columns j0 to j1 (at least LANES), PIVOT_ROWS at a time."""
    sums, squares = np.empty(j1 - j0), np.empty(j1 - j0)
    for j in range(j0, j1):
        rows = min(PIVOT_ROWS, min(end, full + (j < short)) - begin)
        state[N, j] = state[P, j] = state[S, j] = state[Q, j] = 0.0
        if rows > 0:
            state[P, j] = first_pivot(x, begin * width + j, width, rows)
    pivots = state[P]
    for block in range(begin, end, ROW_BLOCK):
        stop = min(block + ROW_BLOCK, end, full)
        sums[:] = 0.0
        squares[:] = 0.0
        for row in range(block, stop, ROW_TILE):
            last = min(row + ROW_TILE, stop)
            for j in range(j0, j1, LANES):
                # Columns that do not fill the lanes go to the last ones; the others add 0.0.
                at, keep = min(j, j1 - LANES), min(j1 - j, LANES)
                pivot, s, q = load(pivots, at), load(sums, at - j0), load(squares, at - j0)
                for i in range(row * width + at, last * width + at, width):
                    prefetch(x, i + AHEAD * width)
                    d = widen(load(x, i)) - pivot
                    if keep < LANES:
                        d = keep_last(d, keep)
                    s = s + d
                    q = q + d * d
                store(sums, at - j0, s)
                store(squares, at - j0, q)
        reach = min(j1, short) if full < min(block + ROW_BLOCK, end) else j0
        for j in range(j0, reach):
            d = np.float64(x[full * width + j]) - pivots[j]
            sums[j - j0] += d
            squares[j - j0] += d * d
        flush_columns(state, j0, j1, reach, sums, squares, max(stop - block, 0))
    close(state, j0, j1)


@jit
def rows_sums_segment(
    sums: Stat,
    dy: Data,
    x: Data,
    means: Stat,
    width: int,
    full: int,
    short: int,
    j0: int,
    j1: int,
    begin: int,
    end: int,
) -> None:
    """Sum dy and dy * (x - mean) over the rows begin to end of columns j0 to j1."""
    block_a, block_b = np.empty(j1 - j0), np.empty(j1 - j0)
    sums[:, j0:j1] = 0.0
    for block in range(begin, end, ROW_BLOCK):
        stop = min(block + ROW_BLOCK, end, full)
        block_a[:] = 0.0
        block_b[:] = 0.0
        for row in range(block, stop, ROW_TILE):
            last = min(row + ROW_TILE, stop)
            for j in range(j0, j1, LANES):
                at, keep = min(j, j1 - LANES), min(j1 - j, LANES)
                mean, a, b = load(means, at), load(block_a, at - j0), load(block_b, at - j0)
                for i in range(row * width + at, last * width + at, width):
                    prefetch(dy, i + AHEAD * width)
                    prefetch(x, i + AHEAD * width)
                    g = widen(load(dy, i))
                    gd = g * (widen(load(x, i)) - mean)
                    if keep < LANES:
                        g, gd = keep_last(g, keep), keep_last(gd, keep)
                    a = a + g
                    b = b + gd
                store(block_a, at - j0, a)
                store(block_b, at - j0, b)
        reach = min(j1, short) if full < min(block + ROW_BLOCK, end) else j0
        for j in range(j0, reach):
            g = np.float64(dy[full * width + j])
            block_a[j - j0] += g
            block_b[j - j0] += g * (np.float64(x[full * width + j]) - means[j])
        for j in range(j0, j1):
            sums[0, j] += block_a[j - j0]
            sums[1, j] += block_b[j - j0]


# Tasks: segment after segment, and in a segment all strips of columns


@jit
def rows_moments(first: int, last: int, parts: Stat, x: Data, segment_rows: int) -> None:
    """Compute partial moments; task = segment * strips + strip."""
    width = parts.shape[2]
    full, short = len(x) // width, len(x) % width
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        end = min((k + 1) * segment_rows, full + (short > 0))
        rows_moments_segment(parts[k], x, width, full, short, j0, j1, k * segment_rows, end)


@jit
def rows_sums(
    first: int, last: int, parts: Stat, dy: Data, x: Data, means: Stat, segment_rows: int
) -> None:
    """Compute partial gradient sums; task = segment * strips + strip."""
    width = parts.shape[2]
    full, short = len(x) // width, len(x) % width
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        end = min((k + 1) * segment_rows, full + (short > 0))
        rows_sums_segment(parts[k], dy, x, means, width, full, short, j0, j1, k * segment_rows, end)
