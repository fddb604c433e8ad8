"""Zarr arrays whose chunks are files of plain values: mapped instead of copied.

Reading by Zarr copies every value twice, which takes longer than its moments do.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.data.pages import Pages, in_chunk

Array: TypeAlias = npt.NDArray[Any]


def mapped(x: Any) -> MappedChunks | None:
    """Return the chunks of an array as mapped files, or None if its files have other bytes."""
    zarr: Any = sys.modules.get("zarr")
    if zarr is None or not isinstance(x, zarr.Array) or sys.platform == "win32":
        return None
    if type(x.store) is not zarr.storage.LocalStore or x.compressors or x.filters or x.shards:
        return None
    if x.metadata.zarr_format == 2:
        return MappedChunks(x, x.dtype) if x.order == "C" else None
    if type(x.serializer) is not zarr.codecs.BytesCodec:
        return None
    endian = x.serializer.endian  # None for types of one byte, else a string or an enumeration
    return MappedChunks(
        x, x.dtype if endian is None else x.dtype.newbyteorder(getattr(endian, "value", endian))
    )


class MappedChunks:
    """The chunks of a Zarr array as views of mapped files.

    Parameters
    ----------
    x : zarr.Array
        An array for which `mapped` checked the conditions.
    dtype : numpy.dtype
        That of the values in the files, which may have another byte order than x.
    """

    __slots__ = ("_dtype", "_folder", "_x")

    def __init__(self, x: Any, dtype: np.dtype[Any]) -> None:
        self._x, self._dtype = x, dtype
        self._folder = Path(x.store.root, x.store_path.path)

    def part(self, place: tuple[slice, ...]) -> Array | None:
        """Return the values at this place, or None if they are not one file."""
        x, own = self._x, in_chunk(place, self._x.chunks)
        if own is None:
            return None
        index = tuple(part.start // size for part, size in zip(place, x.chunks, strict=True))
        path = self._folder / x.metadata.encode_chunk_key(index)
        if not path.is_file() or path.stat().st_size != prod(x.chunks) * x.dtype.itemsize:
            return None  # a chunk of fill values need not have a file
        block: Array = np.memmap(path, self._dtype, "r", shape=x.chunks)[own]
        Pages(block).expect(block)
        return block

    def drop(self, block: Array) -> None:
        """Give the block's pages back."""
        Pages(block).drop(block)
