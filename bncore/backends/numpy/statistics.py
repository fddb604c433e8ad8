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
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from bncore.backends.numpy.order import Piece, add_rows, add_to_lanes, blocks, fold, virtual_rows
from bncore.backends.numpy.storage import computed, stored
from bncore.backends.numpy.weights import Weights
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
# weigh(pivots) adds a block of weighted values: n, s and q, and where all weights are 1.
Weigh: TypeAlias = Callable[[Stat], tuple[Stat, Stat, Stat, Data]]


# The running state: pivot, flush, rebase, merge


def storable(pivot: Stat, x: Data, chained: bool) -> Stat:
    """Round pivots to numbers of x's type if x - pivot is computed in float32."""
    if not chained:
        return pivot
    return computed(stored(pivot.astype(np.float32), x.dtype)).astype(np.float64)


def sums_about_0(x: Data) -> bool:
    """Tell whether data are of a type that is summed about 0 where that loses nothing."""
    return x.dtype == np.float32


def is_near_0(n: float | Stat, mean: Stat, squares: Stat) -> Data:
    """Tell which means of n values are near 0, beside the squares about them."""
    near: Data = n * (mean * mean) <= 15.0 * squares
    return near


def first_pivot(values: Stat, counted: Data, number: Data, x: Data, chained: bool) -> Stat:
    """Return the mean of the first values, (k, channels), as the pivot, or 0 if it is not finite.

    It is also 0 for data that are summed about 0, if the first values lie around it.  Differences
    from the first value keep the digits of a mean that is far from zero.
    """
    total = np.zeros_like(values[0])
    for i in range(1, len(values)):
        total += np.where(counted[i], values[i] - values[0], 0.0)
    pivot = storable(values[0] + total / number, x, chained)
    around = ((values <= 0.0) & counted).any(axis=0) & ((values >= 0.0) & counted).any(axis=0)
    return np.where(np.isfinite(pivot) & ~(around & sums_about_0(x)), pivot, 0.0)


def fits(scale: Stat) -> Data:
    """Tell whether float32 can hold the squares of deviations with this mean square."""
    return (scale >= LEAST) & (scale <= MOST)


def keeps_digits(s: Stat, q: Stat, count: int) -> Data:
    """Tell whether the pivot is near enough to the block's mean, and no sum is infinite."""
    return np.isfinite(q) & (16.0 * (s * s) <= 15.0 * (count * q))


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
    def start(cls, x: Data, chained: bool, values: Data, counted: Data | None = None) -> Running:
        """Start without values; the first ones, (k, channels), give the pivot and the scale.

        Only those that are `counted` do.  If there are any, the first one is.
        """
        first = values.astype(np.float64)
        counted = np.ones(first.shape, np.bool_) if counted is None else counted
        number = counted.sum(axis=0)
        pivot = first_pivot(first, counted, number, x, chained)
        total = np.zeros_like(pivot)
        for value, counts in zip(first, counted, strict=True):
            total += np.where(counts, (value - pivot) * (value - pivot), 0.0)
        n, s, q = (np.zeros_like(pivot) for _ in range(3))
        return cls(x, chained, n, pivot, s, q, total / number)

    def add_block(self, add: Add, count: int) -> None:
        """Add a block of `count` values; those that float32 cannot hold, in float64."""
        s, q = add(slice(None), self.p, self.chained)
        if self.chained:
            others = np.flatnonzero(~(fits(self.scale) & keeps_digits(s, q, count)))
            if len(others) > 0:
                s[others], q[others] = add(others, self.p[others], False)
        self.flush(s, q, count)
        self.scale = self.q / self.n

    def add_weighted_block(self, add: Add, weigh: Weigh, count: int) -> None:
        """Add a block of `count` values; those whose weights are all 1, as `add_block` does."""
        n, s, q, ones = weigh(self.p)
        if self.chained:
            which = np.flatnonzero(ones & fits(self.scale))
            if len(which) > 0:
                short_s, short_q = add(which, self.p[which], True)
                kept = keeps_digits(short_s, short_q, count)
                s[which[kept]], q[which[kept]] = short_s[kept], short_q[kept]
        self.flush(s, q, n)
        self.scale = np.where(self.n == 0.0, self.scale, self.q / self.n)

    def flush(self, s: Stat, q: Stat, count: int | Stat) -> None:
        """Add a block's sums about p, then move the pivot to the mean so far, or to 0 near it.

        The pivot does not change if nothing in the block counts.  Neither does it if the mean is
        not finite, because the channel has NaN or Inf or has overflowed.
        """
        self.s += s
        self.q += q
        self.n += count
        p = storable(self.p + self.s / self.n, self.x, self.chained)
        moved = np.isfinite(p) & (count != 0.0)
        s, q = self.about(p)
        if sums_about_0(self.x):
            p = np.where(moved & is_near_0(self.n, p, q), 0.0, p)
            s, q = self.about(p)
        q = np.where(q < 0.0, 0.0, q)  # rounding can make it negative
        self.q = np.where(moved, q, self.q)
        self.s = np.where(moved, s, self.s)
        self.p = np.where(moved, p, self.p)

    def about(self, p: Stat) -> tuple[Stat, Stat]:
        """Return both sums about another pivot."""
        t = p - self.p
        nt = self.n * t
        return self.s - nt, self.q - t * (2.0 * self.s - nt)

    def partial(self) -> Partial:
        """End a segment: return the mean as pivot + offset, and the squares about that mean."""
        offset = np.where(self.n == 0.0, 0.0, self.s / self.n)
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


def planes_moments(x: Data, geo: Planes, chained: bool, weights: Weights | None) -> Partial:
    """Compute the statistics of these channels; x is (outer, channels, inner), inner >= LANES."""
    total = planes_segment(x, geo, 0, chained, weights)
    for k in range(1, geo.n_segments):
        total = total.merge(planes_segment(x, geo, k, chained, weights))
    return total


def planes_segment(
    x: Data, geo: Planes, segment: int, chained: bool, weights: Weights | None
) -> Partial:
    """Compute the statistics of one segment of these channels."""
    if weights is None:
        (first, *_), _ = next(blocks(geo, segment))
        state = Running.start(x, chained, first.of(x, slice(None))[:, :LANES].T)
    else:
        state = Running.start(x, chained, *first_of_planes(x, geo, segment, weights))
    for block, count in blocks(geo, segment):

        def add(channels: Any, pivots: Stat, chained: bool) -> tuple[Stat, Stat]:
            s = q = np.zeros((len(pivots), LANES))
            for piece in block:  # noqa: B023 - it is called before the next block comes
                terms = deviations(piece.of(x, channels), pivots[:, np.newaxis], chained)
                s, q = add_to_lanes(s, terms[0]), add_to_lanes(q, terms[1])
            return fold(s), fold(q)

        if weights is None:
            state.add_block(add, count)
        else:
            state.add_weighted_block(add, partial(weighted_block, x, block, weights), count)
    return state.partial()


def weighted_block(
    x: Data, block: list[Piece], weights: Weights, pivots: Stat
) -> tuple[Stat, Stat, Stat, Data]:
    """Add a block of weighted values of all channels, and tell where all weights are 1."""
    n = s = q = np.zeros((len(pivots), LANES))
    ones = np.ones(len(pivots), np.bool_)
    for piece in block:
        values = piece.of(x, slice(None))
        w = weights.of_piece(piece, slice(None), values)
        t, squares = weighted_deviations(values, w, pivots[:, np.newaxis])
        n, s, q = add_to_lanes(n, w), add_to_lanes(s, t), add_to_lanes(q, squares)
        ones &= (w == 1.0).all(axis=1)
    return fold(n), fold(s), fold(q), ones


def first_of_planes(x: Data, geo: Planes, segment: int, weights: Weights) -> tuple[Data, Data]:
    """Return LANES values of every channel from the first on that counts, and which of them count.

    They are (LANES, channels), and end where the image or the segment ends.
    """
    found = np.zeros((2, LANES, x.shape[1]))
    missing, (at, end) = np.arange(x.shape[1]), geo.segment(segment)
    for piece in (piece for block, _ in blocks(geo, segment) for piece in block):
        numbers = piece.of(x, missing)
        counts = weights.of_piece(piece, missing, numbers) != 0.0
        stop = min(geo.inner, piece.start + end - at)
        at += piece.stop - piece.start
        here = counts.any(axis=1)
        places = piece.start + counts[here].argmax(axis=1)[:, np.newaxis] + np.arange(LANES)
        channels, inside = missing[here][:, np.newaxis], np.minimum(places, stop - 1)
        values = computed(x[piece.image, channels, inside])
        w = weights.at(piece.image, channels, inside, values)
        found[:, :, missing[here]] = values.T, ((w != 0.0) & (places < stop)).T
        missing = missing[~here]
        if len(missing) == 0:
            break
    return found[0], found[1] != 0.0


def weighted_deviations(values: Data, w: Stat, pivots: Stat) -> tuple[Stat, Stat]:
    """Return the terms of s and q in float64; a value with weight 0 has none, whatever it is."""
    d = np.where(w != 0.0, values - pivots, 0.0)
    t = w * d
    return t, t * d


def deviations(values: Data, pivots: Stat, chained: bool) -> tuple[Data, Data]:
    """Return the terms of s and q: float64 ones, or float32 ones for chains."""
    d = values - (pivots.astype(np.float32) if chained else pivots)
    return d, d * d


def rows_moments(
    x: Data, geo: Rows, columns: slice, rows: int, chained: bool, weights: Weights | None
) -> Partial:
    """Compute the statistics of these columns of the virtual matrix; x is flat."""
    total = rows_segment(x, geo, columns, 0, rows, chained, weights)
    for k in range(1, geo.n_segments):
        total = total.merge(rows_segment(x, geo, columns, k, rows, chained, weights))
    return total


def rows_segment(
    x: Data,
    geo: Rows,
    columns: slice,
    segment: int,
    rows: int,
    chained: bool,
    weights: Weights | None,
) -> Partial:
    """Compute the statistics of one segment of these columns, which have so many rows."""
    begin, end = geo.segment(segment)
    end = min(end, rows)
    if begin == end:  # there is only the short row, and they lack it
        return Partial(*np.zeros((4, columns.stop - columns.start)))
    if weights is None:
        first = virtual_rows(x, geo, columns, begin, min(begin + PIVOT_ROWS, end))
        state = Running.start(x, chained, first)
    else:
        found = first_of_rows(x, geo, columns, begin, end, weights)
        state = Running.start(x, chained, *found)
    for row in range(begin, end, ROW_BLOCK):
        stop = min(row + ROW_BLOCK, end)
        values = virtual_rows(x, geo, columns, row, stop)

        def add(which: Any, pivots: Stat, chained: bool) -> tuple[Stat, Stat]:
            terms = deviations(values[:, which], pivots, chained)  # noqa: B023 - as above
            zero = np.zeros_like(pivots)
            return add_rows(zero, terms[0]), add_rows(zero, terms[1])

        if weights is None:
            state.add_block(add, stop - row)
        else:
            lines = np.arange(row, stop)[:, np.newaxis]
            w = weights.in_rows(lines, columns, values)
            state.add_weighted_block(add, partial(weighted_rows, values, w), stop - row)
    return state.partial()


def weighted_rows(values: Data, w: Stat, pivots: Stat) -> tuple[Stat, Stat, Stat, Data]:
    """Add a block of rows of weighted values, and tell where all weights are 1."""
    zero = np.zeros_like(pivots)
    t, squares = weighted_deviations(values, w, pivots)
    ones = (w == 1.0).all(axis=0)
    return add_rows(zero, w), add_rows(zero, t), add_rows(zero, squares), ones


def first_of_rows(
    x: Data, geo: Rows, columns: slice, begin: int, end: int, weights: Weights
) -> tuple[Data, Data]:
    """Return PIVOT_ROWS values of every column from the first on that counts, and which count."""
    missing = np.arange(columns.start, columns.stop)
    found = np.zeros((2, PIVOT_ROWS, len(missing)))
    for row in range(begin, end, ROW_BLOCK):
        lines = np.arange(row, min(row + ROW_BLOCK, end))[:, np.newaxis]
        numbers = computed(x[lines * geo.width + missing])
        counts = weights.in_rows(lines, missing, numbers) != 0.0
        here = counts.any(axis=0)
        places = row + counts[:, here].argmax(axis=0) + np.arange(PIVOT_ROWS)[:, np.newaxis]
        inside = np.minimum(places, end - 1)
        values = computed(x[inside * geo.width + missing[here]])
        w = weights.in_rows(inside, missing[here], values)
        found[:, :, missing[here] - columns.start] = values, (w != 0.0) & (places < end)
        missing = missing[~here]
        if len(missing) == 0:
            break
    return found[0], found[1] != 0.0


def merge_columns(columns: Partial, geo: Planes | Rows, wide: int) -> Partial:
    """Merge the columns of each channel, or of `wide` neighbouring channels, from left to right."""
    repeat, inner = (1, wide) if isinstance(geo, Planes) else (geo.repeat, geo.inner * wide)
    cube = columns.reshape(repeat, geo.channels // wide, inner)
    total = cube[0, :, 0]
    for j in range(1, repeat * inner):
        total = total.merge(cube[j // inner, :, j % inner])
    return total
