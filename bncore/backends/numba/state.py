"""Running states and partial results of the Numba backend, and how they merge.

`parts` is (segments, 4, columns) for moments, (segments, 2, columns) for gradient sums, with a
column for each channel (planes) or for each column of the virtual matrix (rows).  ``parts[k]`` is
the running state of `numpy_statistics.Running` while segment k is walked, then its partial result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import load, not_negative, splat, store, where_finite
from bncore.backends.partition import LANES, Data, Stat

N, P, S, Q = 0, 1, 2, 3  # rows of a running state: count, pivot, sum, squares
OFFSET, M2 = S, Q  # and of a partial result: the mean is pivot + offset


# A segment: blocks, one after the other


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


# Segments into columns, columns into channels


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
