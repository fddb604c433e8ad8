"""The clock: functions in turn, so that all of them meet the same noise of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter


def interleaved_times(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each call: every function once per round, in a new order each round.

    What a function leaves in the caches is thus no lasting gift to another. A first round is not
    counted: it fills caches, touches fresh memory, and compiles.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    shuffle = Random(0).shuffle
    for _ in range(repeats + 1):
        shuffle(order)
        for index in order:
            start = perf_counter()
            functions[index]()
            seconds[index].append(perf_counter() - start)
    return [taken[1:] for taken in seconds]
