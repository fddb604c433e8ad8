"""The sums of docs/numerics.md in plain loops: moments and gradient sums.

This file, `storage.py` and `elementwise.py` are the specification that runs.  Run as they are, they
are what the tests compare every backend with; compiled by Numba (`jit.py`), they are the backend
for machines without a compiler.  All backends follow the order of the operations that stands here.

Arrays of data are flat: x, dy, y, dx are of a storage type (`storage.py`).  Statistics and sums are
float64.  A *kernel* takes a range of tasks, `first` to `last`, and then its arrays, outputs first.
No two tasks write to the same place, so any thread may do any of them.

`parts` holds what a segment leaves of each column, ``parts[segment, field, column]``.  A column is
a channel in planes; in rows it is a column of the virtual matrix (`partition.Rows`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from bncore.backends.numba.storage import stored, unsigned, value
from bncore.backends.partition import BLOCK, LANES, PIVOT_ROWS, ROW_BLOCK, Data, Stat

# Of a running state about a pivot p: n values, p, the sum S of x - p, the sum Q of (x - p)**2.
# Of a closed segment: n values, p, the mean as an offset from p, the squares about the mean.
State: TypeAlias = tuple[Any, Any, Any, Any]

STRIP = 1024  # columns of a task in rows: their sums stay in the first-level cache

CHAIN = 8  # terms of a chain
LEAST, MOST = 2.0**-80, 2.0**80  # the mean square of deviations whose squares float32 can hold


# Chains: float32 terms are added in a tree, and its sum is added in float64


def add_chains(totals: Stat, terms: Data) -> None:
    """Add rows of terms, each as long as `totals`, in chains of 8, one of 4 and one of the rest.

    Terms that do not fill a row are those of the last totals.
    """
    width = len(totals)
    rest = len(terms) % width
    whole = len(terms) - rest
    at = 0
    while whole - at >= 8 * width:
        for j in range(width):
            low, high = tree(terms, at + j, width), tree(terms, at + 4 * width + j, width)
            totals[j] += np.float64(low + high)
        at += 8 * width
    if whole - at >= 4 * width:
        for j in range(width):
            totals[j] += np.float64(tree(terms, at + j, width))
        at += 4 * width
    if at < len(terms):
        last = np.zeros(4 * width, terms.dtype)
        last[: whole - at] = terms[at:whole]
        last[4 * width - rest :] = terms[whole:]
        for j in range(width):
            totals[j] += np.float64(tree(last, j, width))


def tree(terms: Data, at: int, step: int) -> Any:
    """Add four terms."""
    first, second = terms[at] + terms[at + step], terms[at + 2 * step] + terms[at + 3 * step]
    return first + second


# Moments: blocked Welford


def first_pivot(values: Data, chained: bool) -> Any:
    """Average the first values of a segment; 0 if that is not finite, or if they lie around 0."""
    if sums_about_0(values) and lie_around_0(values):
        return 0.0
    first = np.float64(value(values[0]))
    total = 0.0
    for i in range(1, len(values)):
        total += np.float64(value(values[i])) - first
    pivot = storable(first + total / len(values), values, chained)
    return pivot if np.isfinite(pivot) else 0.0


def sums_about_0(x: Data) -> Any:
    """Tell whether data are of a type that is summed about 0 where that loses nothing."""
    return x.itemsize == 4  # float32


def lie_around_0(values: Data) -> Any:
    """Tell whether some are positive and some negative, or one is 0."""
    low = high = False
    for number in values:
        low, high = low or number <= 0.0, high or number >= 0.0
    return low and high


def is_near_0(n: Any, mean: Any, squares: Any) -> Any:
    """Tell whether the mean of n values is near 0, beside their squares about the mean.

    The squares about 0 are then at most 16 times as large, so float64 keeps what float32 needs.
    """
    return n * (mean * mean) <= 15.0 * squares


def storable(pivot: Any, x: Data, chained: bool) -> Any:
    """Round a pivot to a number of x's type if x - pivot is computed in float32."""
    return np.float64(value(stored(np.float32(pivot), x))) if chained else pivot


def first_scale(values: Data, pivot: Any) -> Any:
    """Compute the mean square of the first values' deviations."""
    total = 0.0
    for i in range(len(values)):
        d = np.float64(value(values[i])) - pivot
        total += d * d
    return total / len(values)


def fits(scale: Any) -> Any:
    """Tell whether float32 can hold the squares of deviations with this mean square."""
    return LEAST <= scale <= MOST  # false for NaN


def keeps_digits(block_s: Any, block_q: Any, count: int) -> Any:
    """Tell whether the sums of a block in chains count; if not, it is added up in float64.

    No square may have left the range of float32.  The squares about the pivot may be at most 16
    times those about the block's own mean, because the rounding of the former hides the latter.
    """
    return np.isfinite(block_q) and 16.0 * (block_s * block_s) <= 15.0 * (count * block_q)


def flush(state: State, block_s: Any, block_q: Any, count: Any, x: Data, chained: bool) -> State:
    """Add the sums of a block of `count` values, then move the pivot to the mean so far.

    It moves to 0 instead if the mean is near 0.  It stays where the mean is not finite: there is a
    NaN or Inf, or a sum overflowed.
    """
    n, p, s, q = state
    n, s, q = n + count, s + block_s, q + block_q
    new_p = storable(p + s / n, x, chained)
    if not np.isfinite(new_p):
        return n, p, s, q
    new_s, new_q = moved(n, s, q, new_p - p)
    if sums_about_0(x) and is_near_0(n, new_p, new_q):
        new_p = 0.0
        new_s, new_q = moved(n, s, q, new_p - p)
    return n, new_p, new_s, new_q if not new_q < 0.0 else 0.0  # rounding alone makes it negative


def moved(n: Any, s: Any, q: Any, t: Any) -> tuple[Any, Any]:
    """Give the sums of n values about a pivot that has moved by t."""
    nt = n * t
    return s - nt, q - t * (2.0 * s - nt)


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


def merge_moments(
    first: int, last: int, count: Stat, mean: Stat, m2: Stat, parts: Stat, inner: int
) -> None:
    """Merge the segments of each column, then the columns of channels first to last."""
    for c in range(first, last):
        total = (0.0, 0.0, 0.0, 0.0)
        for left in range(c * inner, parts.shape[2], len(mean) * inner):
            for j in range(left, left + inner):
                column = (0.0, 0.0, 0.0, 0.0)
                for k in range(len(parts)):
                    part = parts[k, 0, j], parts[k, 1, j], parts[k, 2, j], parts[k, 3, j]
                    column = merge(column, part)
                total = merge(total, column)
        count[c] = total[0]
        mean[c] = total[1] + total[2] if total[0] != 0.0 else np.nan
        m2[c] = total[3]


# Planes: LANES sums of a channel run side by side


def piece(c: int, channels: int, inner: int, e: int, end: int) -> tuple[int, int]:
    """Find the values of channel `c` from `e` on: at most BLOCK, none from `end` on, one image.

    Returns where they begin in x, and their number.
    """
    start = e % inner
    at = (e // inner * channels + c) * inner + start
    return at, min(inner - start, end - e, BLOCK)


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


def add_value(s: Stat, q: Stat, j: int, number: Any, pivots: Stat) -> None:
    """Add a value to totals j."""
    d = np.float64(value(number)) - pivots[j]
    s[j] += d
    q[j] += d * d


def add_wide_squares(s: Stat, q: Stat, x: Data, at: int, count: int, pivots: Stat) -> None:
    """Add `count` values from x[at] on in float64, as `add_squares` says, to at least one total."""
    width, stop = len(s), at + count
    while at + width <= stop:
        for j in range(width):
            add_value(s, q, j, x[unsigned(at + j)], pivots)
        at += width
    skip = at + width - stop
    for j in range(skip, width):
        add_value(s, q, j, x[unsigned(at + j - skip)], pivots)


def add_squares(s: Stat, q: Stat, values: Data, pivots: Stat, chained: bool) -> None:
    """Add a piece to its totals: value i to total i % width, those that are left to the last."""
    if not chained:
        add_wide_squares(s, q, values, 0, len(values), pivots)
        return
    width = len(s)
    d_terms, p = np.empty(len(values), np.float32), pivots.astype(np.float32)
    for at in range(0, len(values), width):
        for j in range(min(width, len(values) - at)):  # all lanes have the same pivot
            d_terms[at + j] = value(values[at + j]) - p[j]
    add_chains(s, d_terms)
    add_chains(q, d_terms * d_terms)


def add_block(
    s: Stat,
    q: Stat,
    x: Data,
    c: int,
    channels: int,
    inner: int,
    e: int,
    end: int,
    pivot: Any,
    chained: bool,
) -> int:
    """Add the pieces of a block to the lanes; return the number of its values."""
    count, pivots = 0, np.full(LANES, pivot)
    while count < BLOCK and e + count < end:
        at, size = piece(c, channels, inner, e + count, end)
        if chained:
            add_squares(s, q, x[at : at + size], pivots, True)
        else:  # through `add_squares`, Numba takes twice as long in planes of 7 x 7
            add_wide_squares(s, q, x, at, size, pivots)
        count += size
    return count


def planes_moments(
    first: int, last: int, parts: Stat, x: Data, inner: int, segment_len: int, chained: bool
) -> None:
    """Take the moments of segments; task = segment * channels + channel."""
    channels = parts.shape[2]
    count = len(x) // channels
    s, q = np.zeros(LANES), np.zeros(LANES)
    for task in range(first, last):
        k, c = task // channels, task % channels
        e, end = k * segment_len, min((k + 1) * segment_len, count)
        at, size = piece(c, channels, inner, e, end)
        values = x[at : at + min(size, LANES)]
        state = 0.0, first_pivot(values, chained), 0.0, 0.0
        scale = first_scale(values, state[1])
        while e < end:
            short = chained and fits(scale)
            block = x, c, channels, inner, e, end, state[1]
            added = add_block(s, q, *block, short)
            block_s, block_q = fold(s), fold(q)
            if short and not keeps_digits(block_s, block_q, added):
                add_block(s, q, *block, False)
                block_s, block_q = fold(s), fold(q)
            state = flush(state, block_s, block_q, added, x, chained)
            scale = state[3] / state[0]
            e += added
        parts[k, 0, c], parts[k, 1, c], parts[k, 2, c], parts[k, 3, c] = close(state)


# Rows: every column of the virtual matrix is one sequential sum


def rows_moments(
    first: int, last: int, parts: Stat, x: Data, segment_rows: int, chained: bool
) -> None:
    """Take the moments of segments; task = segment * strips + strip."""
    width = parts.shape[2]
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        begin, end = k * segment_rows, min((k + 1) * segment_rows, -(-len(x) // width))
        middle = longer(len(x), width, j0, j1, end)
        strip_moments(parts[k, :, j0:middle], x[j0:], width, begin, end, chained)
        strip_moments(parts[k, :, middle:j1], x[middle:], width, begin, end - 1, chained)


def longer(size: int, width: int, j0: int, j1: int, end: int) -> int:
    """Return the first of columns j0 to j1 that ends before the last row, which may be short."""
    return min(max(size - (end - 1) * width, j0), j1)


def lines(x: Data, width: int, columns: int, row: int, stop: int) -> Data:
    """Give the first columns of some rows, one row after the other; a copy if there are others."""
    if columns == width:
        return x[row * width : stop * width]
    values = np.empty((stop - row) * columns, x.dtype)
    for k in range(stop - row):
        at = (row + k) * width
        values[k * columns : (k + 1) * columns] = x[at : at + columns]
    return values


def strip_moments(parts: Stat, x: Data, width: int, begin: int, end: int, chained: bool) -> None:
    """Take the moments of the first columns of x, whose rows from `begin` to `end` are whole."""
    columns = parts.shape[1]
    if columns == 0:
        return
    n, sums, squares = parts[0], parts[2], parts[3]
    s, q = np.zeros(columns), np.zeros(columns)
    pivots, scales = np.zeros(columns), np.zeros(columns)
    parts[:] = 0.0
    first = lines(x, width, columns, begin, min(begin + PIVOT_ROWS, end))
    for j in range(columns if begin < end else 0):
        values = first[j::columns]
        pivots[j] = first_pivot(values, chained)
        scales[j] = first_scale(values, pivots[j])
    for block in range(begin, end, ROW_BLOCK):
        stop = min(block + ROW_BLOCK, end)
        for row in range(block, stop, CHAIN):
            values = lines(x, width, columns, row, min(row + CHAIN, stop))
            add_squares(s, q, values, pivots, chained)
        for j in range(columns):
            if chained and not (fits(scales[j]) and keeps_digits(s[j], q[j], stop - block)):
                s[j] = q[j] = 0.0
                values = lines(x[j:], width, 1, block, stop)
                add_squares(s[j : j + 1], q[j : j + 1], values, pivots[j : j + 1], False)
            n[j], pivots[j], sums[j], squares[j] = flush(
                (n[j], pivots[j], sums[j], squares[j]), s[j], q[j], stop - block, x, chained
            )
            scales[j] = squares[j] / n[j]
        s[:] = 0.0
        q[:] = 0.0
    for j in range(columns):
        state = close((n[j], pivots[j], sums[j], squares[j]))
        n[j], parts[1, j], sums[j], squares[j] = state
