"""Pictures of the results, as PNG: against others, by shape, against the memory, by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bncore.programs import look
from bncore.programs.bench.cases import LAYOUTS, SHAPES, SWEPT, Case, Shape, layouts_of, named
from bncore.programs.bench.overview import NETWORK, OPERATIONS, PEERS, in_rows, overview
from bncore.programs.bench.results import Results, Row, Times, times_of
from bncore.programs.bench.tables import BNCORE

# The lines of the operations in a picture of bncore alone.
STYLES = {"train": "-", "train_backward": "--", "infer": ":"}
TICKS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw all pictures that the rows allow into an existing folder; return the files."""
    times = times_of(results.rows)
    made: dict[str, Figure | None] = {"overview.png": overview(times)}
    for operation in OPERATIONS:
        made[f"shapes-{operation}.png"] = by_shape(times, operation)
    made["limit.png"] = share_of_limit(times)
    made["sizes.png"] = throughput(times, results.caches)
    made["scaling.png"] = scaling(times)
    written = []
    for name, figure in made.items():
        if figure is not None:
            look.save(figure, folder / name)
            written.append(folder / name)
    return written


def plain(case: Case, threads: int) -> bool:
    """Tell whether a case is float32 with a given output, warm caches and so many threads."""
    wanted = (threads, "float32", "given", "warm")
    return (case.threads, case.dtype, case.output, case.caches) == wanted


def shown(times: Times) -> list[Shape]:
    """Choose the shapes of one network if all were measured, otherwise all shapes."""
    present = list(dict.fromkeys(case.shape for case in times if case.operation in OPERATIONS))
    network = SHAPES[NETWORK]
    if set(network) <= set(present):
        return network
    return [shape for shape in present if shape not in SWEPT] or present


def select(times: Times, operation: str, layout: str, threads: int) -> dict[Shape, dict[str, Row]]:
    """Find the plain cases of an operation, by shape."""
    return {
        case.shape: found
        for case, found in times.items()
        if BNCORE in found and plain(case, threads)
        and (case.operation, case.layout) == (operation, layout)
    }  # fmt: skip


def faster(found: dict[str, Row] | None, names: Iterable[str]) -> float:
    """Return the ratio of the fastest of some peers to bncore, or NaN if none was measured."""
    taken = [found[name].median for name in names if name in found] if found else []
    return min(taken) / found[BNCORE].median if found and taken else float("nan")


def by_shape(times: Times, operation: str) -> Figure | None:
    """Draw how many times faster bncore is for every shape, with a panel for each layout."""
    chosen = {layout: select(times, operation, layout, 1) for layout in LAYOUTS}
    shapes = shown(times)
    lines = {
        (layout, peer): [faster(found.get(shape), names) for shape in shapes]
        for layout, found in chosen.items()
        for peer, (_, names) in PEERS.items()
        if any(name in rows for rows in found.values() for name in names)
    }
    if not lines:
        return None
    made, panels = look.figure(rows=len(LAYOUTS), height=2.7, sharex=True, sharey=True)
    for axes, layout in zip(panels[:, 0], LAYOUTS, strict=True):
        drawn = []
        for peer, (colour, _) in PEERS.items():
            if (layout, peer) in lines:
                values = lines[layout, peer]
                axes.plot(range(len(shapes)), values, "o-", color=colour)
                drawn.append((peer, colour, range(len(shapes)), values))
        ratios_on(axes)
        look.describe(axes, layout)
        at_shapes(axes, shapes)
        look.names_at_ends(axes, drawn)
    look.head(made, f"Times faster than others: {OPERATIONS[operation]}, one thread")
    return made


def ratios_on(axes: Any) -> None:
    """Make the axis one of ratios, with a line at 1."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 0.9), max(high, 1.1)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)
    axes.axhline(1.0, color=look.INK, linewidth=1)
    axes.grid(axis="y", color=look.FAINT)


def at_shapes(axes: Any, shapes: Sequence[Shape]) -> None:
    """Name the shapes below the panel."""
    axes.set_xticks(
        range(len(shapes)), [named(shape) for shape in shapes], rotation=40, ha="right",
        rotation_mode="anchor", fontsize=8.5,
    )  # fmt: skip


def share_of_limit(times: Times) -> Figure | None:
    """Draw bncore's speed as a share of what the memory allows, which is at most 1."""
    shapes = shown(times)
    lines = {
        (layout, operation): [
            found[shape][BNCORE].limit_share if shape in found else float("nan") for shape in shapes
        ]
        for layout in LAYOUTS
        for operation in OPERATIONS
        if (found := select(times, operation, layout, 1))
    }
    if not lines:
        return None
    made, panels = look.figure(rows=len(LAYOUTS), height=2.7, sharex=True, sharey=True)
    for axes, layout in zip(panels[:, 0], LAYOUTS, strict=True):
        drawn = []
        here = [shape for shape in shapes if layout in layouts_of(shape)]
        for operation, said in OPERATIONS.items():
            if (layout, operation) in lines:
                values = lines[layout, operation][: len(here)]
                axes.plot(range(len(here)), values, STYLES[operation], marker="o", color=look.OWN)
                drawn.append((said, look.OWN, range(len(here)), values))
        axes.set_ylim(0, 1.03)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "limit"])
        axes.axhline(1.0, color=look.INK, linewidth=1)
        axes.grid(axis="y", color=look.FAINT)
        look.describe(axes, layout)
        at_shapes(axes, shapes)
        look.names_at_ends(axes, drawn)
    look.head(made, "Share of the memory's speed that bncore reaches")
    return made


def scaling(times: Times) -> Figure | None:
    """Draw how many times faster two threads are than one, for bncore and the others."""
    sides = {"bncore": (look.OWN, (BNCORE,)), **PEERS}
    rows: dict[str, dict[str, list[float]]] = {}
    for operation, said in OPERATIONS.items():
        for layout in LAYOUTS:
            one, two = (select(times, operation, layout, threads) for threads in (1, 2))
            for shape in (shape for shape in shown(times) if shape in one and shape in two):
                for side, (_, names) in sides.items():
                    gains = [
                        one[shape][n].median / two[shape][n].median
                        for n in names
                        if n in one[shape] and n in two[shape]
                    ]
                    if gains:
                        row = rows.setdefault(f"{said},\n{layout}", {})
                        row.setdefault(side, []).append(max(gains))
    if not rows:
        return None
    made = in_rows(rows, {side: colour for side, (colour, _) in sides.items()}, "slower | faster")
    look.head(made, "How many times faster two threads are than one")
    return made


def throughput(times: Times, caches: list[dict[str, Any]]) -> Figure | None:
    """Draw the bytes per second of training against the size of x, and mark the caches."""
    sizes = set(SHAPES["sizes"])
    lines: dict[str, list[tuple[int, float]]] = {}
    for case, found in times.items():
        wanted = (case.operation, case.layout) == ("train", LAYOUTS[0]) and plain(case, 1)
        if wanted and case.shape in sizes and BNCORE in found:
            add_points(lines, case, found)
    lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    made, panels = look.figure(height=3.4)
    axes = panels[0, 0]
    colours = {BNCORE: look.OWN, "PyTorch": look.PYTORCH, "streaming copy": look.PLAIN}
    drawn = []
    for name, points in lines.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, ":" if name == "streaming copy" else "-", color=colours[name])
        drawn.append((name, colours[name], xs, ys))
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    for cache in caches:
        axes.axvline(cache["bytes"], color=look.FAINT, zorder=0)
        axes.text(cache["bytes"], axes.get_ylim()[1], f" L{cache['level']}", va="top", fontsize=9)
    ticks = [2**e for e in range(10, 30, 4)]
    axes.set_xticks(ticks, [f"{t >> 10} KB" if t < 2**20 else f"{t >> 20} MB" for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color=look.FAINT)
    look.describe(axes, x="size of x (float32, channels first)", y="GB/s of x and y")
    look.names_at_ends(axes, drawn)
    look.head(made, "Speed of training forward against size, one thread")
    return made


def add_points(lines: dict[str, list[tuple[int, float]]], case: Case, rows: dict[str, Row]) -> None:
    """Add the throughput of a case to its lines."""
    for name in (BNCORE, "PyTorch"):
        if name in rows:
            lines.setdefault(name, []).append((case.x_bytes, rows[name].gb_per_s))
    copy = rows[BNCORE].copy
    if copy == copy:
        lines.setdefault("streaming copy", []).append((case.x_bytes, 2 * case.x_bytes / copy / 1e9))
