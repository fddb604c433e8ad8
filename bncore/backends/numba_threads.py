"""Spreads the tasks of a Numba kernel over threads.

The kernels hold no lock, so ordinary threads do.  They live in one pool, made on first use; a
forked child, which inherits none of them, makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

WORK = 32768  # fewest values that are worth a thread


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="bncore")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def useful(n_threads: int, size: int) -> int:
    """Limit the number of threads to what `size` values are worth."""
    return max(1, min(n_threads, size // WORK))


def spread(n_threads: int, n_tasks: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run ``kernel(first, last, *args)`` over the tasks, cut into one range for each thread."""
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
