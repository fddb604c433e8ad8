"""The sums of docs/numerics.md in plain loops: moments and gradient sums.

This file and `elementwise.py` are the specification that runs.  Run as they are, they are what the
tests compare every backend with; compiled by Numba (`jit.py`), they are the backend for machines
without a compiler.  All backends follow the order of the operations that stands here.

Arrays of data are flat: x, dy, y, dx are float32 or float64.  Statistics and sums are float64.
A *kernel* takes a range of tasks, `first` to `last`, and then its arrays, outputs first.  No two
tasks write to the same place, so any thread may do any of them.

`parts` holds what a segment leaves of each column, ``parts[segment, field, column]``.  A column is
a channel in planes; in rows it is a column of the virtual matrix (`partition.Rows`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from bncore.backends.partition import BLOCK, LANES, PIVOT_ROWS, ROW_BLOCK, Data, Stat

# Of a running state about a pivot p: n values, p, the sum S of x - p, the sum Q of (x - p)**2.
# Of a closed segment: n values, p, the mean as an offset from p, the squares about the mean.
State: TypeAlias = tuple[Any, Any, Any, Any]

STRIP = 1024  # columns of a task in rows: their sums stay in the first-level cache


# Moments: blocked Welford


def first_pivot(values: Data) -> Any:
    """Average the first values of a segment; 0 where that is not finite."""
    first = np.float64(values[0])
    total = 0.0
    for i in range(1, len(values)):
        total += np.float64(values[i]) - first
    pivot = first + total / len(values)
    return pivot if np.isfinite(pivot) else 0.0


def flush(state: State, block_s: Any, block_q: Any, count: int) -> State:
    """Add the sums of a block of `count` values, then move the pivot to the mean so far.

    The pivot stays where the mean is not finite: there is a NaN or Inf, or a sum overflowed.
    """
    n, p, s, q = state
    n, s, q = n + count, s + block_s, q + block_q
    new_p = p + s / n
    if not np.isfinite(new_p):
        return n, p, s, q
    t = new_p - p
    nt = n * t
    q = q - t * (2.0 * s - nt)
    return n, new_p, s - nt, q if not q < 0.0 else 0.0  # rounding alone makes it negative


def close(state: State) -> State:
    """End a segment: give its mean as an offset from the pivot, and the squares about it."""
    n, p, s, q = state
    if n == 0:
        return 0.0, 0.0, 0.0, 0.0
    offset = s / n
    m2 = q - s * offset
    return n, p, offset, m2 if not m2 < 0.0 else 0.0


def merge(a: State, b: State) -> State:
    """Merge two closed segments (Chan, Golub & LeVeque 1983, equation 2.1)."""
    n_a, p_a, o_a, m_a = a
    n_b, p_b, o_b, m_b = b
    if n_b == 0:
        return a
    if n_a == 0:
        return b
    delta = (p_b - p_a) + (o_b - o_a)
    n = n_a + n_b
    ratio = n_b / n
    return n, p_a, o_a + delta * ratio, (m_a + m_b) + (delta * delta) * (n_a * ratio)


def merge_moments(first: int, last: int, mean: Stat, m2: Stat, parts: Stat, inner: int) -> None:
    """Merge the segments of each column, then the columns of channels first to last."""
    for c in range(first, last):
        total = (0.0, 0.0, 0.0, 0.0)
        for left in range(c * inner, parts.shape[2], len(mean) * inner):
            for j in range(left, left + inner):
                column = (0.0, 0.0, 0.0, 0.0)
                for part in parts:
                    column = merge(column, (part[0, j], part[1, j], part[2, j], part[3, j]))
                total = merge(total, column)
        mean[c] = total[1] + total[2]
        m2[c] = total[3]


# Planes: LANES sums of a channel run side by side


def piece(x: Data, c: int, channels: int, inner: int, e: int, end: int) -> Data:
    """Take the values of channel `c` from `e` on: at most BLOCK, none from `end` on, one image."""
    start = e % inner
    at = (e // inner * channels + c) * inner + start
    return x[at : at + min(inner - start, end - e, BLOCK)]


def fold(lanes: Stat) -> Any:
    """Add the lanes by halves, and empty them."""
    width = LANES
    while width > 1:
        width //= 2
        for lane in range(width):
            lanes[lane] += lanes[width + lane]
    total = lanes[0]
    lanes[:] = 0.0
    return total


def add_squares(s: Stat, q: Stat, values: Data, pivot: Any) -> None:
    """Add a piece: value i to lane i % LANES, the values that do not fill the lanes to the last."""
    rest = len(values) % LANES
    whole = len(values) - rest
    for i in range(0, whole, LANES):
        for lane in range(len(s)):
            d = np.float64(values[i + lane]) - pivot
            s[lane] += d
            q[lane] += d * d
    for i in range(rest):
        d = np.float64(values[whole + i]) - pivot
        s[LANES - rest + i] += d
        q[LANES - rest + i] += d * d


def planes_moments(
    first: int, last: int, parts: Stat, x: Data, inner: int, segment_len: int
) -> None:
    """Take the moments of segments; task = segment * channels + channel."""
    channels = parts.shape[2]
    count = len(x) // channels
    s, q = np.zeros(LANES), np.zeros(LANES)
    for task in range(first, last):
        k, c = task // channels, task % channels
        e, end, pending = k * segment_len, min((k + 1) * segment_len, count), 0
        state = 0.0, first_pivot(piece(x, c, channels, inner, e, end)[:LANES]), 0.0, 0.0
        while e < end:
            values = piece(x, c, channels, inner, e, end)
            add_squares(s, q, values, state[1])
            e += len(values)
            pending += len(values)
            if pending >= BLOCK or e == end:
                state = flush(state, fold(s), fold(q), pending)
                pending = 0
        parts[k, 0, c], parts[k, 1, c], parts[k, 2, c], parts[k, 3, c] = close(state)


# Rows: every column of the virtual matrix is one sequential sum


def rows_moments(first: int, last: int, parts: Stat, x: Data, segment_rows: int) -> None:
    """Take the moments of segments; task = segment * strips + strip."""
    width = parts.shape[2]
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        n, pivots = parts[k, 0][j0:j1], parts[k, 1][j0:j1]
        sums, squares = parts[k, 2][j0:j1], parts[k, 3][j0:j1]
        begin, end = k * segment_rows, min((k + 1) * segment_rows, -(-len(x) // width))
        for j in range(j1 - j0):
            column = x[begin * width + j0 + j : min(end * width, len(x)) : width][:PIVOT_ROWS]
            n[j] = sums[j] = squares[j] = 0.0
            pivots[j] = first_pivot(column) if len(column) > 0 else 0.0
        s, q = np.zeros(j1 - j0), np.zeros(j1 - j0)
        for block in range(begin, end, ROW_BLOCK):
            stop = min(block + ROW_BLOCK, end)
            columns = j1 - j0
            for row in range(block, stop):
                line = x[row * width + j0 : min(row * width + j1, len(x))]
                columns = len(line)  # the last row of all may be short
                for j in range(columns):
                    d = np.float64(line[j]) - pivots[j]
                    s[j] += d
                    q[j] += d * d
            for j in range(j1 - j0):
                rows = stop - block - (j >= columns)
                if rows > 0:
                    n[j], pivots[j], sums[j], squares[j] = flush(
                        (n[j], pivots[j], sums[j], squares[j]), s[j], q[j], rows
                    )
            s[:] = 0.0
            q[:] = 0.0
        for j in range(j1 - j0):
            n[j], pivots[j], sums[j], squares[j] = close((n[j], pivots[j], sums[j], squares[j]))


# Gradient sums: the same walk with sum(dy) and sum(dy * (x - mean)), and no pivot that moves


def add_products(a: Stat, b: Stat, grads: Data, values: Data, mean: Any) -> None:
    """Add a piece to the lanes, as `add_squares` does."""
    rest = len(values) % LANES
    whole = len(values) - rest
    for i in range(0, whole, LANES):
        for lane in range(len(a)):
            g = np.float64(grads[i + lane])
            a[lane] += g
            b[lane] += g * (np.float64(values[i + lane]) - mean)
    for i in range(rest):
        g = np.float64(grads[whole + i])
        a[LANES - rest + i] += g
        b[LANES - rest + i] += g * (np.float64(values[whole + i]) - mean)


def planes_grad_sums(
    first: int,
    last: int,
    parts: Stat,
    dy: Data,
    x: Data,
    means: Stat,
    inner: int,
    segment_len: int,
) -> None:
    """Take the gradient sums of segments; task = segment * channels + channel."""
    channels = parts.shape[2]
    count = len(x) // channels
    a, b = np.zeros(LANES), np.zeros(LANES)
    for task in range(first, last):
        k, c = task // channels, task % channels
        e, end, pending = k * segment_len, min((k + 1) * segment_len, count), 0
        parts[k, 0, c] = parts[k, 1, c] = 0.0
        while e < end:
            values = piece(x, c, channels, inner, e, end)
            add_products(a, b, piece(dy, c, channels, inner, e, end), values, means[c])
            e += len(values)
            pending += len(values)
            if pending >= BLOCK or e == end:
                parts[k, 0, c] += fold(a)
                parts[k, 1, c] += fold(b)
                pending = 0


def rows_grad_sums(
    first: int, last: int, parts: Stat, dy: Data, x: Data, means: Stat, segment_rows: int
) -> None:
    """Take the gradient sums of segments; task = segment * strips + strip."""
    width = parts.shape[2]
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        mean = means[j0:j1]
        begin, end = k * segment_rows, min((k + 1) * segment_rows, -(-len(x) // width))
        parts[k, :, j0:j1] = 0.0
        a, b = np.zeros(j1 - j0), np.zeros(j1 - j0)
        for block in range(begin, end, ROW_BLOCK):
            for row in range(block, min(block + ROW_BLOCK, end)):
                at, stop = row * width + j0, min(row * width + j1, len(x))
                grads, values = dy[at:stop], x[at:stop]
                for j in range(len(grads)):
                    g = np.float64(grads[j])
                    a[j] += g
                    b[j] += g * (np.float64(values[j]) - mean[j])
            for j in range(j1 - j0):
                parts[k, 0, j0 + j] += a[j]
                parts[k, 1, j0 + j] += b[j]
            a[:] = 0.0
            b[:] = 0.0


def add_grad_sums(
    first: int,
    last: int,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    parts: Stat,
    var: Stat,
    eps: float,
    inner: int,
) -> None:
    """Add the segments of each column, then the columns of channels first to last."""
    for c in range(first, last):
        a = b = 0.0
        for left in range(c * inner, parts.shape[2], len(sum_dy) * inner):
            for j in range(left, left + inner):
                column_a = column_b = 0.0
                for part in parts:
                    column_a += part[0, j]
                    column_b += part[1, j]
                a += column_a
                b += column_b
        sum_dy[c] = a
        sum_dy_xhat[c] = b * inverse_std(var[c], eps)


def inverse_std(var: Any, eps: float) -> Any:
    """Compute 1 / sqrt(var + eps)."""
    return 1.0 / np.sqrt(np.float64(var + eps))
