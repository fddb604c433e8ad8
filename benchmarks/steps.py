"""What the benchmarks of the adapters share: times in turns, tables of ratios, pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from bncore.programs.bench import machine
from bncore.programs.bench.cases import SHAPES, named
from bncore.programs.bench.tables import Table, counted

NETWORK = "resnet50_n32"
Calls = dict[str, Callable[[], Any]]
Times = dict[str, dict[str, dict[str, float]]]  # seconds by layout, shape and contestant


def medians(calls: Calls, repeats: int) -> dict[str, float]:
    """Seconds of each call, in turns; what a call returned is gone before the next."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            end = time.perf_counter()
            del result
            if round_:
                taken[name].append(end - start)
    return {name: median(times) for name, times in taken.items()}


def ratio_table(found: dict[int, Times], own: str, other: str) -> Table:
    """How many times own's time the other takes, by shape; columns by layout and threads."""
    columns = {
        f"{layout}, {counted(threads)}": shapes
        for threads, layouts in found.items()
        for layout, shapes in layouts.items()
    }
    table = Table("training step", ["shape", *columns])
    ratios = [[t[other] / t[own] for t in shapes.values()] for shapes in columns.values()]
    for i, shape in enumerate(map(named, SHAPES[NETWORK])):
        table.lines.append([shape, *(f"{column[i]:.2f}×" for column in ratios)])
    table.lines.append(["geometric mean", *(f"{geometric_mean(column):.2f}×" for column in ratios)])
    return table


def made_on(*packages: str) -> str:
    """Say where and with what this was measured; packages as the benchmark names its peers."""
    known = machine.facts(packages)
    del known["load"]
    return "Measured on: " + "; ".join(f"{name} {fact}" for name, fact in known.items()) + "."


def put(page: Path, name: str, text: str) -> None:
    """Put text into a page, between the marks of this name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
