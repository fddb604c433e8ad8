"""The clock: two functions in turn, so that both meet the same noise of the machine."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter


def interleaved_medians(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, called one after the other, `repeats` times round."""
    for function in functions:  # caches, page faults, just-in-time compilation
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for taken, function in zip(seconds, functions, strict=True):
            start = perf_counter()
            function()
            taken.append(perf_counter() - start)
    return [median(taken) for taken in seconds]
