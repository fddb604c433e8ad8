"""Tables of the results, which can be shown in a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bncore.programs.bench.cases import Case, named
from bncore.programs.bench.peers import OWN, PEERS
from bncore.programs.bench.results import Results, Row, Times, geometric_mean, times_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

BNCORE, GIVEN = (PEERS[key].name for key in (OWN, "given"))
RETURNED = {"given": "", "returned": ", output returned", "pooled": ", output returned, pool on"}


@dataclass
class Table:
    """A title, the heads of the columns, and lines of text."""

    title: str
    head: Sequence[str]
    lines: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """Write it for a page, without the title."""
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        return "\n".join(f"| {' | '.join(line)} |" for line in [list(self.head), rule, *self.lines])

    def rich(self) -> RichTable:
        """Make it ready for a terminal."""
        from rich.table import Table as RichTable

        made = RichTable(title=self.title, title_justify="left")
        for number, name in enumerate(self.head):
            made.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
        for line in self.lines:
            made.add_row(*line)
        return made


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three significant digits, or in µs if it is short."""
    if seconds < 1e-4:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g}"


def kind(case: Case) -> str:
    """Return all fields of a case except shape and layout, in words."""
    dtype = "" if case.dtype == "float32" else f", {case.dtype}"
    cold = ", cold caches" if case.caches == "cold" else ""
    return f"{case.operation}{dtype}{RETURNED[case.output]}{cold}, {counted(case.threads)}"


def counted(threads: int) -> str:
    """Write a number of threads in words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def others_in(cases: Iterable[dict[str, Row]]) -> list[str]:
    """Return the peers of some cases, in the order of the registry."""
    present = {name for rows in cases for name in rows}
    return [e.name for e in PEERS.values() if e.name in present and e.name != BNCORE]


def by_kind(rows: Iterable[Row]) -> dict[str, Times]:
    """Group the cases by table."""
    grouped: dict[str, Times] = {}
    for case, found in times_of(rows).items():
        if BNCORE in found:
            grouped.setdefault(kind(case), {})[case] = found
    return grouped


def shape_tables(rows: Iterable[Row]) -> list[Table]:
    """Make the tables of every case: bncore's figures, and the others' times with their ratios."""
    tables = []
    for title, cases in by_kind(rows).items():
        others = others_in(cases.values())
        head = ["shape", f"{BNCORE}, ms", "quartiles", "GB/s", "of the limit", "ulp"]
        table = Table(title, [*head, *(f"{name}, ms" for name in others)])
        for case, found in cases.items():
            own = found[BNCORE]
            line = [
                named(case.shape) + (", last" if case.layout == "channels last" else ""),
                milliseconds(own.median),
                f"{milliseconds(own.low)} to {milliseconds(own.high)}",
                f"{own.gb_per_s:.3g}",
                f"{own.limit_share:.0%}" if own.limit_share == own.limit_share else "",
                f"{own.ulp:.2g}",
            ]
            for name in others:
                row = found.get(name)
                line.append(
                    f"{milliseconds(row.median)} ({row.median / own.median:.2f}×)" if row else ""
                )
            table.lines.append(line)
        tables.append(table)
    return tables


def summary_table(rows: Iterable[Row]) -> Table:
    """Make the table of the others' times relative to bncore's: geometric mean and worst shape."""
    grouped: dict[tuple[str, str], Times] = {}
    for title, cases in by_kind(rows).items():
        for case, found in cases.items():
            grouped.setdefault((title, case.layout), {})[case] = found
    others = others_in(found for cases in grouped.values() for found in cases.values())
    table = Table("Times of others, in times of bncore's", ["operation, layout", *others])
    for (title, layout), cases in grouped.items():
        line = [f"{title}, {layout}"]
        for name in others:
            ratios = {
                case: found[name].median / found[BNCORE].median
                for case, found in cases.items()
                if name in found
            }
            if not ratios:
                line.append("")
                continue
            worst = min(ratios, key=ratios.__getitem__)
            line.append(
                f"{geometric_mean(ratios.values()):.2f} "
                f"({ratios[worst]:.2f} at {named(worst.shape)})"
            )
        table.lines.append(line)
    return table


# bncore with other instructions is compared with the peer that has the same ones.
RIVALS = {PEERS["torch_avx2"].name: PEERS["avx2"].name}
OURS = {entry.name for entry in PEERS.values() if entry.module == "own"}


def peers_ahead(rows: Iterable[Row]) -> Table:
    """List the cases in which a peer is faster than bncore, the clearest first."""
    found = []
    for case, timed in times_of(rows).items():
        for name in timed.keys() - OURS:
            own = timed.get(RIVALS.get(name, BNCORE))
            if own is not None and timed[name].median < own.median:
                found.append((timed[name].median / own.median, name, own, case))
    head = ["case", "peer", "its time in bncore's", "bncore, ms", "quartiles"]
    table = Table("Where a peer is faster", head)
    for ratio, name, own, case in sorted(found, key=lambda line: line[0]):
        table.lines.append(
            [
                f"{kind(case)}, {case.layout}, {named(case.shape)}",
                name,
                f"{ratio:.2f}",
                milliseconds(own.median),
                f"{milliseconds(own.low)} to {milliseconds(own.high)}",
            ]
        )
    return table


def refusals(results: Results) -> Table:
    """List the peers that were not timed, and why."""
    table = Table("Not timed", ["peer", "case", "reason"])
    table.lines += [[PEERS[key].name, "all", reason] for key, reason in results.absent.items()]
    reasons: dict[tuple[str, str], list[Case]] = {}
    for row in results.rows:
        if row.refused:
            reasons.setdefault((row.peer, row.refused), []).append(row.case)
    for (name, reason), cases in reasons.items():
        first = f"{kind(cases[0])}, {cases[0].layout}, {named(cases[0].shape)}"
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        table.lines.append([name, first + more, reason.splitlines()[0]])
    return table
