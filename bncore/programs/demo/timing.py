"""The clock: call functions in turn, so that all of them have the same noise of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter


def interleaved_times(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the seconds of each call: every function once per round, in a new order each round.

    So no function always profits from what another one leaves in the caches. The first round is not
    counted, because it fills caches, touches new memory, and compiles.
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
