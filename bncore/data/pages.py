"""The pages of mapped files, read ahead and given back, and the chunks of arrays in them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Pages:
    """The pages of the mapped file that holds an array; without a mapped file it does nothing.

    A page that was read counts as this process's memory until the process gives it back.  The
    system keeps it in its cache in either case.
    """

    __slots__ = ("_map", "_start")

    def __init__(self, x: npt.NDArray[Any]) -> None:
        self._map = _file_map(x)
        if self._map is not None:
            self._start = np.frombuffer(self._map, np.uint8).ctypes.data

    def _advise(self, name: str, block: npt.NDArray[Any]) -> None:
        advice = getattr(mmap, name, None)  # not on every system
        if self._map is None or advice is None or block.size == 0:
            return
        low, high = np.lib.array_utils.byte_bounds(block)
        first = (low - self._start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(advice, first, high - self._start - first)

    def expect(self, block: npt.NDArray[Any]) -> None:
        """Ask the system to read the block ahead."""
        self._advise("MADV_WILLNEED", block)

    def drop(self, block: npt.NDArray[Any]) -> None:
        """Give the block's pages back."""
        self._advise("MADV_DONTNEED", block)


def _file_map(x: npt.NDArray[Any]) -> mmap.mmap | None:
    """Return the map that x lies in, if its pages can be given back without loss.

    A private map that was written to would lose the written values.  The map must therefore be
    read-only, or a shared map of NumPy.
    """
    base: object = x
    shared = False
    while isinstance(base, (np.ndarray, memoryview)):
        shared |= isinstance(base, np.memmap) and base.mode in ("r", "r+", "w+")
        base = base.obj if isinstance(base, memoryview) else base.base
    if not isinstance(base, mmap.mmap) or not (shared or memoryview(base).readonly):
        return None
    return base


def in_chunk(place: tuple[slice, ...], chunks: Sequence[int]) -> tuple[slice, ...] | None:
    """Return where the values of a place lie in its chunk, or None if it has several chunks.

    The place begins with a chunk; at the end of an axis it may be smaller.
    """
    sizes = tuple(part.stop - part.start for part in place)
    if any(size > chunk for size, chunk in zip(sizes, chunks, strict=True)):
        return None
    return tuple(map(slice, sizes))
