"""The data files of docs/data: what the benchmarks write, and what every picture is drawn from."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bncore.programs.bench.cases import Case, named
from bncore.programs.bench.results import Row

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data"
HEAD = ["operation", "shape", "layout", "dtype", "output", "caches", "threads", "peer"]
HEAD += ["median_us", "low_us", "high_us", "gb_per_s", "limit_share", "ulp", "copy_us"]


def write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a table as a data file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a data file, a dict for each line."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write what was timed."""
    lines = [
        [r.case.operation, named(r.case.shape), r.case.layout, r.case.dtype, r.case.output]
        + [r.case.caches, r.case.threads, r.peer]
        + [f"{seconds * 1e6:.4g}" for seconds in (r.median, r.low, r.high)]
        + [f"{value:.3g}" for value in (r.gb_per_s, r.limit_share, r.ulp)]
        + [f"{r.copy * 1e6:.4g}"]
        for r in rows
        if not r.refused
    ]
    write_csv(path, HEAD, lines)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote; files from before a column was added lack its values."""
    rows = []
    for entry in read_csv(path):
        case = Case(
            entry["operation"],
            tuple(map(int, re.split("[x×]", entry["shape"]))),
            entry["layout"],
            entry["dtype"],
            int(entry["threads"]),
            entry["output"],
            entry.get("caches", "warm"),
        )
        median, low, high, copy = (
            float(entry.get(f"{name}_us", "nan")) * 1e-6
            for name in ("median", "low", "high", "copy")
        )
        share = min(1.0, float(entry["limit_share"]))
        limit = math.nan if math.isnan(share) else share * median
        ulp = float(entry["ulp"])
        rows.append(Row(case, entry["peer"], median, low, high, ulp=ulp, copy=copy, limit=limit))
    return rows
