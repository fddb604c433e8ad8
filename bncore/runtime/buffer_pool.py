"""Memory for returned arrays that is used again: opt-in, bounded, safe under views and threads.

Fresh memory of tens of megabytes costs more than a batch norm over it, since the system clears
every page on its first touch.  With a pool, an array that nobody refers to any more leaves its
memory to the next one of its size.

A returned array does not own its memory: a `_Lease` does, which the array and every view of it keep
alive (NumPy never looks through an object that is no array for an older base).  When the last of
them is gone, so is the lease, and only then the block is free.
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

LEAST = 1 << 20  # bytes: for smaller arrays the allocator's own reuse is as good
LINE = 64  # bytes: blocks start where a cache line does

Block = npt.NDArray[np.uint8]


class _Lease:
    """A block in use; what NumPy keeps as the base of the array and of its views."""

    __slots__ = ("__array_interface__", "_block", "_pool")

    def __init__(self, pool: Pool, block: Block, shape: tuple[int, ...], dtype: Any) -> None:
        self._pool = pool
        self._block = block
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.ctypes.data + -block.ctypes.data % LINE, False),
        }

    def __del__(self) -> None:
        self._pool.give(self._block)


class Pool:
    """Idle blocks, at most `max_bytes` of them together.

    `give` may run at any moment, in the middle of `take` too, since the garbage collector calls
    it: it appends to a deque, which is atomic.  Nobody waits for the lock, since whoever holds it
    may be further up in the same thread; who does not get it does without.  Whoever holds it
    settles once more after letting go of it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.start_empty()
        _pools.add(self)

    def start_empty(self) -> None:
        """Forget the idle blocks and who held the lock: in a forked child nobody lets go of it."""
        self._given: deque[Block] = deque()
        self._idle: deque[Block] = deque()  # the oldest first
        self._idle_bytes = 0
        self._lock = Lock()

    def close(self) -> None:
        """Keep nothing from now on; arrays in use go on as they are."""
        self.max_bytes = 0
        self._settle()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array of memory that was used before, if there is a block of its size."""
        size = math.prod(shape) * dtype.itemsize + LINE
        block = self._find(size)
        if block is None:
            block = np.empty(size, np.uint8)
        return np.asarray(_Lease(self, block, shape, dtype))

    def give(self, block: Block) -> None:
        """Take a block back."""
        self._given.append(block)
        self._settle()

    def idle_bytes(self) -> int:
        """Return how many bytes wait to be used again."""
        self._settle()
        return self._idle_bytes

    def _find(self, size: int) -> Block | None:
        """Take the youngest idle block of this size."""
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
        """Move what was given back to the idle blocks; let go of the oldest beyond the bound."""
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


_pools: WeakSet[Pool] = WeakSet()  # replaced ones live as long as arrays of theirs
current: Pool | None = None  # what `set_buffer_pool` made
_replacing = Lock()  # so that each pool that was current is closed, once


def _after_fork_in_child() -> None:
    global _replacing
    _replacing = Lock()
    for pool in list(_pools):
        pool.start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def set_buffer_pool(max_bytes: SupportsIndex | None) -> None:
    """Let returned arrays use memory again that earlier ones no longer need.

    It counts for every function and layer that returns y or dx, for arrays of 1 MiB and more where
    no ``out`` is given, and for all threads.  In a loop such as ``y, _ =
    batch_norm_train(x)`` the price of a returned array then is that of ``out=``.

    Parameters
    ----------
    max_bytes : int or None
        How many bytes of memory that nobody uses are kept at most; arrays in use do not count.
        None, the default state, keeps none and lets NumPy allocate.

    Raises
    ------
    TypeError, ValueError
        If `max_bytes` is no integer, or negative.

    Notes
    -----
    An array from the pool does not own its memory (``y.flags.owndata`` is False), which goes back
    when the array and all views of it are gone.  The contents of a new array are never seen:
    every element is written.

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
    """Return the pool's bound and how many bytes are idle; None where there is no pool."""
    pool = current
    if pool is None:
        return None
    return {"max_bytes": pool.max_bytes, "idle_bytes": pool.idle_bytes()}


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a new array, of the pool's memory where there is a pool and the array is large."""
    pool = current
    if pool is None or math.prod(shape) * dtype.itemsize < LEAST:
        return np.empty(shape, dtype)
    return pool.take(shape, dtype)


def output(x: object, source: Pool | None = None) -> Any:
    """Return a new array of x's memory order; None where the pool, `current`, does not serve x."""
    pool = current if source is None else source
    if pool is None or type(x) is not np.ndarray or x.nbytes < LEAST:
        return None
    dtype = layout.NATIVE_DTYPES.get(x.dtype.char)
    if dtype is None:  # x will be refused
        return None
    order = layout.memory_order(x)
    block = pool.take(tuple(x.shape[i] for i in order), dtype)
    return block.transpose(sorted(range(x.ndim), key=order.__getitem__))
