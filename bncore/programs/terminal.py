"""What all commands print through: a console of the terminal's width, progress, and JSON.

The width is the terminal's, or COLUMNS, or 80 where the output goes into a file or a pipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Called with the number of steps, how many are done, and what is being done now.
Show = Callable[[float, float, str], None]


def console(*, stderr: bool = False) -> Console:
    """Return a console for results, or one on the error stream."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def progress_bar() -> Iterator[Show]:
    """Show on the error stream how far a command is; the bar is gone when the block is left.

    Yields
    ------
    callable
        Called with the number of steps, how many are done, and what is being done now.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, expand=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(total: float, done: float, what: str) -> None:
            bar.update(task, total=total, completed=done, description=what)

        yield show


def json_text(data: Any) -> str:
    """Write data as JSON, in which numbers that are not finite become null.

    Examples
    --------
    >>> print(json_text({"seconds": [1.5, float("nan")]}))
    {
     "seconds": [
      1.5,
      null
     ]
    }
    """
    return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
