"""The command ``python -m bncore bench``: run it, show progress and tables, write files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bncore.backends import native_module, why_missing
from bncore.programs.bench import busy, machine, plan, promises, tables
from bncore.programs.bench.cases import SWEPT, Case, named
from bncore.programs.bench.results import Results
from bncore.programs.bench.run import Progress, run

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "The benchmark needs rich and matplotlib ({}): pip install 'bncore[bench]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the benchmark, and show the results."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = busy.parse(words) if busy.asked_for(words) else plan.parse(words)
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        sys.exit(MISSING.format(error))
    # Whoever names peers may want to compare them with another backend.
    if (isinstance(options, busy.Options) or not plan.names_peers(words)) and not native_module():
        sys.exit(f"The benchmark needs the native extension: {why_missing('native')}")
    if isinstance(options, busy.Options):
        show_busy(options)
        return
    if options.output:  # make the folder first, so that an error does not lose the results
        options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with progress_bar() as progress:
        results = run(options, progress)
    show(results)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.output:
        for path in write(results, options.output):
            print(path)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show on the error stream which case is being measured."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(
        *Bar.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("starting")

        def progress(total: int, done: int, case: Case) -> None:
            what = f"{tables.kind(case)}, {case.layout}, {named(case.shape)}"
            bar.update(task, total=total, completed=done, description=what)

        yield progress


def show(results: Results) -> None:
    """Print the tables."""
    screen = console()
    show_facts(screen, results.machine)
    ordinary = [row for row in results.rows if row.case.shape not in SWEPT]
    found = [*tables.shape_tables(results.rows), tables.summary_table(ordinary)]
    found.append(promises.table(promises.judged(results.rows, results.resident())))
    found += [tables.peers_ahead(results.rows), tables.refusals(results)]
    for table in found:
        if table.lines:
            screen.print("", table.rich())


def show_busy(options: busy.Options) -> None:
    """Measure beside busy processes, and print the machine, the table and what it comes to."""
    screen = console()
    facts = machine.facts(())  # before the busy processes start, because it has the load
    facts["measured"] = f"batch_norm_train, float32, channels first, {options.calls} calls of each"
    show_facts(screen, facts)
    lines = busy.run(options)
    screen.print("", busy.table(lines, options.threads, options.busy).rich())
    for verdict in busy.verdicts(lines, options.threads):
        screen.print(verdict, highlight=False, markup=False)


def show_facts(screen: Console, facts: dict[str, str]) -> None:
    """Print the machine and the software."""
    for name, fact in facts.items():
        screen.print(f"{name:<12} {fact}", highlight=False)


def console() -> Console:
    """Make a console that does not cut lines off if the output does not go to a terminal."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=240)


def write(results: Results, folder: Path) -> list[Path]:
    """Write JSON and pictures."""
    from bncore.programs.bench.pictures import draw

    path = folder / "results.json"
    results.write(path)
    return [path, *draw(results, folder)]
