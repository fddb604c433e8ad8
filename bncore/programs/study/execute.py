"""Run many trainings, in several processes of one thread each.

The networks are so small that a second thread would wait more than it works, but a second process
halves the time. A result does not depend on the process that computed it, or on the order.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from threadpoolctl import threadpool_limits

import bncore
from bncore.programs import terminal
from bncore.programs.study.training import Outcome, Setting, train

Results = dict[Setting, Outcome]
TOGETHER = 8  # settings that a process takes at a time


def _one_thread() -> None:
    """Set up a worker: one thread for BLAS and for bncore."""
    threadpool_limits(1)
    bncore.set_num_threads(1)


def run(
    settings: Iterable[Setting],
    *,
    workers: int | None = None,
    advance: Callable[[float], None] = lambda cost: None,
) -> Results:
    """Train every setting once.

    Parameters
    ----------
    settings : iterable of Setting
        The settings; equal ones are trained once.
    workers : int, optional
        The number of processes; by default the number of threads that bncore would use.  With 1 the
        trainings run in this process.
    advance : callable
        A function that is called with the cost of each finished training.

    Examples
    --------
    >>> outcomes = run([Setting(epochs=1), Setting(epochs=1)], workers=1)
    >>> len(outcomes)
    1
    """
    # Start the longest first, so that no process still has a long one at the end.
    todo = sorted(set(settings), key=lambda setting: (-setting.cost, setting))
    found: Results = {}
    for setting, outcome in zip(todo, _outcomes(todo, workers), strict=True):
        found[setting] = outcome
        advance(setting.cost)
    return found


def keep(results: Results, path: Path) -> None:
    """Keep the results in a file, from which pictures can be drawn again without training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        pickle.dump(results, file)


def read(path: Path) -> Results:
    """Read results that `keep` has written.  A pickle runs code: read only files of your own."""
    with gzip.open(path, "rb") as file:
        found: Results = pickle.load(file)
    return found


def _outcomes(todo: list[Setting], workers: int | None) -> Iterator[Outcome]:
    workers = workers or bncore.get_num_threads()
    if workers == 1:
        with threadpool_limits(1):
            yield from map(train, todo)
        return
    # Spawned, not forked: this process may have threads, which a fork would break.
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        yield from pool.map(train, todo, chunksize=TOGETHER)


@contextmanager
def progress_bar(settings: Iterable[Setting]) -> Iterator[Callable[[float], None]]:
    """Show how far the trainings are; yields the `advance` of `run`."""
    todo = set(settings)
    total = sum(setting.cost for setting in todo)
    done = 0.0
    with terminal.progress_bar() as show:

        def advance(cost: float) -> None:
            nonlocal done
            done += cost
            show(total, done, f"{len(todo):,} trainings")

        show(total, done, f"{len(todo):,} trainings")
        yield advance
