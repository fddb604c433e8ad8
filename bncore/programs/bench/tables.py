"""Tables of the results, which can be shown in a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bncore.programs.bench.cases import Case, named
from bncore.programs.bench.peers import OWN, PEERS
from bncore.programs.bench.results import Results, Row, Times, geometric_mean, times_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

BNCORE, GIVEN = (PEERS[key].name for key in (OWN, "given"))
GAP = 2  # characters between two columns in a terminal
RETURNED = {"given": "", "returned": ", output returned", "pooled": ", output returned, pool on"}


@dataclass
class Table:
    """A title, the heads of the columns, and lines of text.

    A terminal that is too narrow gets the `short` table instead, if there is one.
    """

    title: str
    head: Sequence[str]
    lines: list[list[str]] = field(default_factory=list)
    short: Table | None = None

    def markdown(self) -> str:
        """Write it for a page, without the title."""
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        return "\n".join(f"| {' | '.join(line)} |" for line in [list(self.head), rule, *self.lines])

    def rich(self, width: int = 80) -> list[RichTable]:
        """Make it ready for a terminal of this width, as several tables if it is wider than that.

        Each of these tables has the first column and some of the others.
        """
        whole = [self._whole(number) for number in range(len(self.head))]
        if self.short is not None and sum(whole) + GAP * (len(whole) - 1) > width:
            return self.short.rich(width)
        least = [self._least(number) for number in range(len(self.head))]
        least[0] = max(least[0], min(whole[0], width // 3))
        parts: list[list[int]] = []
        left = 0
        for number in range(1, len(self.head)):
            needed = GAP + least[number]
            if not parts or needed > left:
                parts.append([0])
                left = width - least[0]
            parts[-1].append(number)
            left -= needed
        heads = [max(len(name), most) for name, most in zip(self.head, whole, strict=True)]
        made = []
        for numbers in parts:
            widths = {number: least[number] for number in numbers}
            left = width - sum(widths.values()) - GAP * (len(numbers) - 1)
            for wanted in (whole, heads):  # cells of one line come first, then heads of one line
                for number in numbers:
                    more = max(0, min(wanted[number] - widths[number], left))
                    widths[number] += more
                    left -= more
            made.append(self._part(widths, "" if numbers is parts[0] else " (continued)"))
        return made

    def _cells(self, number: int) -> list[str]:
        return [line[number] for line in self.lines if number < len(line)]

    def _whole(self, number: int) -> int:
        """Return the width of a column whose cells have one line each; heads may have several."""
        return max(len(text) for text in (*self.head[number].split(), *self._cells(number)))

    def _least(self, number: int) -> int:
        """Return the width of the longest word of a column, or number with its unit."""
        texts = (text.replace(" µs", "_µs") for text in (self.head[number], *self._cells(number)))
        return max(len(word) for text in texts for word in text.split() or [""])

    def _part(self, widths: dict[int, int], suffix: str) -> RichTable:
        """Make a table of some columns."""
        from rich import box
        from rich.table import Table as RichTable

        made = RichTable(
            title=self.title + suffix, title_justify="left", title_style="bold",
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        for number, width in widths.items():
            made.add_column(self.head[number], justify="right" if number else "left", width=width)
        for line in self.lines:
            made.add_row(*(line[number] if number < len(line) else "" for number in widths))
        return made


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three significant digits."""
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
    """Make the tables of every case: bncore's figures, and the others' times with their ratios.

    The short tables have the ratios without the times.
    """
    tables = []
    for title, cases in by_kind(rows).items():
        others = others_in(cases.values())
        head = ["shape", f"{BNCORE}, ms", "quartiles", "GB/s", "of the limit", "ulp"]
        table = Table(title, [*head, *(f"{name}, ms" for name in others)])
        table.short = Table(
            f"{title}; others: times of bncore's", ["shape", head[1], *head[4:], *others]
        )
        for case, found in cases.items():
            line, short = _shape_lines(case, found, others)
            table.lines.append(line)
            table.short.lines.append(short)
        tables.append(table)
    return tables


def _shape_lines(
    case: Case, found: dict[str, Row], others: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the line of a case, whole and short."""
    own = found[BNCORE]
    shape = named(case.shape) + (", last" if case.layout == "channels last" else "")
    time = milliseconds(own.median)
    share = f"{own.limit_share:.0%}" if own.limit_share == own.limit_share else ""
    quartiles = f"{milliseconds(own.low)} to {milliseconds(own.high)}"
    line = [shape, time, quartiles, f"{own.gb_per_s:.3g}", share, f"{own.ulp:.2g}"]
    short = [shape, time, share, f"{own.ulp:.2g}"]
    for name in others:
        row = found.get(name)
        line.append(f"{milliseconds(row.median)} ({row.median / own.median:.2f}×)" if row else "")
        short.append(f"{row.median / own.median:.2f}×" if row else "")
    return line, short


def summary_table(rows: Iterable[Row]) -> Table:
    """Make the table of the others' times relative to bncore's: geometric mean and worst shape."""
    grouped: dict[tuple[str, str], Times] = {}
    for title, cases in by_kind(rows).items():
        for case, found in cases.items():
            grouped.setdefault((title, case.layout), {})[case] = found
    others = others_in(found for cases in grouped.values() for found in cases.values())
    title = "Times of others, in times of bncore's"
    table = Table(title, ["operation, layout", *others])
    table.short = Table(f"{title}: geometric mean (worst shape)", table.head)
    for (kind_of, layout), cases in grouped.items():
        line = [f"{kind_of}, {layout}"]
        short = line.copy()
        for name in others:
            ratios = {
                case: found[name].median / found[BNCORE].median
                for case, found in cases.items()
                if name in found
            }
            if not ratios:
                line.append("")
                short.append("")
                continue
            worst = min(ratios, key=ratios.__getitem__)
            mean = f"{geometric_mean(ratios.values()):.2f}"
            line.append(f"{mean} ({ratios[worst]:.2f} at {named(worst.shape)})")
            short.append(f"{mean} ({ratios[worst]:.2f})")
        table.lines.append(line)
        table.short.lines.append(short)
    return table


# bncore with other instructions is compared with the peer that has the same ones.
RIVALS = {PEERS["torch_avx2"].name: PEERS["avx2"].name}
OURS = {entry.name for entry in PEERS.values() if entry.module == "own"}


class Compared(NamedTuple):
    """A peer beside bncore on a case: its time in times of bncore's."""

    ratio: float
    peer: str
    own: Row
    case: Case

    @property
    def where(self) -> str:
        """Name the case."""
        return f"{kind(self.case)}, {self.case.layout}, {named(self.case.shape)}"


def comparisons(rows: Iterable[Row]) -> list[Compared]:
    """Compare each peer with bncore on every case that both have, the fastest peers first."""
    found = []
    for case, timed in times_of(rows).items():
        for name in timed.keys() - OURS:
            own = timed.get(RIVALS.get(name, BNCORE))
            if own is not None:
                found.append(Compared(timed[name].median / own.median, name, own, case))
    return sorted(found, key=lambda compared: compared.ratio)


def peers_ahead(rows: Iterable[Row]) -> Table:
    """List the cases in which a peer is faster than bncore, the clearest first."""
    head = ["case", "peer", "its time in bncore's", "bncore, ms", "quartiles"]
    table = Table("Where a peer is faster", head)
    for compared in comparisons(rows):
        if compared.ratio < 1:
            own = compared.own
            table.lines.append(
                [
                    compared.where,
                    compared.peer,
                    f"{compared.ratio:.2f}",
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
