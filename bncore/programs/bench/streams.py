"""What the memory gives: a streaming read and a streaming copy of as many bytes as x has.

Loops of 16 floats (:mod:`bncore.backends.numba.lanes`), compiled by Numba: the read adds up what it
loads in eight registers; the copy writes past the caches (LLVM's ``nontemporal`` stores), or with
ordinary stores.  Each comes in the forms below, and the fastest for a size counts: one run or two
halves side by side, always fetching ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numba
import numpy as np
from numba import prange

from bncore.backends.numba.lanes import fence, fold, load, prefetch, splat, store, stream
from bncore.programs.bench.cases import aligned

STEP = 64  # floats: four vectors of 16
AHEAD = 4096  # floats
UNIT = 2 * STEP  # what a range is a multiple of, so that it has halves

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
    """Cut the range of a loop into one for each thread."""

    def body(x, y, edges, sums):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
        for part in prange(sums.size):
            sums[part] = form(x, y, edges[part], edges[part + 1])
        return sums.sum()

    return numba.njit(parallel=True)(body)


PARALLEL = {name: tuple(map(in_parallel, forms)) for name, forms in FORMS.items()}


class Streams:
    """Two arrays of a size, and the fastest read and copy of them on up to `threads` threads."""

    def __init__(self, size: int, threads: int) -> None:
        self.threads = threads
        self.values = max(1, -(-size // (4 * UNIT * threads))) * UNIT * threads
        self.x, self.y = (aligned((self.values,), "float32") for _ in range(2))
        self.x[...], self.y[...] = 1.0, 0.0
        numba.set_num_threads(threads)
        self.call = {name: self.fastest(name) for name in FORMS}

    def fastest(self, name: str) -> Callable[[], Any]:
        """Try every form, check what it did, and keep the one with the best of five times."""
        calls = list(map(self.bound, FORMS[name]))
        if self.threads > 1:
            calls += map(self.bound_parallel, PARALLEL[name])
        best = []
        for call in calls:
            self.y[...] = 0.0
            result = call()
            right = result == 0.0 if name == "copy" else abs(result / self.values - 1.0) < 1e-3
            if not right or (name == "copy" and not np.array_equal(self.x, self.y)):
                raise AssertionError(f"the streaming {name} is wrong")
            taken = []
            for _ in range(5):
                start = perf_counter()
                call()
                taken.append(perf_counter() - start)
            best.append(min(taken))
        return calls[best.index(min(best))]

    def bound(self, form: Any) -> Callable[[], Any]:
        """Bind a form to the arrays."""
        x, y, values = self.x, self.y, self.values
        return lambda: form(x, y, 0, values)

    def bound_parallel(self, form: Any) -> Callable[[], Any]:
        """Bind a form to the arrays, a part for each thread."""
        x, y = self.x, self.y
        edges = np.arange(self.threads + 1) * (self.values // self.threads)
        sums = np.zeros(self.threads, np.float32)
        return lambda: form(x, y, edges, sums)
