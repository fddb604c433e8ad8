"""What a worker computes: functions of chunks, and of what was computed of other chunks.

All of them run bncore on one thread, because Dask runs as many of them at once as a worker has
threads.  None needs anything but its arguments, so a worker that dies is replaced by running its
functions again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import bncore
from bncore.arguments.arrays import cast
from bncore.functions.over_axes import normalize_over, reduced_moments
from bncore.statistics import (
    GradSums,
    Moments,
    channels_of,
    checked_moments,
    concatenated,
    variance,
)

Array = npt.NDArray[Any]


class Part(NamedTuple):
    """The moments of one chunk or of several, over some axes.

    Attributes
    ----------
    moments : one channel for each value along the axes that are kept, in C order
    shape : the shape of these values, in which a reduced axis has size 1 or is left out
    """

    moments: Moments
    shape: tuple[int, ...]

    def merge(self, other: Part) -> Part:
        """Return the moments of both, which have the same shape."""
        return self._replace(moments=self.moments.merge(other.moments))


def in_steady_order(chunk: Array) -> Array:
    """Return a chunk in C order, without a copy if it is in C order already.

    The memory order determines the order of the additions.  It must not depend on which chunks
    travelled to another worker and which did not: those that do may arrive in another order.
    """
    return np.asanyarray(chunk, order="C")


# Sums of chunks


def moments_of(
    x: Array,
    where: Array | None,
    weights: Array | None,
    *,
    axis: tuple[int, ...],
    keepdims: bool,
    in_float64: bool,
    **options: Any,
) -> Part:
    """Compute the moments of a chunk over some axes; the options are those of `mean_var`."""
    found, shape = reduced_moments(
        in_steady_order(x), axis, keepdims, dtype=np.float64 if in_float64 else None, where=where,
        weights=weights, **options, n_threads=1,
    )  # fmt: skip
    return Part(found, shape)


def sums_of(
    dy: Array,
    x: Array,
    where: Array | None,
    weights: Array | None,
    moments: Moments,
    channels: Array,
    *,
    total: int,
    **options: Any,
) -> GradSums:
    """Compute the gradient sums of a chunk; the options are those of `grad_sums`."""
    own = of_channels(moments, channels, total)
    return bncore.grad_sums(
        in_steady_order(dy), in_steady_order(x), own, where=where, weights=weights, n_threads=1,
        **options,
    )  # fmt: skip


# Merging


def flat(nested: Any) -> Iterator[Any]:
    """Yield what lies in lists of lists, in order."""
    if not isinstance(nested, list):
        yield nested
        return
    for item in nested:
        yield from flat(item)


def same(x: Any, axis: Any = None, keepdims: Any = None, computing_meta: bool = False) -> Any:
    """Return the argument; `dask.array.reduction` wants a first step."""
    return x


def merged(nested: Any, axis: Any, keepdims: Any, computing_meta: bool = False) -> Any:
    """Merge the `Part` or `GradSums` of some chunks, in the order of the chunks."""
    if computing_meta:
        return nested
    return reduce(lambda one, other: one.merge(other), flat(nested))


def joined(nested: Any) -> Moments:
    """Join the moments of consecutive ranges of channels."""
    return concatenated([part.moments for part in flat(nested)])


def of_channels(moments: Moments, channels: Array, total: int) -> Moments:
    """Return the moments of the channels with these consecutive numbers, of x's `total`."""
    checked_moments("moments", moments, total)
    if not channels.size:
        return channels_of(moments, 0, 0)
    return channels_of(moments, int(channels[0]), int(channels[-1]) + 1)


# Results


def mean_of(part: Part, to: np.dtype[Any]) -> Any:
    """Return the means, rounded to this dtype."""
    return cast(part.moments.mean, to).reshape(part.shape)[()]


def var_of(part: Part, to: np.dtype[Any], correction: float) -> Any:
    """Return the variances, rounded to this dtype."""
    found = variance(part.moments.count, part.moments.m2, correction)
    return cast(found, to).reshape(part.shape)[()]


def sum_dy_of(sums: GradSums, to: np.dtype[Any]) -> Array:
    """Return the gradient of bias, rounded to this dtype."""
    return cast(sums.sum_dy, to)


def sum_dy_xhat_of(sums: GradSums, to: np.dtype[Any]) -> Array:
    """Return the gradient of weight, rounded to this dtype."""
    return cast(sums.sum_dy_xhat, to)


def normalized(
    x: Array,
    where: Array | None,
    weights: Array | None,
    moments: Moments,
    channels: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    total: int,
    **options: Any,
) -> Array:
    """Compute y of a chunk from the moments of all channels."""
    own = of_channels(moments, channels, total)
    return bncore.normalize(
        x, own, weight, bias, where=where, weights=weights, n_threads=1, **options
    )


def normalized_over(
    x: Array,
    where: Array | None,
    weights: Array | None,
    part: Part,
    **options: Any,
) -> Array:
    """Compute y of a chunk from its moments over some axes."""
    return normalize_over(x, part.moments, where=where, weights=weights, n_threads=1, **options)


def inferred(
    x: Array,
    where: Array | None,
    weights: Array | None,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    **options: Any,
) -> Array:
    """Compute y of a chunk from given statistics."""
    return bncore.batch_norm_infer(
        x, mean, var, weight, bias, residual=residual, where=where, weights=weights, n_threads=1,
        **options,
    )  # fmt: skip


def input_gradient(
    dy: Array,
    x: Array,
    where: Array | None,
    weights: Array | None,
    moments: Moments,
    channels: Array,
    sums: GradSums,
    weight: Array | None,
    *,
    total: int,
    **options: Any,
) -> Array:
    """Compute dx of a chunk from the gradient sums of its channels."""
    own = of_channels(moments, channels, total)
    return bncore.grad_input(
        dy, x, own, sums, weight, where=where, weights=weights, n_threads=1, **options
    )
