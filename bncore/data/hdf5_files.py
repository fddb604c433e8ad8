"""HDF5 data sets whose values lie in the file as they lie in memory: mapped instead of copied.

Reading by h5py copies every value, which takes longer than its moments do.
"""

from __future__ import annotations

import mmap
import sys
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.data.pages import Pages, in_chunk

Array: TypeAlias = npt.NDArray[Any]
Place: TypeAlias = tuple[slice, ...]


def mapped(x: Any) -> MappedDataset | None:
    """Return the parts of a data set in its mapped file, or None if they cannot be used as such.

    The file must be one that nobody writes to: what HDF5 has not written yet is not in the map.
    """
    h5py: Any = sys.modules.get("h5py")
    if h5py is None or not isinstance(x, h5py.Dataset) or sys.platform == "win32":
        return None
    file, created = x.file, x.id.get_create_plist()
    if file.mode != "r" or file.swmr_mode or file.driver != "sec2" or file.userblock_size > 0:
        return None
    converted = h5py.h5t.py_create(x.dtype) != x.id.get_type()
    if converted or created.get_nfilters() > 0 or x.is_virtual or x.external or x.size == 0:
        return None
    if created.get_layout() == h5py.h5d.CHUNKED:
        return MappedDataset(x, None)
    offset = x.id.get_offset() if created.get_layout() == h5py.h5d.CONTIGUOUS else None
    return None if offset is None else MappedDataset(x, offset)  # None: nothing was written


class MappedDataset:
    """The parts of an HDF5 data set as views of its mapped file.

    Parameters
    ----------
    x : h5py.Dataset
        A data set for which `mapped` checked the conditions.
    offset : int or None
        Where its values begin in the file; None if they lie in chunks.
    """

    __slots__ = ("_bytes", "_pages", "_whole", "_x")

    def __init__(self, x: Any, offset: int | None) -> None:
        whole_file = mmap.mmap(x.file.id.get_vfd_handle(), 0, access=mmap.ACCESS_READ)
        self._x = x
        self._bytes = np.frombuffer(whole_file, np.uint8)
        self._pages = Pages(self._bytes)
        self._whole = None if offset is None else self._at(offset, x.shape)

    def _at(self, offset: int, shape: tuple[int, ...]) -> Array:
        size = prod(shape) * self._x.dtype.itemsize
        values: Array = self._bytes[offset : offset + size].view(self._x.dtype)
        return values.reshape(shape)

    def part(self, place: Place) -> Array | None:
        """Return the values at this place, or None if they are not one chunk of the file."""
        block = self._chunk(place) if self._whole is None else self._whole[place]
        if block is not None:
            self._pages.expect(block)
        return block

    def _chunk(self, place: Place) -> Array | None:
        x = self._x
        own = in_chunk(place, x.chunks)
        if own is None:
            return None
        info = x.id.get_chunk_info_by_coord(tuple(p.start for p in place))
        if info.byte_offset is None:  # nothing was written there
            return None
        return self._at(info.byte_offset, x.chunks)[own]

    def drop(self, block: Array) -> None:
        """Give the block's pages back."""
        self._pages.drop(block)
