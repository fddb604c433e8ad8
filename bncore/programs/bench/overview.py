"""The picture of the whole comparison: how many times faster bncore is, operation by operation.

A point is the geometric mean over the shapes of one network, and the line through it reaches from
the worst shape to the best one.  Left of 1 bncore is the slower one.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from bncore.programs import look
from bncore.programs.bench.cases import LAYOUTS, SHAPES
from bncore.programs.bench.results import Times, geometric_mean
from bncore.programs.bench.tables import BNCORE

NETWORK = "resnet50_n32"
OPERATIONS = {"train": "training", "train_backward": "backward", "infer": "inference"}
# Each library with its colour, in the order of the points in a row, and its names in the results:
# of the two formats that oneDNN offers, the faster one counts for each shape.
PEERS = {
    "PyTorch": (look.PYTORCH, ("PyTorch",)),
    "oneDNN": (look.ONEDNN, ("oneDNN", "oneDNN nChw16c")),
    "NumPy": (look.PLAIN, ("NumPy formula",)),
}
TICKS = [0.25, 0.5, 1, 2, 4, 8, 16, 32]
Ratios = dict[tuple[str, str], dict[str, list[float]]]


def ratios(times: Times, threads: int) -> Ratios:
    """Return the ratios of each library's times to bncore's, by operation and layout."""
    found: Ratios = {}
    shapes = set(SHAPES[NETWORK])
    for case, rows in times.items():
        wanted = (case.threads, case.dtype, case.output) == (threads, "float32", "given")
        if not wanted or case.shape not in shapes or case.operation not in OPERATIONS:
            continue
        if BNCORE not in rows or case.caches != "warm":
            continue
        for peer, (_, names) in PEERS.items():
            taken = [rows[name].median for name in names if name in rows]
            if taken:
                here = found.setdefault((case.operation, case.layout), {})
                here.setdefault(peer, []).append(min(taken) / rows[BNCORE].median)
    return found


def overview(times: Times, threads: int = 1) -> Figure | None:
    """Draw the comparison for one number of threads."""
    found = ratios(times, threads)
    rows = [(o, layout) for o in OPERATIONS for layout in LAYOUTS if (o, layout) in found]
    if not rows:
        return None
    colours = {peer: colour for peer, (colour, _) in PEERS.items()}
    named = {f"{OPERATIONS[o]},\n{layout}": found[o, layout] for o, layout in rows}
    many = "one thread" if threads == 1 else f"{threads} threads"
    made = in_rows(named, colours, "← bncore slower | bncore faster →")
    look.head(made, f"How many times faster bncore is ({many})")
    return made


def in_rows(rows: dict[str, dict[str, list[float]]], colours: dict[str, str], x: str) -> Figure:
    """Draw a row for each name, and in it a point with its spread and its value for each colour.

    Parameters
    ----------
    rows : dict of dict of list
        By the name of the row and that of the colour, the values that the spread reaches over.
    colours : dict of str
        Of the names, in the order of the points in a row.
    x : str
        What the axis shows.  "|" stands below the line at 1.
    """
    made, panels = look.figure(height=0.9 + 0.27 * (len(colours) + 0.25) * len(rows))
    axes = panels[0, 0]
    least = min(min(v) for found in rows.values() for v in found.values())
    most = max(max(v) for found in rows.values() for v in found.values())
    axes.set_xscale("log")
    axes.set_xlim(min(least, 0.7) * 0.85, most * (most / min(least, 0.7)) ** 0.35)
    named: set[str] = set()
    for place, found in enumerate(rows.values()):
        for number, (name, colour) in enumerate(colours.items()):
            if name in found:
                y = place + (number - (len(colours) - 1) / 2) * 0.27
                _point(axes, y, found[name], colour, "" if name in named else f" {name}")
                named.add(name)
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", zorder=0, linewidth=0)
    axes.axvline(1.0, color=look.INK, linewidth=1)
    ticks = [tick for tick in TICKS if least * 0.85 <= tick <= most * 1.3]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=look.FAINT)
    axes.set_axisbelow(True)
    for side, text in zip(("right", "left"), x.split("|"), strict=True):
        axes.annotate(
            text, (1.0, 0.0), xycoords=axes.get_xaxis_transform(), xytext=(0, -22),
            textcoords="offset points", ha=side, va="top", fontsize=9, color=look.PLAIN,
        )  # fmt: skip
    return made


def _point(axes: Any, y: float, values: list[float], colour: str, name: str) -> None:
    mean = geometric_mean(values)
    axes.plot([min(values), max(values)], [y, y], color=colour, linewidth=2.5, alpha=0.4)
    axes.plot([mean], [y], "o", color=colour, markersize=7)
    axes.text(
        max(values) * 1.06, y, f"{mean:.1f}×{name}", color=colour, va="center", ha="left",
        fontsize=9.5, fontweight="bold",
    )  # fmt: skip
