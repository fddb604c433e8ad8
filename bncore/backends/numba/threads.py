"""Distribute the tasks of a compiled kernel over threads.

The kernels do not hold the GIL, so ordinary Python threads are enough.  They belong to one pool,
which is made on first use.  A forked child inherits no threads and makes its own pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

WORK = 32768  # a thread is worth its cost for at least this many values


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="bncore")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def useful(n_threads: int, size: int) -> int:
    """Return the number of threads to use for `size` values, at most `n_threads`."""
    return max(1, min(n_threads, size // WORK))


class _Writable:
    """The memory of a read-only array, from which NumPy can make a writable array."""

    __slots__ = ("__array_interface__", "_array")

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        memory = {"data": (array.ctypes.data, False)}
        self.__array_interface__ = array.__array_interface__ | memory


def one_type(argument: Any) -> Any:
    """Return a read-only array as a writable one, so that Numba compiles a kernel for one type."""
    if isinstance(argument, np.ndarray) and not argument.flags.writeable:
        return np.asarray(_Writable(argument))
    return argument


def spread(n_threads: int, n_tasks: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run ``kernel(first, last, *args)`` over the tasks, divided into one range for each thread.

    Each thread, this one included, takes the next range that is left.  So nobody waits for a thread
    that cannot be created or has not begun.  No range runs twice, because that would give a wrong
    result if x is also y.
    """
    n_ranges = max(min(n_threads, n_tasks), 1)
    edges = [n_tasks * i // n_ranges for i in range(n_ranges + 1)]
    ranges: list[tuple[int, ...]] = [()] * n_ranges  # each thread stops at one of these
    ranges += pairwise(edges)
    held = [tuple(map(one_type, args))]  # emptied at the end, which a thread may reach later

    def take_ranges() -> None:
        for first, last in iter(ranges.pop, ()):
            kernel(first, last, *held[0])

    futures: list[Future[None]] = []
    with suppress(RuntimeError):  # no thread can be created, or the interpreter is shutting down
        futures.extend(_pool().submit(take_ranges) for _ in range(n_ranges - 1))
    try:
        take_ranges()
    finally:
        for future in futures:
            if not future.cancel():
                future.result()
        held.clear()
