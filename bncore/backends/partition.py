"""What the Python backends share: constants and geometry.

Every backend adds in the same order, so that all of them give the same bits.  That order is a
function of the shape ``(outer, channels, inner)`` alone and is fixed here; ``docs/numerics.md``
derives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bncore.backends.contract import Fusion

Data: TypeAlias = NDArray[np.floating[Any]]  # x, y, dy, dx: float32 or float64
Stat: TypeAlias = NDArray[np.float64]  # one value per channel, or per column

LANES = 16  # partial sums of a channel that run side by side (planes)
BLOCK = 4096  # values that are summed before the pivot moves (planes)
ROW_BLOCK = 256  # the same, in rows of the virtual matrix (rows)
PIVOT_ROWS = 8  # rows that give a column its first pivot
SEGMENT = 32768  # fewest values of a channel that are worth a segment of their own
MAX_SEGMENTS = 64  # most segments of a channel or column
FOLD_WIDTH = 256  # widest row that is folded: several rows side by side make one


@dataclass(frozen=True, slots=True)
class Planes:
    """A channel is `outer` runs of `inner` contiguous values, and `inner` fills the lanes.

    The values of a channel count from 0 to `count` - 1 through all its images.
    """

    outer: int
    channels: int
    inner: int
    segment_len: int  # values of a channel per segment, a multiple of BLOCK

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.outer * self.inner

    @property
    def n_segments(self) -> int:
        """Segments of a channel; none of them is empty."""
        return _ceil_div(self.count, self.segment_len)

    def segment(self, k: int) -> tuple[int, int]:
        """Give the half-open range of values that segment `k` covers."""
        return k * self.segment_len, min(self.count, (k + 1) * self.segment_len)


@dataclass(frozen=True, slots=True)
class Rows:
    """Short runs: memory is read as a matrix of `width` virtual columns.

    A virtual row holds `repeat` outer rows side by side.  Column j belongs to channel
    ``(j // inner) % channels``.  The last row may be short: it then has `short` columns.
    """

    outer: int
    channels: int
    inner: int
    repeat: int
    segment_rows: int  # rows per segment, a multiple of ROW_BLOCK

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.outer * self.inner

    @property
    def width(self) -> int:
        """Columns of the virtual matrix."""
        return self.repeat * self.channels * self.inner

    @property
    def full(self) -> int:
        """Rows that have all columns."""
        return self.outer // self.repeat

    @property
    def short(self) -> int:
        """Columns of the short last row; 0 where there is no short row."""
        return (self.outer % self.repeat) * self.channels * self.inner

    @property
    def rows(self) -> int:
        """Rows, the short one included."""
        return self.full + (self.short > 0)

    @property
    def n_segments(self) -> int:
        """Segments of a column; one that has the short row alone is empty for the rest."""
        return _ceil_div(self.rows, self.segment_rows)

    def segment(self, k: int) -> tuple[int, int]:
        """Give the half-open range of rows that segment `k` covers."""
        return k * self.segment_rows, min(self.rows, (k + 1) * self.segment_rows)


def geometry(outer: int, channels: int, inner: int) -> Planes | Rows:
    """Choose the order of additions for a shape with at least one value."""
    if channels == 1:  # one channel is one run, however it was cut
        outer, inner = 1, outer * inner
    if inner >= LANES:
        return _planes(outer, channels, inner)
    return _rows(outer, channels, inner)


def _planes(outer: int, channels: int, inner: int) -> Planes:
    count = outer * inner
    parts = min(max(count // SEGMENT, 1), MAX_SEGMENTS)
    return Planes(outer, channels, inner, _ceil_div(_ceil_div(count, parts), BLOCK) * BLOCK)


def _rows(outer: int, channels: int, inner: int) -> Rows:
    base = channels * inner
    repeat = 1
    if base <= FOLD_WIDTH:  # a whole number of lanes, and at least four times LANES columns
        repeat = LANES // gcd(LANES, base)
        while repeat * base < 4 * LANES:
            repeat *= 2
    if outer < PIVOT_ROWS * repeat:
        repeat = 1
    blocks = _ceil_div(_ceil_div(outer, repeat), ROW_BLOCK)
    parts = min(blocks, MAX_SEGMENTS)
    return Rows(outer, channels, inner, repeat, _ceil_div(blocks, parts) * ROW_BLOCK)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Piece(NamedTuple):
    """A run of values of one image, and what is due after it."""

    image: int
    start: int  # position in the image
    stop: int
    flush: int  # values that wait for a flush when one is due after this piece, else 0


def pieces(geo: Planes, segment: int) -> Iterator[Piece]:
    """Walk one segment of a channel: pieces of at most BLOCK values within one image.

    Several pieces make a block: it ends when it holds BLOCK values or more, or with the segment.
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


# What the two Python backends make of a fusion in backward: they mask dy, then do as ever.


def unfused_gradient(
    dx: Data,
    dy: Data,
    x: Data,
    fusion: Fusion | None,
    activate: Callable[[Data, Data, Fusion], None],
) -> Data:
    """Return the gradient by z, which ``activate(out, dy, fusion)`` writes to `out`.

    That is dresidual where it is wanted; else dx, which is written last; or, where dx is x, a
    temporary array.
    """
    if fusion is None or x.size == 0:
        return dy
    target = fusion.dresidual
    if fusion.activation is None:
        if target is not None:
            target[...] = dy
        return dy
    if target is None:
        target = np.empty_like(dy) if np.may_share_memory(dx, x) else dx
    activate(target, dy, fusion)
    return target
