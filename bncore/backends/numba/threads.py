"""Spread the tasks of a compiled kernel over threads.

The kernels hold no lock, so ordinary threads do.  One pool has them, which is made on first use; a
forked child, which inherits none of them, makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

WORK = 32768  # fewest values that are worth a thread


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="bncore")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def useful(n_threads: int, size: int) -> int:
    """Limit the number of threads to what `size` values are worth."""
    return max(1, min(n_threads, size // WORK))


class _Writable:
    """The memory of a read-only array, for NumPy to make an array of that is not."""

    __slots__ = ("__array_interface__", "_array")

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        memory = {"data": (array.ctypes.data, False)}
        self.__array_interface__ = array.__array_interface__ | memory


def one_type(argument: Any) -> Any:
    """Return a read-only array as a writable one of the same memory; all else as it is.

    To Numba these are two types, and it compiles for every mix of them.
    """
    if isinstance(argument, np.ndarray) and not argument.flags.writeable:
        return np.asarray(_Writable(argument))
    return argument


def spread(n_threads: int, n_tasks: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run ``kernel(first, last, *args)`` over the tasks, cut into one range for each thread."""
    args = tuple(map(one_type, args))
    ranges = min(n_threads, n_tasks)
    edges = [n_tasks * i // max(ranges, 1) for i in range(ranges + 1)]
    futures: list[Future[None]] = []
    for first, last in pairwise(edges[1:]):
        try:
            futures.append(_pool().submit(kernel, first, last, *args))
        except RuntimeError:  # the interpreter is going down and takes no more work
            kernel(first, last, *args)
    if ranges:
        kernel(edges[0], edges[1], *args)
    for future in futures:
        future.result()
