"""View an array with a batch axis as problems over groups of channels and over channels.

A sample lies in memory as (outer, channels, inner); outer is 1 if channels come first.  Its groups
are the same memory as (outer, groups, channels / groups * inner).  If outer is 1, several samples
together are one such problem, with samples * groups or samples * channels as its channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array
from bncore.arguments.parameters import Stat
from bncore.arguments.problem import Problem
from bncore.arguments.weights import ALL_ONE, GivenWeights, Weights

Array: TypeAlias = npt.NDArray[np.floating[Any]]

CHUNK_BYTES = 1 << 20  # about the second-level cache of a core


class SampleGroups:
    """x with a batch axis, as problems over groups and over channels of the same memory.

    Attributes
    ----------
    problem : Problem
        The problem of x, in which samples are slowest in memory.
    samples, groups, channels, count : the number of each, and of values per group
    wide : the number of channels of a group
    shape : that of x as kernels take it, (samples, outer, channels, inner)
    weights : what counts
    """

    weights: GivenWeights = ALL_ONE

    def __init__(self, x: object, axis: object, groups: object) -> None:
        source = array = data_array("x", x)
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        channel_axis = scalars.one_axis(axis, array.ndim)
        if channel_axis == 0:
            raise ValueError("axis: expected an axis other than 0, the batch axis, got 0")
        order = layout.memory_order(array)
        faster = tuple(i for i in order if i != 0)
        if array.shape[0] > 1 and order[0] != 0:
            # The samples are interleaved in memory; one copy separates them.
            order = (0, *faster)
            inverse = sorted(range(array.ndim), key=order.__getitem__)
            array = layout.block(array, order).transpose(inverse)
        at = faster.index(channel_axis)
        self.problem = Problem(array, channel_axis, source)
        self.samples, self.channels = array.shape[0], array.shape[channel_axis]
        self.groups = self.channels if groups is None else divisor(groups, self.channels)
        self.wide = self.channels // max(self.groups, 1)
        sample = layout.canonical([array.shape[i] for i in faster], at, at + 1)
        self._outer, self._inner = sample.outer, sample.inner
        self.count = sample.values_per_channel * self.wide
        self.shape = self.samples, sample.outer, self.channels, sample.inner

    def weigh(self, where: object, weights: object, nan_policy: object, fill: object) -> None:
        """Check the arguments that say what counts."""
        given = self.problem.weights(where, weights, nan_policy, fill)
        self.weights = given.where_needed(self.problem.x)

    def __iter__(self) -> Iterator[SampleRange]:
        """Yield a range of samples for each kernel call; its data fit in second-level cache.

        With weights there is one sample in each, so that its channels can share their weights.
        """
        each = 1
        if self._outer == 1 and not self.weights.weighs:
            size = self.problem.x.nbytes // self.samples
            each = self.samples if self.wide == 1 else max(CHUNK_BYTES // size, 1)
        for start in range(0, self.samples, each):
            yield SampleRange(self, start, min(start + each, self.samples))

    def require_batch(self) -> None:
        """Refuse groups of one value, whose variance is always 0."""
        if self.count == 1 and not (self.problem.empty or self.weights.weighs):
            raise ValueError(
                f"Expected more than 1 value per group, got input size {self.problem.shape}"
            )


class SampleRange:
    """Consecutive samples; their groups (or channels) are the channels of one kernel call."""

    def __init__(self, whole: SampleGroups, start: int, stop: int) -> None:
        self._whole, self._samples = whole, slice(start, stop)
        self._number = stop - start
        self.groups = slice(start * whole.groups, stop * whole.groups)

    def by_channel(self, values: Array) -> Array:
        """Return these samples of an array of x's size, with one kernel channel per channel."""
        return self._sized(values, self._whole.channels, 1)

    def by_group(self, values: Array) -> Array:
        """Return these samples of an array of x's size, with one kernel channel per group."""
        return self._sized(values, self._whole.groups, self._whole.wide)

    def _sized(self, values: Array, rows: int, wide: int) -> Array:
        g = self._whole
        mine = values.reshape(g.samples, -1)[self._samples]
        return mine.reshape(g._outer, self._number * rows, wide * g._inner)

    def weights_by_channel(self, count: Stat) -> Weights | None:
        """Return the weights of `by_channel`, of whose channels `count` is the sum."""
        return self._weights(1, count)

    def weights_by_group(self, count: Stat) -> Weights | None:
        """Return the weights of `by_group`, of whose channels `count` is the sum."""
        return self._weights(self._whole.wide, count)

    def _weights(self, wide: int, count: Stat) -> Weights | None:
        g = self._whole
        if g.weights.values is None:
            return g.weights.record(count)
        mine = g.weights.values.reshape(g.samples, g._outer, -1, g._inner)[self._samples.start]
        if wide > 1:
            each = mine.repeat(wide, axis=1) if mine.shape[1] == 1 else mine
            mine = each.reshape(g._outer, -1, wide * g._inner)
        return g.weights._replace(values=mine).record(count)

    def repeated(self, values: Stat) -> Stat:
        """Repeat the value of each group once for every channel of the group."""
        return values.repeat(self._whole.wide)

    def tiled(self, values: Stat | None) -> Stat | None:
        """Repeat the values per channel once for every sample."""
        return None if values is None else np.tile(values, self._number)


def divisor(groups: object, channels: int) -> int:
    """Return a number of groups, which must divide that of channels."""
    number = scalars.integer_at_least("groups", groups, 1)
    if channels % number:
        raise ValueError(f"groups: expected a divisor of {channels} channels, got {number}")
    return number
