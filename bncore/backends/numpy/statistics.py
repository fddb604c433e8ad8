"""Moments of the NumPy backend, in the one fixed order.

The statistics of a channel are (n, p, S, Q) with a running pivot p, where S is the sum and Q the
sum of squares of x - p.  After each block of values the pivot moves to the mean so far, as in
Welford's method (Technometrics 4, 1962, pp. 419-420), but once per block instead of once per
value.  Segments and virtual columns are merged as in Chan, Golub & LeVeque (The American
Statistician 37, 1983, pp. 242-247).

Callers suppress floating-point warnings, because NaN and Inf are ordinary values here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bncore.backends.numpy.order import add_rows, add_to_lanes, blocks, fold, virtual_rows
from bncore.backends.numpy.storage import computed, stored
from bncore.backends.partition import (
    LANES,
    PIVOT_ROWS,
    ROW_BLOCK,
    Data,
    Planes,
    Rows,
    Stat,
)

LEAST, MOST = 2.0**-80, 2.0**80  # the mean square of deviations whose squares float32 can hold

# add(channels, pivots, chained) adds a block of these channels: s and q of its x - pivot.
Add: TypeAlias = Callable[[Any, Stat, bool], tuple[Stat, Stat]]


# The running state: pivot, flush, rebase, merge


def storable(pivot: Stat, x: Data, chained: bool) -> Stat:
    """Round pivots to numbers of x's type if x - pivot is computed in float32."""
    if not chained:
        return pivot
    return computed(stored(pivot.astype(np.float32), x.dtype)).astype(np.float64)


def first_pivot(values: Stat, x: Data, chained: bool) -> Stat:
    """Return the mean of the first values, (k, channels), as the pivot, or 0 if it is not finite.

    Differences from the first value keep the digits of a mean that is far from zero.
    """
    total = np.zeros_like(values[0])
    for i in range(1, len(values)):
        total += values[i] - values[0]
    pivot = storable(values[0] + total / len(values), x, chained)
    return np.where(np.isfinite(pivot), pivot, 0.0)


@dataclass(slots=True)
class Running:
    """(n, p, S, Q) of every channel or column: S = sum of x - p, Q = sum of (x - p)**2."""

    x: Data
    chained: bool
    n: Stat
    p: Stat
    s: Stat
    q: Stat
    scale: Stat  # the mean square of x - p so far

    @classmethod
    def start(cls, x: Data, chained: bool, values: Data) -> Running:
        """Start without values; the first ones, (k, channels), give the pivot and the scale."""
        first = values.astype(np.float64)
        pivot = first_pivot(first, x, chained)
        total = np.zeros_like(pivot)
        for value in first:
            total += (value - pivot) * (value - pivot)
        n, s, q = (np.zeros_like(pivot) for _ in range(3))
        return cls(x, chained, n, pivot, s, q, total / len(first))

    def add_block(self, add: Add, count: int) -> None:
        """Add a block of `count` values; those that float32 cannot hold, in float64."""
        s, q = add(slice(None), self.p, self.chained)
        if self.chained:
            fits = (self.scale >= LEAST) & (self.scale <= MOST) & np.isfinite(q)
            near = 16.0 * (s * s) <= 15.0 * (count * q)  # the pivot to the block's mean
            others = np.flatnonzero(~(fits & near))
            if len(others) > 0:
                s[others], q[others] = add(others, self.p[others], False)
        self.flush(s, q, count)
        self.scale = self.q / self.n

    def flush(self, s: Stat, q: Stat, count: int) -> None:
        """Add a block's sums about p, then move the pivot to the mean so far.

        The pivot does not change if the mean is not finite, because the channel has NaN or Inf or
        has overflowed.
        """
        self.s += s
        self.q += q
        self.n += count
        p = storable(self.p + self.s / self.n, self.x, self.chained)
        moved = np.isfinite(p)
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


# Moments


def planes_moments(x: Data, geo: Planes, chained: bool) -> Partial:
    """Compute the statistics of these channels; x is (outer, channels, inner), inner >= LANES."""
    total = planes_segment(x, geo, 0, chained)
    for k in range(1, geo.n_segments):
        total = total.merge(planes_segment(x, geo, k, chained))
    return total


def planes_segment(x: Data, geo: Planes, segment: int, chained: bool) -> Partial:
    """Compute the statistics of one segment of these channels."""
    (first, *_), _ = next(blocks(geo, segment))
    state = Running.start(x, chained, first.of(x, slice(None))[:, :LANES].T)
    for block, count in blocks(geo, segment):

        def add(channels: Any, pivots: Stat, chained: bool) -> tuple[Stat, Stat]:
            s = q = np.zeros((len(pivots), LANES))
            for piece in block:  # noqa: B023 - it is called before the next block comes
                terms = deviations(piece.of(x, channels), pivots[:, np.newaxis], chained)
                s, q = add_to_lanes(s, terms[0]), add_to_lanes(q, terms[1])
            return fold(s), fold(q)

        state.add_block(add, count)
    return state.partial()


def deviations(values: Data, pivots: Stat, chained: bool) -> tuple[Data, Data]:
    """Return the terms of s and q: float64 ones, or float32 ones for chains."""
    d = values - (pivots.astype(np.float32) if chained else pivots)
    return d, d * d


def rows_moments(x: Data, geo: Rows, columns: slice, rows: int, chained: bool) -> Partial:
    """Compute the statistics of these columns of the virtual matrix; x is flat."""
    total = rows_segment(x, geo, columns, 0, rows, chained)
    for k in range(1, geo.n_segments):
        total = total.merge(rows_segment(x, geo, columns, k, rows, chained))
    return total


def rows_segment(
    x: Data, geo: Rows, columns: slice, segment: int, rows: int, chained: bool
) -> Partial:
    """Compute the statistics of one segment of these columns, which have so many rows."""
    begin, end = geo.segment(segment)
    end = min(end, rows)
    if begin == end:  # there is only the short row, and they lack it
        return Partial(*np.zeros((4, columns.stop - columns.start)))
    first = virtual_rows(x, geo, columns, begin, min(begin + PIVOT_ROWS, end))
    state = Running.start(x, chained, first)
    for row in range(begin, end, ROW_BLOCK):
        stop = min(row + ROW_BLOCK, end)
        values = virtual_rows(x, geo, columns, row, stop)

        def add(which: Any, pivots: Stat, chained: bool) -> tuple[Stat, Stat]:
            terms = deviations(values[:, which], pivots, chained)  # noqa: B023 - as above
            zero = np.zeros_like(pivots)
            return add_rows(zero, terms[0]), add_rows(zero, terms[1])

        state.add_block(add, stop - row)
    return state.partial()


def merge_columns(columns: Partial, geo: Rows) -> Partial:
    """Merge the columns of each channel from left to right."""
    cube = columns.reshape(geo.repeat, geo.channels, geo.inner)
    total = cube[0, :, 0]
    for j in range(1, geo.repeat * geo.inner):
        total = total.merge(cube[j // geo.inner, :, j % geo.inner])
    return total
