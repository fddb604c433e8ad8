"""Arrays that are read in pieces: Zarr arrays, HDF5 data sets, Dask arrays and their like.

Such an array has a shape and a dtype, gives its parts by slices, and may say in `chunks` how it is
stored.  A chunk can only be read as a whole, so pieces consist of whole chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, product
from math import isnan, prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import plain_array
from bncore.data import hdf5_files, zarr_files

Array: TypeAlias = npt.NDArray[Any]
Place: TypeAlias = tuple[slice, ...]

CHUNKS_IN_BLOCKS = 16  # how many times block_bytes a chunk may have


def is_stored(value: object) -> bool:
    """Whether this is an array whose parts are read when they are asked for.

    What NumPy reads without a copy lies in memory, or in a mapped file.
    """
    kind = type(value)
    in_memory = ("__dlpack__", "__array_interface__", "__array_struct__")
    if issubclass(kind, np.ndarray) or any(hasattr(kind, name) for name in in_memory):
        return False
    return hasattr(kind, "__getitem__") and hasattr(value, "shape") and _dtype(value) is not None


def _dtype(value: Any) -> np.dtype[Any] | None:
    """Return the dtype of an array if it is one of NumPy's."""
    try:
        dtype: np.dtype[Any] = np.dtype(value.dtype)
    except (AttributeError, TypeError):
        return None
    return dtype


def stand_in(name: str, value: Any) -> Array:
    """Return an array of the same shape and dtype without memory, for checks of arguments."""
    sizes = tuple(value.shape or ())  # that of an empty HDF5 data set is None
    if any(map(isnan, sizes)):
        raise ValueError(f"{name}: expected chunks of known sizes, got shape {sizes}")
    if hasattr(value, "_meta"):  # Dask's example of a chunk, which may have a mask
        plain_array(name, value._meta)
    return np.broadcast_to(np.zeros((), _dtype(value)), sizes)


class Stored:
    """A stored array divided into pieces of whole chunks, in C order of the pieces.

    It takes the place of `bncore.data.streaming.Blocks`.

    Attributes
    ----------
    axis : the channel axis
    """

    __slots__ = ("_mapped", "_memory", "_parts", "_x", "axis")

    def __init__(self, x: Any, channel_axis: int, block_bytes: int) -> None:
        self.axis = channel_axis
        self._x = x
        dtype = np.dtype(x.dtype)
        chunks = getattr(x, "chunks", None)
        if chunks is not None and any(isinstance(sizes, tuple) for sizes in chunks):
            self._parts = [_slices(sizes) for sizes in chunks]  # Dask: every size on its own
        else:
            steps = _steps(x.shape, chunks, dtype.itemsize, block_bytes)
            self._parts = [
                [slice(i, min(i + step, size)) for i in range(0, size, step)]
                for size, step in zip(x.shape, steps, strict=True)
            ]
        largest = prod(max(p.stop - p.start for p in parts) for parts in self._parts)
        most = CHUNKS_IN_BLOCKS * block_bytes
        if largest * dtype.itemsize > most:
            raise ValueError(
                f"x: expected chunks of at most {most} bytes, {CHUNKS_IN_BLOCKS} times "
                f"block_bytes, got a chunk of {largest * dtype.itemsize}"
            )
        self._mapped = hdf5_files.mapped(x) or zarr_files.mapped(x)
        # HDF5 reads into memory that exists; fresh memory for every piece takes longer.
        self._memory = np.empty(largest, dtype) if hasattr(x, "read_direct") else None

    def __iter__(self) -> Iterator[tuple[slice, Array, Place]]:
        """Read piece after piece: its channels, its values, and its place."""
        for place in product(*self._parts):
            mapped = self._mapped
            if mapped is not None and (block := mapped.part(place)) is not None:
                yield place[self.axis], block, place
                mapped.drop(block)
            else:
                yield place[self.axis], self._read(place), place

    def _read(self, place: Place) -> Array:
        if self._memory is None:
            return plain_array("x", self._x[place])
        shape = tuple(part.stop - part.start for part in place)
        values: Array = self._memory[: prod(shape)].reshape(shape)
        self._x.read_direct(values, place)
        return values

    def of(self, whole: Any, place: Place) -> Array:
        """Return the part of a mask or of weights that broadcast against x."""
        own = place[len(place) - len(whole.shape) :]
        parts = zip(own, whole.shape, strict=True)
        return plain_array("x", whole[tuple(slice(0, 1) if size == 1 else p for p, size in parts)])


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Return consecutive slices of these sizes, without the empty ones."""
    ends = accumulate(sizes, initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends) if start < stop]


def _steps(
    shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int, block_bytes: int
) -> list[int]:
    """Return the sizes of a piece: one chunk, or as many neighbours as a block may have.

    What has no chunks is one run of values in C order.
    """
    steps = [min(c, n) for c, n in zip(chunks or (1,) * len(shape), shape, strict=True)]
    for k in reversed(range(len(steps))):
        many = max(block_bytes // (prod(steps) * itemsize), 1)
        steps[k] = min(steps[k] * many, shape[k])
        if steps[k] < shape[k]:
            break
    return steps
