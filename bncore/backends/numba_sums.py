"""Loops of the Numba backend.

A kernel works on a range of tasks (segments of channel groups or of column strips, groups of
channels, a stretch of memory), holds no lock, and writes what no other task writes.  Arrays of
data are flat; `parts` is (segments, 4, columns) or (segments, 2, columns), and its rows are the
running state of `numpy_statistics.Running` while a segment is walked, then its partial result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from bncore.backends import partition
from bncore.backends.numba_lanes import (
    fold,
    keep_last,
    load,
    not_negative,
    prefetch,
    splat,
    store,
    where_finite,
    widen,
)
from bncore.backends.partition import BLOCK, LANES, PIVOT_ROWS, ROW_BLOCK, Data, Stat

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile with plain IEEE arithmetic, no lock, and the machine code kept on disk."""
    compiled: Function = numba.njit(
        cache=True, nogil=True, error_model="numpy", fastmath=False, boundscheck=False
    )(function)
    return compiled


STRIP = 1024  # columns of a strip (the last one takes the rest): their sums stay in cache
ROW_TILE = 4  # rows at a time: their accumulators stay in registers, their lines in the cache
AHEAD = 8  # rows from the load of a cache line to the first use

N, P, S, Q = 0, 1, 2, 3  # rows of a running state: count, pivot, sum, squares
OFFSET, M2 = S, Q  # and of a partial result: the mean is pivot + offset

inverse_std = jit(partition.inverse_std)
normalize_coefficients = jit(partition.normalize_coefficients)
gradient_coefficients = jit(partition.gradient_coefficients)


# Running state


@jit
def first_pivot(x: Data, at: int, stride: int, k: int) -> float:
    """Mean of the first `k` values, found from differences from the first of them."""
    first = np.float64(x[at])
    total = 0.0
    for i in range(1, k):
        total += np.float64(x[at + i * stride]) - first
    pivot = first + total / k
    return pivot if math.isfinite(pivot) else 0.0


@jit
def rebase(n: Any, p: Any, s: Any, q: Any) -> Any:
    """Move the pivot to the mean so far; one column, or LANES of them as Lanes.

    It stays where the mean is not finite: NaN or Inf came in, or something overflowed.
    """
    new = p + s / n
    t = new - p
    nt = n * t
    moved_q = not_negative(q - t * ((s + s) - nt))  # rounding alone can make it negative
    return where_finite(new, new, p), where_finite(new, s - nt, s), where_finite(new, moved_q, q)


@jit
def flush(state: Stat, c: int, s: float, q: float, count: int) -> None:
    """Add the sums of a block about the pivot of column `c`."""
    state[N, c] += count
    state[P, c], state[S, c], state[Q, c] = rebase(
        state[N, c], state[P, c], state[S, c] + s, state[Q, c] + q
    )


@jit
def flush_columns(
    state: Stat, j0: int, j1: int, reach: int, sums: Stat, squares: Stat, rows: int
) -> None:
    """Add a block of `rows` rows, and of one more up to column `reach`, to columns j0 to j1."""
    n, p, s, q = state
    j = j0
    if reach == j0:
        count = splat(np.float64(rows))
        while j + LANES <= j1:
            new_n = load(n, j) + count
            new_s, new_q = load(s, j) + load(sums, j - j0), load(q, j) + load(squares, j - j0)
            new_p, new_s, new_q = rebase(new_n, load(p, j), new_s, new_q)
            store(n, j, new_n)
            store(p, j, new_p)
            store(s, j, new_s)
            store(q, j, new_q)
            j += LANES
    for c in range(j, j1):
        if rows + (c < reach) > 0:  # a column without a value in this block stays as it is
            flush(state, c, sums[c - j0], squares[c - j0], rows + (c < reach))


@jit
def close(state: Stat, begin: int, end: int) -> None:
    """Turn the running states of a segment into partial results."""
    for c in range(begin, end):
        if state[N, c] > 0.0:
            offset = state[S, c] / state[N, c]
            m2 = state[Q, c] - state[S, c] * offset
            state[OFFSET, c] = offset
            state[M2, c] = 0.0 if m2 < 0.0 else m2


@jit
def merge(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Add the partial result `b` to `a` (Chan, Golub & LeVeque 1983)."""
    n_a, p_a, o_a, m_a = a
    n_b, p_b, o_b, m_b = b
    if n_b == 0.0:
        return a
    if n_a == 0.0:
        return b
    delta = (p_b - p_a) + (o_b - o_a)
    n = n_a + n_b
    ratio = n_b / n
    return n, p_a, o_a + delta * ratio, (m_a + m_b) + (delta * delta) * (n_a * ratio)


@jit
def merge_parts(mean: Stat, m2: Stat, parts: Stat, inner: int, begin: int, end: int) -> None:
    """Merge segments into columns and columns into channels begin to end."""
    channels = len(mean)
    for c in range(begin, end):
        channel = (0.0, 0.0, 0.0, 0.0)
        for left in range(c * inner, parts.shape[2], channels * inner):
            for j in range(left, left + inner):
                column = (0.0, 0.0, 0.0, 0.0)
                for part in parts:
                    column = merge(column, (part[N, j], part[P, j], part[OFFSET, j], part[M2, j]))
                channel = merge(channel, column)
        mean[c] = channel[P] + channel[OFFSET]
        m2[c] = channel[M2]


@jit
def add_parts(a: Stat, b: Stat, parts: Stat, inner: int, begin: int, end: int) -> None:
    """Add segments to columns and columns to channels begin to end."""
    channels = len(a)
    for c in range(begin, end):
        a[c] = b[c] = 0.0
        for left in range(c * inner, parts.shape[2], channels * inner):
            for j in range(left, left + inner):
                column_a, column_b = 0.0, 0.0
                for part in parts:
                    column_a += part[0, j]
                    column_b += part[1, j]
                a[c] += column_a
                b[c] += column_b


# Planes: x[(image * channels + channel) * inner + position]


@jit
def planes_moments_segment(
    state: Stat, x: Data, channels: int, inner: int, c0: int, c1: int, e: int, end: int
) -> None:
    """Walk the values e to end of channels c0 to c1, image by image."""
    lanes_s, lanes_q = np.zeros((c1 - c0) * LANES), np.zeros((c1 - c0) * LANES)
    zero = splat(0.0)
    for c in range(c0, c1):
        at = (e // inner * channels + c) * inner + e % inner
        state[N, c] = state[S, c] = state[Q, c] = 0.0
        state[P, c] = first_pivot(x, at, 1, min(inner - e % inner, end - e, LANES))
    pending = 0
    while e < end:
        image, start = e // inner, e % inner
        length = min(inner - start, end - e, BLOCK)
        rest = length % LANES
        for c in range(c0, c1):
            at = (image * channels + c) * inner + start
            lane = (c - c0) * LANES
            pivot, s, q = splat(state[P, c]), load(lanes_s, lane), load(lanes_q, lane)
            for i in range(at, at + length - rest, LANES):
                d = widen(load(x, i)) - pivot
                s = s + d
                q = q + d * d
            if rest > 0:
                d = keep_last(widen(load(x, at + length - LANES)) - pivot, rest)
                s = s + d
                q = q + d * d
            store(lanes_s, lane, s)
            store(lanes_q, lane, q)
        e += length
        pending += length
        if pending >= BLOCK or e == end:
            for c in range(c0, c1):
                lane = (c - c0) * LANES
                flush(state, c, fold(load(lanes_s, lane)), fold(load(lanes_q, lane)), pending)
                store(lanes_s, lane, zero)
                store(lanes_q, lane, zero)
            pending = 0
    close(state, c0, c1)


@jit
def planes_sums_segment(
    sums: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    channels: int,
    inner: int,
    c0: int,
    c1: int,
    e: int,
    end: int,
) -> None:
    """Sum dy and dy * (x - mean) over the values e to end of channels c0 to c1."""
    lanes_a, lanes_b = np.zeros((c1 - c0) * LANES), np.zeros((c1 - c0) * LANES)
    zero = splat(0.0)
    sums[:, c0:c1] = 0.0
    pending = 0
    while e < end:
        image, start = e // inner, e % inner
        length = min(inner - start, end - e, BLOCK)
        rest = length % LANES
        for c in range(c0, c1):
            at = (image * channels + c) * inner + start
            lane = (c - c0) * LANES
            center, a, b = splat(mean[c]), load(lanes_a, lane), load(lanes_b, lane)
            for i in range(at, at + length - rest, LANES):
                g = widen(load(dy, i))
                a = a + g
                b = b + g * (widen(load(x, i)) - center)
            if rest > 0:
                i = at + length - LANES
                g = widen(load(dy, i))
                a = a + keep_last(g, rest)
                b = b + keep_last(g * (widen(load(x, i)) - center), rest)
            store(lanes_a, lane, a)
            store(lanes_b, lane, b)
        e += length
        pending += length
        if pending >= BLOCK or e == end:
            for c in range(c0, c1):
                lane = (c - c0) * LANES
                sums[0, c] += fold(load(lanes_a, lane))
                sums[1, c] += fold(load(lanes_b, lane))
                store(lanes_a, lane, zero)
                store(lanes_b, lane, zero)
            pending = 0


# Rows: x[row * width + column], the last row short


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


# Tasks: segment after segment, and in a segment all groups of channels or strips of columns


@jit
def planes_moments(
    first: int, last: int, parts: Stat, x: Data, inner: int, segment_len: int, group: int
) -> None:
    """Compute partial moments; task = segment * groups + group."""
    channels = parts.shape[2]
    count = len(x) // channels
    groups = (channels + group - 1) // group
    for task in range(first, last):
        k, c0 = task // groups, task % groups * group
        end = min((k + 1) * segment_len, count)
        c1 = min(c0 + group, channels)
        planes_moments_segment(parts[k], x, channels, inner, c0, c1, k * segment_len, end)


@jit
def planes_sums(
    first: int,
    last: int,
    parts: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    inner: int,
    segment_len: int,
    group: int,
) -> None:
    """Compute partial gradient sums; task = segment * groups + group."""
    channels = parts.shape[2]
    count = len(x) // channels
    groups = (channels + group - 1) // group
    for task in range(first, last):
        k, c0 = task // groups, task % groups * group
        end = min((k + 1) * segment_len, count)
        c1 = min(c0 + group, channels)
        planes_sums_segment(parts[k], dy, x, mean, channels, inner, c0, c1, k * segment_len, end)


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
