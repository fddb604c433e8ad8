"""One picture of the whole comparison: how many times bncore's time the others take.

A point is the geometric mean over the shapes of one network, and the line through it reaches from
the worst shape to the best one.  Left of the black line bncore is the slower one.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from bncore.programs.bench.cases import LAYOUTS, SHAPES
from bncore.programs.bench.results import Times, geometric_mean
from bncore.programs.bench.tables import BNCORE, counted

NETWORK = "resnet50_n32"
OPERATIONS = {"train": "training", "train_backward": "backward", "infer": "inference"}
# Each peer with its colour, in the order of the points in a row, from above.
PEERS = {
    "PyTorch": "#d1495b",
    "oneDNN": "#1f6f8b",
    "oneDNN nChw16c": "#7fb7c9",
    "ONNX Runtime": "#66a182",
    "NumPy formula": "#7a7a7a",
}
TICKS = [0.25, 0.5, 1, 2, 4, 8, 16]
Ratios = dict[tuple[str, str], dict[str, list[float]]]


def ratios(times: Times, threads: int) -> Ratios:
    """Return the ratios of each peer's times to bncore's, by operation and layout."""
    found: Ratios = {}
    shapes = set(SHAPES[NETWORK])
    for case, rows in times.items():
        wanted = (case.threads, case.dtype, case.output) == (threads, "float32", "given")
        if not wanted or case.shape not in shapes or case.operation not in OPERATIONS:
            continue
        if BNCORE not in rows:
            continue
        for peer in PEERS.keys() & rows.keys():
            here = found.setdefault((case.operation, case.layout), {})
            here.setdefault(peer, []).append(rows[peer].median / rows[BNCORE].median)
    return found


def overview(times: Times) -> Figure | None:
    """Draw the comparison with the peers, with a panel for each number of threads."""
    threads = sorted({case.threads for case in times})
    panels = {n: found for n in threads if (found := ratios(times, n))}
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    figure.suptitle(
        "Time of other libraries, in times of bncore's (float32, shapes of ResNet-50, batch 32)",
        fontsize=11,
    )
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (n, found) in zip(grid[0], panels.items(), strict=True):
        panel(axes, found)
        axes.set_title(counted(n), fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PEERS), fontsize=8)
    return figure


def panel(axes: Any, found: Ratios) -> None:
    """Draw a row for each operation and layout, with a point for each peer."""
    rows = [(operation, layout) for operation in OPERATIONS for layout in LAYOUTS]
    for number, (peer, colour) in enumerate(PEERS.items()):
        label: str | None = peer
        for place, row in enumerate(rows):
            values = found.get(row, {}).get(peer)
            if not values:
                continue
            y = place + (number - (len(PEERS) - 1) / 2) * 0.15
            axes.plot([min(values), max(values)], [y, y], color=colour, linewidth=1.5)
            axes.plot([geometric_mean(values)], [y], "o", color=colour, markersize=5, label=label)
            label = None  # one entry in the legend
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}×" for tick in TICKS])
    axes.minorticks_off()
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [f"{OPERATIONS[operation]}, {layout}" for operation, layout in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    for side, text in (("right", "bncore slower ←  "), ("left", "  → bncore faster")):
        # The two texts meet below the line at 1×, wherever it is in the panel.
        axes.annotate(
            text, (1.0, 0.0), xycoords=axes.get_xaxis_transform(), xytext=(0, -20),
            textcoords="offset points", ha=side, va="top", fontsize=8,
        )  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
