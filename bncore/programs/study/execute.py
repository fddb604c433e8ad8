"""Many trainings, in several processes of one thread each.

The networks are so small that a second thread would wait more than it works; a second process
halves the time. Nothing of a result depends on who computed it, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

import bncore
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
        Those that are equal are trained once.
    workers : int, optional
        Processes; as many as bncore would use threads where it is None.  With 1 the trainings run
        in this process.
    advance : callable
        Told the cost of each training that is done.

    Examples
    --------
    >>> outcomes = run([Setting(epochs=1), Setting(epochs=1)], workers=1)
    >>> len(outcomes)
    1
    """
    # The longest first, so that no process is left with one at the end.
    todo = sorted(set(settings), key=lambda setting: (-setting.cost, setting))
    found: Results = {}
    for setting, outcome in zip(todo, _outcomes(todo, workers), strict=True):
        found[setting] = outcome
        advance(setting.cost)
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
def progress_bar(
    console: Console, settings: Iterable[Setting]
) -> Iterator[Callable[[float], None]]:
    """Show how far the trainings are; yields the `advance` of `run`."""
    todo = set(settings)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(
            f"{len(todo):,} trainings", total=sum(setting.cost for setting in todo)
        )
        yield lambda cost: progress.advance(task, cost)
