"""The results of a run: rows, and the file that stores them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bncore.programs.bench.cases import Case


@dataclass(frozen=True)
class Row:
    """One peer on one case: times in seconds, or the reason why there are none."""

    case: Case
    peer: str
    median: float = math.nan
    low: float = math.nan  # quartiles
    high: float = math.nan
    repeats: int = 0
    ulp: float = math.nan
    read: float = math.nan  # seconds of a streaming read of an array of x's size
    copy: float = math.nan
    limit: float = math.nan  # seconds that the minimal traffic takes
    refused: str = ""

    @property
    def limit_share(self) -> float:
        """The share of the speed that the memory allows, at most 1.

        A call that took less time than the streams shows that these were disturbed, or did not use
        what stays in the caches.  Then no better time than the call's own is known.
        """
        return self.limit / max(self.median, self.limit)

    @property
    def gb_per_s(self) -> float:
        """Minimal bytes per second, in units of 1e9."""
        return self.case.minimal_bytes / self.median / 1e9


def timed(case: Case, peer: str, seconds: list[float], **known: Any) -> Row:
    """Make a row from the seconds of every turn."""
    low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Row(case, peer, median(seconds), low, high, len(seconds), **known)


Times = dict[Case, dict[str, Row]]


@dataclass
class Results:
    """All rows of a run, and the machine and software that they come from."""

    machine: dict[str, str]
    caches: list[dict[str, Any]]
    options: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot run here: why
    rows: list[Row] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return everything as data for JSON, each row with the figures derived from it."""
        return {**asdict(self), "rows": [_plain(row) for row in self.rows]}

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> Results:
        """Read the data that `plain` returned."""
        return cls(**{**plain, "rows": [_row(dict(entry)) for entry in plain["rows"]]})

    def write(self, path: Path) -> None:
        """Write everything to a file."""
        path.write_text(json.dumps(self.plain(), indent=1) + "\n", encoding="utf-8")

    def resident(self) -> int:
        """Return the bytes that fit in the outer caches; 1 MiB if their sizes are unknown."""
        return sum(c["bytes"] for c in self.caches if c["level"] > 1) or 2**20


def _plain(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = asdict(row.case) | asdict(row)
    del flat["case"]
    if row.refused:
        return {name: value for name, value in flat.items() if value == value}
    return flat | {
        "minimal_bytes": row.case.minimal_bytes,
        "gb_per_s": row.gb_per_s,
        "limit_share": row.limit_share,
    }


def _row(entry: dict[str, Any]) -> Row:
    for derived in ("minimal_bytes", "gb_per_s", "limit_share"):
        entry.pop(derived, None)
    names = Case.__dataclass_fields__
    case = Case(**{name: entry.pop(name) for name in names})
    return Row(replace(case, shape=tuple(case.shape)), **entry)


def times_of(rows: Iterable[Row]) -> Times:
    """Return the rows that were timed, by case and then by peer."""
    found: Times = {}
    for row in rows:
        if not row.refused:
            found.setdefault(row.case, {})[row.peer] = row
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
