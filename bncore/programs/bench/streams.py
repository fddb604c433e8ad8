"""The speed of the memory: a streaming read and a streaming copy of as many bytes as x has.

NumPy sums an array and copies it.  If Numba is installed, the loops of `compiled_streams.py` do the
same with prefetching and stores past the caches.  The fastest variant for each size counts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from bncore.programs.bench.cases import Array, aligned

try:
    from bncore.programs.bench import compiled_streams as compiled
except ImportError:  # Numba is not installed
    compiled = None  # type: ignore[assignment]

UNIT = 128  # floats; the range of a thread is a multiple of this, so that it has halves


def sum_of_numpy(x: Array, y: Array, first: int, last: int) -> float:
    """Add up x from `first` to `last`."""
    return float(x[first:last].sum())


def copy_of_numpy(x: Array, y: Array, first: int, last: int) -> float:
    """Copy x to y from `first` to `last`."""
    np.copyto(y[first:last], x[first:last])
    return 0.0


# form(x, y, first, last) returns the sum of the values that it read, or 0 if it copied.
FORMS: dict[str, tuple[Any, ...]] = {"read": (sum_of_numpy,), "copy": (copy_of_numpy,)}
# form(x, y, edges, sums) does the same with one thread for each range between two edges.
PARALLEL: dict[str, tuple[Any, ...]] = {"read": (), "copy": ()}
if compiled is not None:
    FORMS = {name: FORMS[name] + compiled.FORMS[name] for name in FORMS}
    PARALLEL = compiled.PARALLEL


class Streams:
    """Two arrays of one size, and their fastest read and copy on up to `threads` threads."""

    def __init__(self, size: int, threads: int) -> None:
        self.threads = threads
        self.values = max(1, -(-size // (4 * UNIT * threads))) * UNIT * threads
        self.x, self.y = (aligned((self.values,), "float32") for _ in range(2))
        self.x[...], self.y[...] = 1.0, 0.0
        self.edges = np.arange(threads + 1) * (self.values // threads)
        self.pool = ThreadPoolExecutor(threads)
        if compiled is not None:
            compiled.set_threads(threads)
        self.call = {name: self.fastest(name) for name in FORMS}

    def fastest(self, name: str) -> Callable[[], Any]:
        """Try every variant, check its result, and keep the one with the best of five times."""
        calls = list(map(self.bound, FORMS[name]))
        if self.threads > 1:
            calls += map(self.bound_pool, FORMS[name])
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
        """Bind a variant to the arrays."""
        x, y, values = self.x, self.y, self.values
        return lambda: form(x, y, 0, values)

    def bound_pool(self, form: Any) -> Callable[[], Any]:
        """Bind a variant to the arrays, with a range for each Python thread."""
        x, y, pool = self.x, self.y, self.pool
        ranges = list(pairwise(self.edges.tolist()))
        return lambda: sum(pool.map(lambda part: form(x, y, *part), ranges))

    def bound_parallel(self, form: Any) -> Callable[[], Any]:
        """Bind a variant to the arrays, with a range for each Numba thread."""
        x, y, edges = self.x, self.y, self.edges
        sums = np.zeros(self.threads, np.float32)
        return lambda: form(x, y, edges, sums)
