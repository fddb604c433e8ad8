"""The one fixed order of additions in NumPy: pieces, lanes, chains, columns.

The order of additions never depends on NumPy's pairwise summation.  NumPy sums in pairs only along
the axis that is fastest in memory.  Every sum here runs along another axis, where ``np.add.reduce``
adds one term after the other.

float64 terms are added one after the other.  float32 terms are added in short chains: each chain is
a tree of float32 additions, and the sums of the chains are float64 terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bncore.backends.numpy.storage import computed
from bncore.backends.partition import BLOCK, LANES, ROW_BLOCK, Data, Planes, Rows, Stat, computed_in

TILE = 49152  # the largest number of values in a temporary array

# Sums


def add_rows(total: Stat, terms: Data) -> Stat:
    """Compute total + terms[0] + terms[1] + ..., float32 terms in chains."""
    return add_in_order(total, chains(terms) if terms.dtype == np.float32 else terms)


def add_to_lanes(lanes: Stat, terms: Data) -> Stat:
    """Add a piece of values, (channels, length), to the lanes, (channels, LANES).

    Value i goes to lane i % LANES; the values that are left at the end go to the last lanes.
    """
    rest = terms.shape[1] % LANES
    whole = terms.shape[1] - rest
    rows = terms[:, :whole].reshape(len(terms), -1, LANES).swapaxes(0, 1)
    tail = np.zeros((len(terms), LANES), terms.dtype)
    tail[:, LANES - rest :] = terms[:, whole:]
    if terms.dtype == np.float32:
        return add_in_order(lanes, chains(rows, tail))
    lanes = add_in_order(lanes, rows)
    return lanes + tail if rest else lanes


def add_in_order(total: Stat, terms: Data) -> Stat:
    """Compute total + terms[0] + terms[1] + ..., adding one term after the other."""
    column = np.empty((1 + len(terms), *total.shape))
    column[0] = total
    column[1:] = terms
    if total.size == 1:  # the only axis in memory is that of the sum
        result: Stat = np.add.accumulate(column)[-1]
    else:
        result = np.add.reduce(column, axis=0)
    return result


def chains(rows: Data, tail: Data | None = None) -> Stat:
    """Add rows in chains of 8, one of 4, and one of what is left, where the tail is last.

    Terms which the last chain lacks are +0.
    """
    at = len(rows) // 8 * 8
    sums = [tree(rows[:at].reshape(-1, 8, *rows.shape[1:]))]
    if len(rows) - at >= 4:
        sums.append(tree(rows[np.newaxis, at : at + 4]))
        at += 4
    if at < len(rows) or tail is not None:
        last = np.zeros((1, 4, *rows.shape[1:]), rows.dtype)
        last[0, : len(rows) - at] = rows[at:]
        if tail is not None:
            last[0, 3] = tail
        sums.append(tree(last))
    return np.concatenate(sums).astype(np.float64)


def tree(terms: Data) -> Data:
    """Add the terms of each chain, (chains, 8 or 4, ...), in neighbouring pairs."""
    while terms.shape[1] > 1:
        terms = terms[:, 0::2] + terms[:, 1::2]
    return terms[:, 0]


def fold(lanes: Stat) -> Stat:
    """Add the lanes of every channel: the second half to the first, until one lane is left."""
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


# Planes: a channel in pieces


class Piece(NamedTuple):
    """A run of values of one image."""

    image: int
    start: int  # the position in the image
    stop: int

    def of(self, x: Data, channels: Any) -> Data:
        """Return the values of these channels, (channels, length)."""
        return computed(x[self.image, channels, self.start : self.stop])


def blocks(geo: Planes, segment: int) -> Iterator[tuple[list[Piece], int]]:
    """Yield the blocks of one segment of a channel, each with the number of its values.

    A piece is at most BLOCK values within one image.  A block is as many pieces as make BLOCK
    values or more, or what is left of the segment.
    """
    at, end = geo.segment(segment)
    block, count = list[Piece](), 0
    while at < end:
        image, start = divmod(at, geo.inner)
        length = min(geo.inner - start, end - at, BLOCK)
        block.append(Piece(image, start, start + length))
        at += length
        count += length
        if count >= BLOCK or at == end:
            yield block, count
            block, count = [], 0


def channel_groups(geo: Planes) -> Iterator[slice]:
    """Divide the channels into groups, so that one piece of a group fits in a tile."""
    step = max(1, TILE // min(geo.inner, BLOCK))
    for begin in range(0, geo.channels, step):
        yield slice(begin, min(begin + step, geo.channels))


# Rows: the columns of the virtual matrix in strips


def column_strips(geo: Rows) -> Iterator[tuple[slice, int]]:
    """Divide the virtual columns into strips, each with the number of its rows.

    A block of rows of a strip fits in a tile.  The columns that a short last row reaches, and the
    others, are divided for themselves.
    """
    for left, right, rows in ((0, geo.short, geo.full + 1), (geo.short, geo.width, geo.full)):
        parts = -(-(right - left) * min(rows, ROW_BLOCK) // TILE)  # 0 if there are no columns
        edges = [left + (right - left) * i // max(parts, 1) for i in range(parts + 1)]
        for begin, end in pairwise(edges):
            yield slice(begin, end), rows


def virtual_rows(x: Data, geo: Rows, columns: slice, begin: int, end: int) -> Data:
    """Copy rows begin to end of these columns of the virtual matrix; x is flat."""
    values = np.empty((end - begin, columns.stop - columns.start), computed_in(x))
    full = min(end, geo.full)
    matrix = x[: geo.full * geo.width].reshape(geo.full, geo.width)
    values[: full - begin] = computed(matrix[begin:full, columns])
    if end > geo.full:
        values[-1] = computed(x[geo.full * geo.width :][columns])
    return values
