"""Sums of the NumPy backend: moments and gradient sums, in the one fixed order.

The statistics of a channel are (n, p, S, Q) with a running pivot p, where S is the sum and Q the
sum of squares of x - p.  After each block of values the pivot moves to the mean so far, as in
Welford's method (Technometrics 4, 1962, pp. 419-420), but once per block instead of once per
value.  Segments and virtual columns are merged as in Chan, Golub & LeVeque (The American
Statistician 37, 1983, pp. 242-247).

The order of additions never depends on NumPy's pairwise summation.  NumPy sums in pairs only along
the axis that is fastest in memory.  Every sum here runs along another axis, where ``np.add.reduce``
adds one term after the other.

Callers suppress floating-point warnings, because NaN and Inf are ordinary values here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bncore.backends.partition import (
    BLOCK,
    LANES,
    PIVOT_ROWS,
    ROW_BLOCK,
    Data,
    Planes,
    Rows,
    Stat,
)

TILE = 49152  # the largest number of values in a temporary array


# The running state: pivot, flush, rebase, merge


def first_pivot(values: Stat, counts: Stat) -> Stat:
    """Return the mean of the first values as the first pivot, or 0 if it is not finite.

    `values` is (k, channels); channel c has ``counts[c]`` values, and zeros after them.
    Differences from the first value keep the digits of a mean that is far from zero.
    """
    total = np.zeros_like(values[0])
    for i in range(1, len(values)):
        total += np.where(i < counts, values[i] - values[0], 0.0)
    pivot = values[0] + total / counts
    return np.where(np.isfinite(pivot), pivot, 0.0)


@dataclass(slots=True)
class Running:
    """(n, p, S, Q) of every channel or column: S = sum of x - p, Q = sum of (x - p)**2."""

    n: Stat
    p: Stat
    s: Stat
    q: Stat

    @classmethod
    def start(cls, pivot: Stat) -> Running:
        """Start without values, with this pivot."""
        return cls(np.zeros_like(pivot), pivot, np.zeros_like(pivot), np.zeros_like(pivot))

    def flush(self, s: Stat, q: Stat, counts: Stat) -> None:
        """Add a block's sums about p, then move the pivot to the mean so far.

        A channel whose count is 0 has no value in this block and does not change.  The pivot also
        does not change if the mean is not finite, because the channel has NaN or Inf or has
        overflowed.
        """
        self.s += s
        self.q += q
        self.n += counts
        p = self.p + self.s / self.n
        moved = np.isfinite(p) & (counts > 0)
        t = p - self.p
        nt = self.n * t
        q = self.q - t * (2.0 * self.s - nt)
        q = np.where(q < 0.0, 0.0, q)  # rounding can make it negative
        self.q = np.where(moved, q, self.q)
        self.s = np.where(moved, self.s - nt, self.s)
        self.p = np.where(moved, p, self.p)

    def partial(self) -> Partial:
        """End a segment: return the mean as pivot + offset, and the squares about that mean."""
        offset = self.s / self.n
        m2 = self.q - self.s * offset
        return Partial(self.n, self.p, offset, np.where(m2 < 0.0, 0.0, m2))


@dataclass(slots=True)
class Partial:
    """Statistics of a part: count, mean = pivot + offset, and m2 about that mean."""

    n: Stat
    pivot: Stat
    offset: Stat
    m2: Stat

    def __getitem__(self, index: tuple[int | slice, ...]) -> Partial:
        return Partial(self.n[index], self.pivot[index], self.offset[index], self.m2[index])

    def __setitem__(self, index: slice, part: Partial) -> None:
        self.n[index], self.pivot[index] = part.n, part.pivot
        self.offset[index], self.m2[index] = part.offset, part.m2

    def reshape(self, *shape: int) -> Partial:
        """Reshape every field to this shape."""
        return Partial(
            self.n.reshape(shape),
            self.pivot.reshape(shape),
            self.offset.reshape(shape),
            self.m2.reshape(shape),
        )

    def merge(self, b: Partial) -> Partial:
        """Merge `b` into it (Chan, Golub & LeVeque 1983); the mean stays a pivot and an offset."""
        n = self.n + b.n
        delta = (b.pivot - self.pivot) + (b.offset - self.offset)
        ratio = b.n / n
        offset = self.offset + delta * ratio
        m2 = (self.m2 + b.m2) + (delta * delta) * (self.n * ratio)
        a_only = b.n == 0.0
        b_only = (self.n == 0.0) & ~a_only
        return Partial(
            n,
            np.where(b_only, b.pivot, self.pivot),
            np.where(a_only, self.offset, np.where(b_only, b.offset, offset)),
            np.where(a_only, self.m2, np.where(b_only, b.m2, m2)),
        )


# Sums in a fixed order


def add_in_order(total: Stat, terms: Stat) -> Stat:
    """Compute total + terms[0] + terms[1] + ..., adding one term after the other.

    `total` has at least one axis, so that the axis of the sum is never the fastest in memory.
    """
    column = np.empty((1 + len(terms), *total.shape))
    column[0] = total
    column[1:] = terms
    result: Stat = np.add.reduce(column, axis=0)
    return result


def add_to_lanes(lanes: Stat, terms: Stat) -> Stat:
    """Add a piece of values, (channels, length), to the lanes, (channels, LANES).

    Value i goes to lane i % LANES; the values that are left at the end go to the last lanes.
    """
    rest = terms.shape[1] % LANES
    whole = terms.shape[1] - rest
    rounds = terms[:, :whole].reshape(len(terms), -1, LANES)
    lanes = add_in_order(lanes, rounds.swapaxes(0, 1))
    if rest:
        lanes[:, LANES - rest :] += terms[:, whole:]
    return lanes


def fold(lanes: Stat) -> Stat:
    """Add the lanes of every channel: the second half to the first, until one lane is left."""
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


# A channel in pieces


class Piece(NamedTuple):
    """A run of values of one image, and the number of values to flush after it."""

    image: int
    start: int  # the position in the image
    stop: int
    flush: int  # if a block ends after this piece, the number of its values; otherwise 0


def pieces(geo: Planes, segment: int) -> Iterator[Piece]:
    """Yield the pieces of one segment of a channel: at most BLOCK values within one image.

    Several pieces make a block, which ends when it has BLOCK values or more, or with the segment.
    """
    at, end = geo.segment(segment)
    pending = 0
    while at < end:
        image, start = divmod(at, geo.inner)
        length = min(geo.inner - start, end - at, BLOCK)
        at += length
        pending += length
        due = pending if pending >= BLOCK or at == end else 0
        yield Piece(image, start, start + length, due)
        if due:
            pending = 0


# Moments


def planes_moments(x: Data, geo: Planes) -> Partial:
    """Compute the statistics of these channels; x is (outer, channels, inner), inner >= LANES."""
    total = planes_segment(x, geo, 0)
    for k in range(1, geo.n_segments):
        total = total.merge(planes_segment(x, geo, k))
    return total


def planes_segment(x: Data, geo: Planes, segment: int) -> Partial:
    """Compute the statistics of one segment of these channels."""
    channels = x.shape[1]
    run = next(pieces(geo, segment))
    first = x[run.image, :, run.start : min(run.stop, run.start + LANES)].astype(np.float64)
    state = Running.start(first_pivot(first.T, np.full(channels, float(first.shape[1]))))
    s = q = np.zeros((channels, LANES))
    for run in pieces(geo, segment):
        d = x[run.image, :, run.start : run.stop] - state.p[:, np.newaxis]
        s = add_to_lanes(s, d)
        q = add_to_lanes(q, d * d)
        if run.flush:
            state.flush(fold(s), fold(q), np.full(channels, float(run.flush)))
            s = q = np.zeros((channels, LANES))
    return state.partial()


def rows_moments(x: Data, geo: Rows, columns: slice) -> Partial:
    """Compute the statistics of these columns of the virtual matrix; x is flat."""
    total = rows_segment(x, geo, columns, 0)
    for k in range(1, geo.n_segments):
        total = total.merge(rows_segment(x, geo, columns, k))
    return total


def rows_segment(x: Data, geo: Rows, columns: slice, segment: int) -> Partial:
    """Compute the statistics of one segment of these columns."""
    begin, end = geo.segment(segment)
    values, counts = virtual_rows(x, geo, columns, begin, min(begin + PIVOT_ROWS, end))
    state = Running.start(first_pivot(values, counts))
    for row in range(begin, end, ROW_BLOCK):
        values, counts = virtual_rows(x, geo, columns, row, min(row + ROW_BLOCK, end))
        d = present(values - state.p, counts)
        zero = np.zeros_like(state.p)
        state.flush(add_in_order(zero, d), add_in_order(zero, d * d), counts)
    return state.partial()


def virtual_rows(x: Data, geo: Rows, columns: slice, begin: int, end: int) -> tuple[Stat, Stat]:
    """Copy rows begin to end of the virtual matrix, and count the values of each column.

    The short last row is filled up with zeros.
    """
    values = np.zeros((end - begin, columns.stop - columns.start))
    counts = np.full(values.shape[1], float(end - begin))
    full = min(end, geo.full)
    matrix = x[: geo.full * geo.width].reshape(geo.full, geo.width)
    values[: full - begin] = matrix[begin:full, columns]
    if end > geo.full:
        last = x[geo.full * geo.width :][columns]
        values[-1, : len(last)] = last
        counts[len(last) :] -= 1.0
    return values, counts


def present(terms: Stat, counts: Stat) -> Stat:
    """Set the last row's term to 0 for every column without a value there, so it adds nothing."""
    terms[-1, counts < len(terms)] = 0.0
    return terms


def merge_columns(columns: Partial, geo: Rows) -> Partial:
    """Merge the columns of each channel from left to right."""
    cube = columns.reshape(geo.repeat, geo.channels, geo.inner)
    total = cube[0, :, 0]
    for j in range(1, geo.repeat * geo.inner):
        total = total.merge(cube[j // geo.inner, :, j % geo.inner])
    return total


# Gradient sums: the same traversal with two other sums and no moving pivot


def planes_grad_sums(dy: Data, x: Data, mean: Stat, geo: Planes) -> tuple[Stat, Stat]:
    """Sum dy and dy * (x - mean) of these channels."""
    channels = x.shape[1]
    a_total = b_total = np.zeros(channels)
    for k in range(geo.n_segments):
        a_segment, b_segment = np.zeros(channels), np.zeros(channels)
        a = b = np.zeros((channels, LANES))
        for run in pieces(geo, k):
            g = dy[run.image, :, run.start : run.stop].astype(np.float64)
            d = x[run.image, :, run.start : run.stop] - mean[:, np.newaxis]
            a = add_to_lanes(a, g)
            b = add_to_lanes(b, g * d)
            if run.flush:
                a_segment += fold(a)
                b_segment += fold(b)
                a = b = np.zeros((channels, LANES))
        a_total = a_total + a_segment
        b_total = b_total + b_segment
    return a_total, b_total


def rows_grad_sums(dy: Data, x: Data, mean: Stat, geo: Rows, columns: slice) -> tuple[Stat, Stat]:
    """Sum dy and dy * (x - mean) of these columns of the virtual matrix; `mean` is per column."""
    zero = np.zeros_like(mean)
    a_total = b_total = zero
    for k in range(geo.n_segments):
        a_segment, b_segment = zero.copy(), zero.copy()
        begin, end = geo.segment(k)
        for row in range(begin, end, ROW_BLOCK):
            stop = min(row + ROW_BLOCK, end)
            g, counts = virtual_rows(dy, geo, columns, row, stop)
            d = virtual_rows(x, geo, columns, row, stop)[0] - mean
            a_segment += add_in_order(zero, g)
            b_segment += add_in_order(zero, present(g * d, counts))
        a_total = a_total + a_segment
        b_total = b_total + b_segment
    return a_total, b_total


def add_columns(columns: Stat, geo: Rows) -> Stat:
    """Add the columns of each channel from left to right."""
    cube = columns.reshape(geo.repeat, geo.channels, geo.inner)
    total = cube[0, :, 0]
    for j in range(1, geo.repeat * geo.inner):
        total = total + cube[j // geo.inner, :, j % geo.inner]
    return total


# Pieces of work, so that no temporary array grows with x


def channel_groups(geo: Planes) -> Iterator[slice]:
    """Divide the channels into groups, so that one piece of a group fits in a tile."""
    step = max(1, TILE // min(geo.inner, BLOCK))
    for begin in range(0, geo.channels, step):
        yield slice(begin, min(begin + step, geo.channels))


def column_strips(geo: Rows) -> Iterator[slice]:
    """Divide the virtual columns into strips, so that a block of rows of a strip fits in a tile.

    The strips have nearly equal widths, so that no strip with many rows is one column wide.
    """
    parts = -(-geo.width * min(geo.rows, ROW_BLOCK) // TILE)
    edges = [geo.width * i // parts for i in range(parts + 1)]
    for begin, end in pairwise(edges):
        yield slice(begin, end)
