"""A pool that reuses the memory of returned arrays: opt-in, bounded, safe with views and threads.

Tens of megabytes of new memory cost more time than a batch norm over them, because the system
clears every page on its first use.  With a pool, an array that nobody refers to any more leaves its
memory to the next array of its size.

A returned array does not own its memory.  A `_Lease` owns it, and the array and every view of it
keep the lease alive (NumPy never looks behind a base that is not an array).  When the last of them
is gone, the lease ends, and only then is the block free.
"""

from __future__ import annotations

import math
import os
from collections import deque
from threading import Lock
from typing import Any, SupportsIndex
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.bfloat16 import bits_dtype, is_bfloat16

LEAST = 1 << 20  # bytes; the allocator itself reuses the memory of smaller arrays as well
LINE = 64  # bytes; every block starts at the start of a cache line

Block = npt.NDArray[np.uint8]


class _Lease:
    """A block in use.  NumPy keeps it as the base of the array and of its views."""

    __slots__ = ("__array_interface__", "_block", "_pool")

    def __init__(self, pool: Pool, block: Block, shape: tuple[int, ...], dtype: Any) -> None:
        self._pool = pool
        self._block = block
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": bits_dtype(dtype).str if is_bfloat16(dtype) else dtype.str,
            "data": (block.ctypes.data + -block.ctypes.data % LINE, False),
        }

    def __del__(self) -> None:
        self._pool.give(self._block)


class Pool:
    """Idle blocks, at most `max_bytes` of them together.

    The garbage collector calls `give`, so `give` may run at any moment, even in the middle of
    `take`.  It only appends to a deque, which is atomic.  No method waits for the lock, because its
    holder may be further up in the same thread: a method that does not get the lock works without
    the idle blocks.  The holder calls `_settle` once more after it has released the lock.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.start_empty()
        _pools.add(self)

    def start_empty(self) -> None:
        """Start without idle blocks and with a new lock; in a forked child nobody frees the old."""
        self._given: deque[Block] = deque()
        self._idle: deque[Block] = deque()  # oldest first
        self._idle_bytes = 0
        self._lock = Lock()

    def close(self) -> None:
        """Stop keeping blocks; arrays in use stay valid."""
        self.max_bytes = 0
        self._settle()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array in an idle block of its size, or in new memory if there is none."""
        size = math.prod(shape) * dtype.itemsize + LINE
        block = self._find(size)
        if block is None:
            block = np.empty(size, np.uint8)
        memory = np.asarray(_Lease(self, block, shape, dtype))
        return memory.view(dtype)

    def give(self, block: Block) -> None:
        """Take a block back."""
        self._given.append(block)
        self._settle()

    def idle_bytes(self) -> int:
        """Return the number of bytes in idle blocks."""
        self._settle()
        return self._idle_bytes

    def _find(self, size: int) -> Block | None:
        """Take the idle block of this size that was given back last."""
        self._settle()
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for i in range(len(self._idle) - 1, -1, -1):
                if self._idle[i].nbytes == size:
                    block = self._idle[i]
                    del self._idle[i]
                    self._idle_bytes -= size
                    return block
            return None
        finally:
            self._lock.release()
            self._settle()

    def _settle(self) -> None:
        """Move returned blocks to the idle blocks, and free the oldest beyond the bound."""
        while (self._given or self._idle_bytes > self.max_bytes) and self._lock.acquire(
            blocking=False
        ):
            try:
                while self._given:
                    block = self._given.popleft()
                    self._idle.append(block)
                    self._idle_bytes += block.nbytes
                while self._idle_bytes > self.max_bytes:
                    self._idle_bytes -= self._idle.popleft().nbytes
            finally:
                self._lock.release()


_pools: WeakSet[Pool] = WeakSet()  # a replaced pool lives as long as its arrays
current: Pool | None = None  # the pool that `set_buffer_pool` made
_replacing = Lock()  # makes sure that each replaced pool is closed exactly once


def _after_fork_in_child() -> None:
    global _replacing
    _replacing = Lock()
    for pool in list(_pools):
        pool.start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def set_buffer_pool(max_bytes: SupportsIndex | None) -> None:
    """Reuse the memory of returned arrays that are no longer in use.

    The pool serves every function and layer that returns y or dx, in all threads, for arrays of
    1 MiB or more if no ``out`` is given.  In a loop such as ``y, _ = batch_norm_train(x)`` a
    returned array then costs as little as ``out=`` does.

    Parameters
    ----------
    max_bytes : int or None
        The largest number of unused bytes to keep; arrays in use do not count.  With None, which is
        the initial state, there is no pool and NumPy allocates.

    Raises
    ------
    TypeError, ValueError
        If `max_bytes` is not an integer, or is negative.

    Notes
    -----
    An array from the pool does not own its memory (``y.flags.owndata`` is False).  The memory goes
    back to the pool when the array and all its views are gone.  You never see old contents, because
    the functions write every element of a new array.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.set_buffer_pool(1 << 28)
    >>> x = np.ones((64, 64, 64, 2), np.float32)
    >>> places = set()
    >>> for _ in range(5):
    ...     y, _ = bncore.batch_norm_train(x)
    ...     places.add(y.ctypes.data)
    >>> len(places) <= 2  # the new y is made while the last one is still there
    True
    >>> bncore.set_buffer_pool(None)
    """
    global current
    bound = None if max_bytes is None else scalars.integer_at_least("max_bytes", max_bytes, 0)
    made = None if bound is None else Pool(bound)
    with _replacing:
        before, current = current, made
    if before is not None:
        before.close()


def state() -> dict[str, int] | None:
    """Return the pool's bound and its number of idle bytes, or None if there is no pool."""
    pool = current
    if pool is None:
        return None
    return {"max_bytes": pool.max_bytes, "idle_bytes": pool.idle_bytes()}


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a new array; if there is a pool and the array is large, in the pool's memory."""
    pool = current
    if pool is None or math.prod(shape) * dtype.itemsize < LEAST:
        return np.empty(shape, dtype)
    return pool.take(shape, dtype)


def output(x: object, source: Pool | None = None) -> Any:
    """Return a new array in x's memory order, or None if the pool `current` does not serve x."""
    pool = current if source is None else source
    if pool is None or type(x) is not np.ndarray or x.nbytes < LEAST:
        return None
    dtype = layout.native_dtype(x.dtype)
    if dtype is None:  # the checks will refuse x
        return None
    order = layout.memory_order(x)
    block = pool.take(tuple(x.shape[i] for i in order), dtype)
    return block.transpose(sorted(range(x.ndim), key=order.__getitem__))
