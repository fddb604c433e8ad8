"""The variants of a streaming read and copy that Numba compiles, if it is installed.

The read adds the values that it loads in eight registers.  The copy writes past the caches (LLVM's
``nontemporal`` stores) or with ordinary stores.  Each processes one range or two halves side by
side, and always prefetches.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange

from bncore.programs.bench.lanes import fence, fold, load, prefetch, splat, store, stream

STEP = 64  # floats: four vectors of 16
AHEAD = 4096  # floats

jit = numba.njit(nogil=True)


@jit
def read_step(x, i, a, b, c, d):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add 64 floats to four vectors."""
    for line in range(0, STEP, 16):
        prefetch(x, i + AHEAD + line)
    return a + load(x, i), b + load(x, i + 16), c + load(x, i + 32), d + load(x, i + 48)


@jit
def read_run(x, y, first, last):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add up x from `first` to `last`."""
    a = b = c = d = splat(np.float32(0.0))
    for i in range(first, last, STEP):
        a, b, c, d = read_step(x, i, a, b, c, d)
    return fold((a + b) + (c + d))


@jit
def read_halves(x, y, first, last):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add up x, both halves at the same time."""
    half = (last - first) // 2
    a = b = c = d = e = f = g = h = splat(np.float32(0.0))
    for i in range(first, first + half, STEP):
        a, b, c, d = read_step(x, i, a, b, c, d)
        e, f, g, h = read_step(x, i + half, e, f, g, h)
    return fold(((a + b) + (c + d)) + ((e + f) + (g + h)))


@jit
def copy_run(x, y, first, last):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Copy x to y with ordinary stores."""
    for i in range(first, last, STEP):
        for line in range(i, i + STEP, 16):
            prefetch(x, line + AHEAD)
            store(y, line, load(x, line))
    return np.float32(0.0)


@jit
def copy_past_caches(x, y, first, last):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Copy x to y past the caches, both halves at the same time."""
    half = (last - first) // 2
    for i in range(first, first + half, STEP):
        for run in range(2):
            for line in range(i + run * half, i + run * half + STEP, 16):
                prefetch(x, line + AHEAD)
                stream(y, line, load(x, line))
    fence()
    return np.float32(0.0)


FORMS = {"read": (read_run, read_halves), "copy": (copy_run, copy_past_caches)}


def in_parallel(form: Any) -> Any:
    """Divide the range of a loop into one for each thread."""

    def body(x, y, edges, sums):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
        for part in prange(sums.size):
            sums[part] = form(x, y, edges[part], edges[part + 1])
        return sums.sum()

    return numba.njit(parallel=True)(body)


PARALLEL = {name: tuple(map(in_parallel, forms)) for name, forms in FORMS.items()}


def set_threads(threads: int) -> None:
    """Let the parallel variants use this number of threads."""
    numba.set_num_threads(threads)
