"""Spread the tasks of a compiled kernel over threads.

The kernels hold no lock, so ordinary threads do.  One pool has them, which is made on first use; a
forked child, which inherits none of them, makes its own.
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
    """Run ``kernel(first, last, *args)`` over the tasks, cut into one range for each thread.

    Whoever comes first takes a range, this thread too.  So a thread that cannot be created, or has
    not begun, is not waited for, and no range runs twice, which would change an x that is also y.
    """
    args = tuple(map(one_type, args))
    n_ranges = max(min(n_threads, n_tasks), 1)
    edges = [n_tasks * i // n_ranges for i in range(n_ranges + 1)]
    ends: list[tuple[int, ...]] = [()] * n_ranges  # one for each thread, which stops there
    ranges = ends + list(pairwise(edges))

    def take_ranges() -> None:
        for first, last in iter(ranges.pop, ()):
            kernel(first, last, *args)

    futures: list[Future[None]] = []
    with suppress(RuntimeError):  # no thread can be created, or the interpreter is going down
        futures.extend(_pool().submit(take_ranges) for _ in range(n_ranges - 1))
    take_ranges()
    for future in futures:
        if not future.cancel():
            future.result()
