"""Moments of weighted values in plain loops, and the weights as all kernels read them.

`sums.py` says what this text is.  The walk is that of the plain moments.  A value with weight 0
takes no part: neither in the sums nor in the first pivot, whatever it is.  If all weights are 1,
every sum has the bits of the plain one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bncore.backends.numba.storage import value
from bncore.backends.numba.sums import (
    CHAIN,
    STRIP,
    add_block,
    add_squares,
    close,
    first_pivot,
    first_scale,
    fits,
    flush,
    fold,
    keeps_digits,
    lines,
    longer,
    piece,
)
from bncore.backends.partition import BLOCK, LANES, PIVOT_ROWS, ROW_BLOCK, Data, Stat


class Counted(NamedTuple):
    """The weights of x, flat.

    Planes have `channels` weights, one for all channels of x or one for each, at every place of an
    image.  In rows, `width` weights belong to a row of x, and `columns` says which one of them
    belongs to a column.
    """

    values: Data
    channels: int
    width: int
    columns: Data
    omit_nan: bool
    filled: bool
    fill: Any  # of the type that elementwise arithmetic is done in


def weight(given: Any, number: Any, omit_nan: bool) -> Any:
    """Give the weight of a number: 0 if it is NaN and NaN is omitted."""
    return 0.0 if omit_nan and number != number else np.float64(given)


def left_out(w: Any, g: Any, filled: bool) -> Any:
    """Tell whether backward skips a value, on which the loss does not depend."""
    return w == 0.0 and (filled or g == 0.0)


def piece_weights(weights: Counted, values: Data, c: int, inner: int, e: int) -> Stat:
    """Give the weights of a piece of channel `c` that begins with value `e`."""
    row = e // inner * weights.channels + min(c, weights.channels - 1)
    given = weights.values[row * inner + e % inner :]
    w = np.empty(len(values))
    for i in range(len(values)):
        w[i] = weight(given[i], value(values[i]), weights.omit_nan)
    return w


def line_weights(weights: Counted, values: Data, left: int, columns: int, row: int) -> Stat:
    """Give the weights of `lines` that begin in this row and in column `left`."""
    w = np.empty(len(values))
    for i in range(len(values)):
        at = (row + i // columns) * weights.width + weights.columns[left + i % columns]
        w[i] = weight(weights.values[at], value(values[i]), weights.omit_nan)
    return w


def start(values: Data, w: Stat, chained: bool) -> tuple[Any, Any]:
    """Give the first pivot, and the scale of the first block, by the values that count."""
    counted = values[w != 0.0]
    pivot = first_pivot(counted, chained)
    return pivot, first_scale(counted, pivot)


def add_weighted(
    n: Stat, ones: Stat, s: Stat, q: Stat, values: Data, w: Stat, pivots: Stat
) -> None:
    """Add a piece to its totals as `add_squares` does, and count the weights that are 1."""
    width = len(s)
    for at in range(0, len(values), width):
        skip = max(at + width - len(values), 0)
        for j in range(skip, width):
            i = at + j - skip
            d = np.float64(value(values[i])) - pivots[j] if w[i] != 0.0 else 0.0
            t = w[i] * d
            n[j] += w[i]
            ones[j] += 1.0 if w[i] == 1.0 else 0.0
            s[j] += t
            q[j] += t * d


# Planes


def first_counted(
    weights: Counted, x: Data, c: int, channels: int, inner: int, e: int, end: int
) -> int:
    """Find the first value of channel `c` from `e` on that counts; `end` if there is none."""
    while e < end:
        at, size = piece(c, channels, inner, e, end)
        w = piece_weights(weights, x[at : at + size], c, inner, e)
        for i in range(size):
            if w[i] != 0.0:
                return e + i
        e += size
    return end


def add_weighted_block(
    lanes: Stat,
    weights: Counted,
    x: Data,
    c: int,
    channels: int,
    inner: int,
    e: int,
    end: int,
    pivot: Any,
) -> int:
    """Add the pieces of a block to the lanes of each sum; return the number of its values."""
    count, pivots = 0, np.full(LANES, pivot)
    while count < BLOCK and e + count < end:
        at, size = piece(c, channels, inner, e + count, end)
        values = x[at : at + size]
        w = piece_weights(weights, values, c, inner, e + count)
        add_weighted(lanes[0], lanes[1], lanes[2], lanes[3], values, w, pivots)
        count += size
    return count


def planes_weighted_moments(
    first: int,
    last: int,
    parts: Stat,
    x: Data,
    weights: Counted,
    inner: int,
    segment_len: int,
    chained: bool,
) -> None:
    """Take the moments of segments, as `planes_moments` does.

    The pivot is that of the first values from the first on that counts.  A block in which nothing
    counts changes nothing.  Chains sum a block only if all its weights are 1.
    """
    channels = parts.shape[2]
    count = len(x) // channels
    lanes = np.zeros((4, LANES))
    for task in range(first, last):
        k, c = task // channels, task % channels
        e, end = k * segment_len, min((k + 1) * segment_len, count)
        state, scale = (0.0, 0.0, 0.0, 0.0), 0.0
        at = first_counted(weights, x, c, channels, inner, e, end)
        if at < end:
            begin, size = piece(c, channels, inner, at, end)
            values = x[begin : begin + min(size, LANES)]
            w = piece_weights(weights, values, c, inner, at)
            pivot, scale = start(values, w, chained)
            state = 0.0, pivot, 0.0, 0.0
        while e < end:
            block = x, c, channels, inner, e, end, state[1]
            added = add_weighted_block(lanes, weights, *block)
            n, ones, s, q = fold(lanes[0]), fold(lanes[1]), fold(lanes[2]), fold(lanes[3])
            if chained and ones == added and fits(scale):
                add_block(lanes[2], lanes[3], *block, True)
                chain_s, chain_q = fold(lanes[2]), fold(lanes[3])
                if keeps_digits(chain_s, chain_q, added):
                    s, q = chain_s, chain_q
            if n != 0.0:
                state = flush(state, s, q, n, x, chained)
                scale = state[3] / state[0]
            e += added
        parts[k, 0, c], parts[k, 1, c], parts[k, 2, c], parts[k, 3, c] = close(state)


# Rows


def rows_weighted_moments(
    first: int, last: int, parts: Stat, x: Data, weights: Counted, segment_rows: int, chained: bool
) -> None:
    """Take the moments of segments, as `rows_moments` does."""
    width = parts.shape[2]
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        begin, end = k * segment_rows, min((k + 1) * segment_rows, -(-len(x) // width))
        middle = longer(len(x), width, j0, j1, end)
        weighted_strip(parts[k, :, j0:middle], x, weights, width, j0, begin, end, chained)
        weighted_strip(parts[k, :, middle:j1], x, weights, width, middle, begin, end - 1, chained)


def start_columns(
    pivots: Stat,
    scales: Stat,
    x: Data,
    weights: Counted,
    width: int,
    left: int,
    begin: int,
    end: int,
    chained: bool,
) -> None:
    """Give each column its pivot, from the first row on in which it counts."""
    for j in range(len(pivots)):
        for row in range(begin, end):
            stop = min(row + PIVOT_ROWS, end)
            values = lines(x[left + j :], width, 1, row, stop)
            w = line_weights(weights, values, left + j, 1, row)
            if w[0] != 0.0:
                pivots[j], scales[j] = start(values, w, chained)
                break


def weighted_strip(
    parts: Stat,
    x: Data,
    weights: Counted,
    width: int,
    left: int,
    begin: int,
    end: int,
    chained: bool,
) -> None:
    """Take the moments of columns from `left` on, as `strip_moments` does."""
    columns = parts.shape[1]
    if columns == 0:
        return
    parts[:] = 0.0
    n, pivots, sums, squares = parts[0], parts[1], parts[2], parts[3]
    block, chains, scales = np.zeros((4, columns)), np.zeros((2, columns)), np.zeros(columns)
    start_columns(pivots, scales, x, weights, width, left, begin, end, chained)
    for top in range(begin, end, ROW_BLOCK):
        stop = min(top + ROW_BLOCK, end)
        for row in range(top, stop, CHAIN):
            values = lines(x[left:], width, columns, row, min(row + CHAIN, stop))
            w = line_weights(weights, values, left, columns, row)
            add_weighted(block[0], block[1], block[2], block[3], values, w, pivots)
            if chained:
                add_squares(chains[0], chains[1], values, pivots, True)
        for j in range(columns):
            block_n, ones, s, q = block[0, j], block[1, j], block[2, j], block[3, j]
            in_chains = chained and ones == stop - top and fits(scales[j])
            if in_chains and keeps_digits(chains[0, j], chains[1, j], stop - top):
                s, q = chains[0, j], chains[1, j]
            if block_n != 0.0:
                state = n[j], pivots[j], sums[j], squares[j]
                n[j], pivots[j], sums[j], squares[j] = flush(state, s, q, block_n, x, chained)
                scales[j] = squares[j] / n[j]
        block[:] = 0.0
        chains[:] = 0.0
    for j in range(columns):
        n[j], pivots[j], sums[j], squares[j] = close((n[j], pivots[j], sums[j], squares[j]))
