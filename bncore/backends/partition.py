"""The constants and the order of additions that the Python backends share.

Every backend adds in the same order, so that all of them give the same bits.  The order depends
only on the shape ``(outer, channels, inner)``, and this module defines it; ``docs/numerics.md``
derives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bncore.arguments.weights import Weights as GivenWeights
from bncore.backends.contract import Fusion, Weights

Data: TypeAlias = NDArray[Any]  # x, y, dy, dx: as `contract.Data`
Stat: TypeAlias = NDArray[np.float64]  # one value per channel, or per column

LANES = 16  # planes: the number of partial sums of a channel that run side by side
BLOCK = 4096  # planes: the number of values that are summed before the pivot moves
ROW_BLOCK = 256  # rows: the number of rows that are summed before the pivot moves
PIVOT_ROWS = 8  # the number of rows from which a column gets its first pivot
SEGMENT = 32768  # a segment of a channel has at least this many values
MAX_SEGMENTS = 64  # a channel or column has at most this many segments
LINE_TILE = 4  # lines: the number of samples whose terms of a column are added in a tree
LINE_SEGMENT = 16  # lines: a segment of the samples has at least so many, a multiple of LINE_TILE
LINE_SEGMENTS = 64  # lines: the samples have at most this many segments
FOLD_WIDTH = 256  # rows up to this width are folded: several of them side by side make one row


@dataclass(frozen=True, slots=True)
class Planes:
    """The order for channels of `outer` runs of `inner` contiguous values, if `inner` is long.

    Each run fills the lanes.  The values of a channel are numbered from 0 to `count` - 1 through
    all its images.
    """

    outer: int
    channels: int
    inner: int
    segment_len: int  # the number of values of a channel per segment, a multiple of BLOCK

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.outer * self.inner

    @property
    def n_segments(self) -> int:
        """The number of segments of a channel; none of them is empty."""
        return _ceil_div(self.count, self.segment_len)

    def segment(self, k: int) -> tuple[int, int]:
        """Return the half-open range of values in segment `k`."""
        return k * self.segment_len, min(self.count, (k + 1) * self.segment_len)


@dataclass(frozen=True, slots=True)
class Rows:
    """The order for short runs: memory is read as a matrix of `width` virtual columns.

    A virtual row holds `repeat` outer rows side by side.  Column j belongs to channel
    ``(j // inner) % channels``.  The last row may be short: it then has `short` columns.
    """

    outer: int
    channels: int
    inner: int
    repeat: int
    segment_rows: int  # the number of rows per segment, a multiple of ROW_BLOCK

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.outer * self.inner

    @property
    def width(self) -> int:
        """The number of columns of the virtual matrix."""
        return self.repeat * self.channels * self.inner

    @property
    def full(self) -> int:
        """The number of rows that have all columns."""
        return self.outer // self.repeat

    @property
    def short(self) -> int:
        """The number of columns of the short last row; 0 if there is no short row."""
        return (self.outer % self.repeat) * self.channels * self.inner

    @property
    def rows(self) -> int:
        """The number of rows, including the short one."""
        return self.full + (self.short > 0)

    @property
    def n_segments(self) -> int:
        """The number of segments of a column.

        A segment that has only the short row is empty for the columns which that row lacks.
        """
        return _ceil_div(self.rows, self.segment_rows)

    def segment(self, k: int) -> tuple[int, int]:
        """Return the half-open range of rows in segment `k`."""
        return k * self.segment_rows, min(self.rows, (k + 1) * self.segment_rows)


def geometry(outer: int, channels: int, inner: int) -> Planes | Rows:
    """Choose the order of additions for a shape with at least one value."""
    if channels == 1:  # the values of a single channel are one run
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


def in_one_block(x: Data, width: int) -> bool:
    """Tell whether groups of x, (samples, outer, channels, inner), are lines summed about 0.

    These have LANES to BLOCK values, which are not added in chains.
    """
    return x.shape[1] == x.shape[3] == 1 and LANES <= width <= BLOCK and not in_chains(x)


def line_segment(samples: int) -> int:
    """Return the number of samples of a segment of a sum over samples."""
    return max(_ceil_div(samples, LINE_SEGMENTS * LINE_TILE) * LINE_TILE, LINE_SEGMENT)


def tile_slices(
    outer: int, channels: int, inner: int, most: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a 3-D array into contiguous tiles of at most `most` values, in memory order."""
    i_step = max(1, min(inner, most))
    c_step = max(1, min(channels, most // i_step))
    o_step = max(1, most // (i_step * c_step))
    for o in range(0, outer, o_step):
        for c in range(0, channels, c_step):
            for i in range(0, inner, i_step):
                yield slice(o, o + o_step), slice(c, c + c_step), slice(i, i + i_step)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def computed_in(data: Data) -> type[np.floating[Any]]:
    """Return the type of elementwise arithmetic on these data."""
    return np.float64 if data.dtype == np.float64 else np.float32


def in_chains(data: Data, float64_sums: bool = False) -> bool:
    """Tell whether sums over these data are made in short chains of float32 terms."""
    return data.itemsize == 2 and not float64_sums


# In backward the two Python backends handle a fusion by masking dy first.


def gradient_fill(weights: Weights | None) -> Weights | None:
    """Return the weights for a gradient that is 0 where y is filled; None if y is not filled."""
    if weights is None or weights.fill is None:
        return None
    return GivenWeights(weights.values, weights.omit_nan, 0.0, weights.count)


def unfused_gradient(
    dx: Data,
    dy: Data,
    x: Data,
    fusion: Fusion | None,
    activate: Callable[[Data, Data, Fusion], None],
    filled: bool = False,
) -> Data:
    """Return the gradient with respect to z, which ``activate(out, dy, fusion)`` writes to `out`.

    `out` is dresidual if it is wanted.  Otherwise it is dx, which is written last, or a temporary
    array if dx is x.  If y is `filled`, `activate` writes 0 where the weight is 0; without an
    activation only dresidual needs that.
    """
    if fusion is None:
        return dy
    target = fusion.dresidual
    if fusion.activation is None and not (filled and target is not None):
        if target is not None:
            target[...] = dy
        return dy
    if target is None:
        target = np.empty_like(dy) if np.may_share_memory(dx, x) else dx
    activate(target, dy, fusion)
    return target


def group_runs(
    shape: tuple[int, int, int, int], mean: Stat, var: Stat, weight: Stat | None, bias: Stat | None
) -> tuple[tuple[int, int, int], tuple[Stat, Stat, Stat | None, Stat | None]]:
    """Return the shape of all samples as one, and a statistic and parameter for each channel.

    Samples (samples, 1, channels, inner) become channels of one sample; without parameters, each
    group becomes one.
    """
    samples, _, channels, inner = shape
    if weight is None and bias is None:
        return (1, len(mean), samples * channels * inner // len(mean)), (mean, var, None, None)
    wide = samples * channels // len(mean)
    gamma, beta = (None if v is None else np.tile(v, samples) for v in (weight, bias))
    return (1, samples * channels, inner), (mean.repeat(wide), var.repeat(wide), gamma, beta)
