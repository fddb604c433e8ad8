"""How a graph is built: checks that compute nothing, and steps of one function per chunk.

An argument of one value per channel, or one that broadcasts against x, becomes an `Operand`: a Dask
array with the chunks of x, and the axes of x along which it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array, plain_array
from bncore.arguments.parameters import vector
from bncore.arguments.weights import NanPolicy, weights_of
from bncore.dask import chunks
from bncore.statistics import Moments, checked_moments

SPLIT_EVERY = 8  # states are small, so more of them than Dask's 4 may meet in one task


class Operand(NamedTuple):
    """An array, and the axes of x along which it lies; both are None if it is left out."""

    array: Any
    axes: tuple[int, ...] | None


NOTHING = Operand(None, None)


def whole(array: da.Array) -> Operand:
    """Return an array that has the axes of the result."""
    return Operand(array, tuple(range(array.ndim)))


# Checks


def data(name: str, value: object, integers: bool = False) -> da.Array:
    """Return a Dask array whose chunks are NumPy arrays of a dtype of x."""
    if not isinstance(value, da.Array):
        raise TypeError(f"{name}: expected a Dask array, got {scalars.shown(value)}")
    data_array(name, value._meta, integers)
    return value


def channel_axis(x: da.Array, axis: object) -> int:
    """Return the channel axis of x, which has at least 2 dimensions and known channels."""
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {x.ndim}")
    found = scalars.one_axis(axis, x.ndim)
    if math.isnan(x.shape[found]):
        raise ValueError(
            f"x: expected a known size along axis {found}, got unknown chunks; "
            "call x.compute_chunk_sizes() first"
        )
    return found


def unknown(sizes: Sequence[float]) -> bool:
    """Whether any size is not known before chunks are computed."""
    return any(map(math.isnan, sizes))


def stand_in(array: da.Array) -> Any:
    """Return an array of the same shape and dtype without memory, for checks."""
    shape = [2 if math.isnan(size) else size for size in array.shape]
    return np.broadcast_to(np.zeros((), array.dtype), shape)


def trial(x: da.Array, axis: int) -> Any:
    """Return an x without values but with all its channels, on which a function checks the rest."""
    shape = [size if i == axis else 0 for i, size in enumerate(x.shape)]
    return np.empty(shape, x.dtype)


def like(x: da.Array, name: str, value: object, dtype: np.dtype[Any]) -> Operand:
    """Return an array of x's shape and a given dtype, with x's chunks."""
    array = value if isinstance(value, da.Array) else data_array(name, value)
    data_array(name, getattr(array, "_meta", array))
    known = not unknown((*x.shape, *array.shape))
    if array.ndim != x.ndim or (known and array.shape != x.shape):
        raise ValueError(f"{name}: expected shape {x.shape}, got {array.shape}")
    if not layout.has_dtype(getattr(array, "_meta", array), dtype):
        raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
    return whole(in_chunks(array, x.chunks))


def require_batch(x: da.Array, channel: int) -> None:
    """Refuse a batch of one value per channel, which has no variance."""
    others = [size for i, size in enumerate(x.shape) if i != channel]
    if x.shape[channel] and not unknown(others) and set(others) <= {1}:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )


# What counts


def counted(
    x: da.Array, where: object, weights: object, nan_policy: NanPolicy, fill: object = None
) -> tuple[Operand, Operand]:
    """Check `where`, `weights`, `nan_policy` and `fill`; return the first two."""
    given = {
        name: value if value is None or isinstance(value, da.Array) else plain_array(name, value)
        for name, value in (("where", where), ("weights", weights))
    }
    seen = {}
    for name, value in given.items():
        lazy = isinstance(value, da.Array)
        if value is not None and not lazy and unknown(x.shape) and value.size > 1:
            raise TypeError(f"{name}: expected a Dask array, as x has chunks of unknown sizes")
        seen[name] = stand_in(value) if lazy else value
    weights_of(stand_in(x).shape, seen["where"], seen["weights"], nan_policy, fill)
    return _against(x, given["where"]), _against(x, given["weights"])


def _against(x: da.Array, value: Any) -> Operand:
    """Return an array that broadcasts against x, with x's chunks along the axes that it has."""
    if value is None:
        return NOTHING
    index = tuple(range(x.ndim))[x.ndim - value.ndim :]
    sizes = tuple(
        (size,) if size == 1 or unknown((size, *x.chunks[i])) else x.chunks[i]
        for i, size in zip(index, value.shape, strict=True)
    )
    return Operand(in_chunks(value, sizes), index)


# One value per channel


def per_channel(x: da.Array, axis: int, name: str, value: object) -> Operand:
    """Return an argument of one value per channel, with x's chunks along the channel axis."""
    size = x.shape[axis]
    lazy = isinstance(value, da.Array)
    array = vector(name, stand_in(value) if lazy else value, size, axis)
    return Operand(in_chunks(value if lazy else array, (x.chunks[axis],)), (axis,))


def optional(x: da.Array, axis: int, name: str, value: object) -> Operand:
    """Return an argument of one value per channel that may be left out."""
    return NOTHING if value is None else per_channel(x, axis, name, value)


def given_moments(x: da.Array, axis: int, moments: object) -> tuple[Operand, Operand]:
    """Return moments, lazy or not, and the numbers of the channels, by which a chunk finds its own.

    Lazy moments are an array of dtype object without dimensions, as `moments` returns them.
    """
    if isinstance(moments, da.Array) and moments.ndim == 0 and moments.dtype == object:
        found = Operand(moments, ())
    elif isinstance(moments, Moments):
        found = Operand(checked_moments("moments", moments, x.shape[axis]), None)
    else:
        raise TypeError(
            "moments: expected Moments, or the lazy ones of bncore.dask.moments, "
            f"got {scalars.shown(moments)}"
        )
    numbers = da.arange(x.shape[axis], chunks=(x.chunks[axis],))
    return found, Operand(numbers, (axis,))


def or_ones(operand: Operand) -> Any:
    """Return ones in place of an argument of one value per channel, for a trial."""
    return None if operand.array is None else np.ones(operand.array.shape, operand.array.dtype)


def moments_or_stand_in(operand: Operand, channels: int) -> Moments:
    """Return moments for a trial: those that are given, or some in place of lazy ones."""
    if isinstance(operand.array, Moments):
        return operand.array
    return Moments(1, np.zeros(channels), np.zeros(channels))


# Steps


def in_chunks(array: Any, sizes: tuple[tuple[float, ...], ...]) -> da.Array:
    """Return a Dask or NumPy array in chunks of these sizes, or as it is if they are not known."""
    if unknown([size for chunk in sizes for size in chunk]):
        return array if isinstance(array, da.Array) else da.from_array(array, chunks=-1)
    if isinstance(array, da.Array):
        return array.rechunk(sizes)
    return da.from_array(array, chunks=sizes)


def step(
    function: Callable[..., Any],
    name: str,
    axes: Sequence[int],
    operands: Sequence[Operand],
    meta: Any,
    **options: Any,
) -> da.Array:
    """Apply a function to each chunk: one task each, named "bncore-<name>"."""
    pairs = [item for operand in operands for item in operand]
    return da.blockwise(
        function, tuple(axes), *pairs, token=f"bncore-{name}", meta=meta, dtype=meta.dtype,
        **options,
    )  # fmt: skip


def empty(ndim: int, dtype: Any) -> Any:
    """Return what Dask calls the meta of an array: its type, dtype and number of dimensions."""
    return np.empty((0,) * ndim, dtype)


def reduced(
    parts: da.Array, name: str, axes: tuple[int, ...], keepdims: bool, split_every: object
) -> da.Array:
    """Merge an array of one state per chunk along some axes, in a tree of tasks.

    The numbers of chunks along the axes, and `split_every`, determine the tree.
    """
    ndim = parts.ndim if keepdims else parts.ndim - len(axes)
    found: da.Array = da.reduction(
        parts, chunks.same, chunks.merged, combine=chunks.merged, axis=axes, keepdims=keepdims,
        dtype=np.dtype(object), split_every=_fan_in(parts, axes, split_every),
        name=f"bncore-{name}", concatenate=False, meta=empty(ndim, object),
    )  # fmt: skip
    return found


def _fan_in(parts: da.Array, axes: tuple[int, ...], split_every: object) -> dict[int, int]:
    """Return how many neighbours along each axis merge in one task.

    A number is the most that meet in one task.  The axes that have several chunks share it.
    """
    if isinstance(split_every, dict):
        named = {
            scalars.one_axis(axis, parts.ndim): scalars.integer_at_least("split_every", n, 2)
            for axis, n in split_every.items()
        }
        return {i: named.get(i, 2) for i in axes}
    if split_every is None:
        split_every = dask.config.get("split_every", None) or SPLIT_EVERY
    most = scalars.integer_at_least("split_every", split_every, 2)
    several = sum(parts.numblocks[i] > 1 for i in axes)
    each = 2
    while several and (each + 1) ** several <= most:
        each += 1
    return dict.fromkeys(axes, each)
