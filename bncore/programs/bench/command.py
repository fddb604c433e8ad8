"""The command ``python -m bncore bench``: run it, show progress and tables, write files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bncore.backends import native_module, why_missing
from bncore.extras import pip_install
from bncore.programs import terminal
from bncore.programs.bench import busy, machine, plan, promises, summary, tables
from bncore.programs.bench.cases import SWEPT, Case, named
from bncore.programs.bench.results import Results
from bncore.programs.bench.run import Progress, run
from bncore.programs.terminal import console, json_text

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "The benchmark needs rich and matplotlib ({}): {} installs them"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the benchmark, and show the results."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = busy.parse(words) if busy.asked_for(words) else plan.parse(words)
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        sys.exit(MISSING.format(error, pip_install("bench")))
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
    written = write(results, options.output) if options.output else []
    if options.json:
        print(json_text(results.plain()))
        return
    show(results, judge=not options.quick)
    console().print("", f"{time.perf_counter() - start:.0f} s", *written, "", sep="\n")
    console().print(*summary.sentences(results), markup=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show on the error stream which case is being measured."""
    with terminal.progress_bar() as show:

        def progress(total: int, done: int, case: Case) -> None:
            show(total, done, f"{tables.kind(case)}, {case.layout}, {named(case.shape)}")

        yield progress


def show(results: Results, *, judge: bool = True) -> None:
    """Print the tables, with those of the promises if they are to be judged."""
    screen = console()
    show_facts(screen, results.machine)
    ordinary = [row for row in results.rows if row.case.shape not in SWEPT]
    found = [*tables.shape_tables(results.rows), tables.summary_table(ordinary)]
    if judge:
        found.append(promises.table(promises.judged(results.rows, results.resident())))
    found += [tables.peers_ahead(results.rows), tables.refusals(results)]
    for table in found:
        if table.lines:
            show_table(screen, table)


def show_table(screen: Console, table: tables.Table) -> None:
    """Print a table, in parts if the terminal is narrow."""
    for part in table.rich(screen.width):
        screen.print("", part)


def show_busy(options: busy.Options) -> None:
    """Measure beside busy processes, and print the machine, the table and what it comes to."""
    facts = machine.facts(())  # before the busy processes start, because it has the load
    facts["measured"] = f"batch_norm_train, float32, channels first, {options.calls} calls of each"
    with terminal.progress_bar() as progress:
        lines = busy.run(options, progress)
    if options.json:
        plain = [asdict(line) for line in lines]
        print(json_text({"machine": facts, "options": asdict(options), "lines": plain}))
        return
    screen = console()
    show_facts(screen, facts)
    show_table(screen, busy.table(lines, options.threads, options.busy))
    screen.print("")
    for verdict in busy.verdicts(lines, options.threads):
        screen.print(verdict, markup=False)


def show_facts(screen: Console, facts: dict[str, str]) -> None:
    """Print the machine and the software."""
    from rich.padding import Padding

    width = max(map(len, facts)) + 1
    for name, fact in facts.items():
        if width + len(fact) <= screen.width:
            screen.print(f"{name:<{width}}{fact}", markup=False)
        else:
            screen.print(name, Padding(fact, (0, 0, 0, 2)))


def write(results: Results, folder: Path) -> list[Path]:
    """Write JSON and pictures."""
    from bncore.programs.bench.pictures import draw

    path = folder / "results.json"
    results.write(path)
    return [path, *draw(results, folder)]
