"""The history of the benchmark: `make report` appends what it measured to docs/data/history.csv.

    python benchmarks/history.py ROWS.csv --date 2026-11-30 --processor EPYC --bncore 0.1.0

An entry has, for each operation, layout and number of threads, the geometric mean of bncore's times
over the shapes of ResNet-50 in float32, and how many times these times the others take.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import data_files
from bncore.programs.bench.cases import SHAPES
from bncore.programs.bench.overview import NETWORK, OPERATIONS, PEERS
from bncore.programs.bench.pictures import plain
from bncore.programs.bench.results import Row, geometric_mean, times_of
from bncore.programs.bench.tables import BNCORE

PATH = data_files.DATA / "history.csv"
HEAD = ["date", "bncore", "processor", "operation", "layout", "threads", "shapes", "bncore_us"]
HEAD += list(PEERS)


def entry(rows: Iterable[Row]) -> list[list[str]]:
    """Return the lines of an entry, without what they have in common."""
    found: dict[tuple[str, str, int], list[dict[str, Row]]] = {}
    shapes = set(SHAPES[NETWORK])
    for case, timed in times_of(rows).items():
        wanted = case.shape in shapes and case.operation in OPERATIONS
        if wanted and plain(case, case.threads) and BNCORE in timed:
            found.setdefault((case.operation, case.layout, case.threads), []).append(timed)
    lines = []
    for (operation, layout, threads), cases in found.items():
        own = geometric_mean(timed[BNCORE].median for timed in cases)
        line = [operation, layout, str(threads), str(len(cases)), f"{own * 1e6:.4g}"]
        for _, names in PEERS.values():
            ratios = [
                min(timed[name].median for name in names if name in timed) / timed[BNCORE].median
                for timed in cases
                if any(name in timed for name in names)
            ]
            line.append(f"{geometric_mean(ratios):.3g}" if ratios else "")
        lines.append(line)
    return lines


def append(rows: Iterable[Row], date: str, bncore: str, processor: str, path: Path = PATH) -> None:
    """Add an entry; one of the same day, version and processor is replaced."""
    common = [date, bncore, processor]
    before = [list(line.values()) for line in data_files.read_csv(path)] if path.exists() else []
    kept = [line for line in before if line[:3] != common]
    data_files.write_csv(path, HEAD, [*kept, *([*common, *line] for line in entry(rows))])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    for name in ("date", "bncore", "processor"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    rows = data_files.read_rows(options.rows)
    append(rows, options.date, options.bncore, options.processor)


if __name__ == "__main__":
    main()
