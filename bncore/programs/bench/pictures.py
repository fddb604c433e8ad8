"""Pictures of the results, as PNG: speed, share of the limit, throughput by size, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from bncore.programs.bench.cases import (
    FUSED,
    LAYOUTS,
    MAIN,
    SHAPES,
    SWEPT,
    Case,
    Shape,
    layouts_of,
    named,
)
from bncore.programs.bench.overview import overview
from bncore.programs.bench.peers import PEERS
from bncore.programs.bench.results import Results, Row, Times, times_of
from bncore.programs.bench.tables import BNCORE, GIVEN, counted, others_in

DPI = 80
COLOURS = (
    "#1f6f8b",
    "#d1495b",
    "#edae49",
    "#66a182",
    "#2e4057",
    "#8d6a9f",
    "#a05a2c",
    "#7a7a7a",
    "#5fad9c",
    "#b5838d",
    "#9ad1d4",
    "#c9ada7",
)
DRAWN = (*MAIN, *FUSED)
WRITTEN = {"given": "", "returned": ", returned", "pooled": ", returned; bncore's pool on"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw all pictures that the rows allow into an existing folder; return the files."""
    times = times_of(results.rows)
    threads = sorted({case.threads for case in times})
    made: dict[str, Figure | None] = {f"speed-{n}.png": speed(times, n) for n in threads}
    made["overview.png"] = overview(times)
    made["limit.png"] = share_of_limit(times)
    made["sizes.png"] = throughput(times, results.caches)
    made["scaling.png"] = scaling(times)
    written = []
    for name, figure in made.items():
        if figure is not None:
            save(figure, folder / name)
            written.append(folder / name)
    return written


def beside(size: int) -> dict[str, Any]:
    """Put a legend to the right of its panel, so that it hides nothing."""
    return {"fontsize": size, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}


def save(figure: Figure, path: Path) -> None:
    """Write a picture with few colours, which makes the file a third of the size."""
    whole = BytesIO()
    figure.savefig(whole, dpi=DPI, bbox_inches="tight")
    picture = Image.open(whole).convert("RGB")
    picture.quantize(64).save(path, optimize=True)


def shown(times: Times) -> list[Shape]:
    """Choose the shapes of one network if all were measured, otherwise all shapes."""
    present = list(dict.fromkeys(case.shape for case in times if case.operation in DRAWN))
    network = SHAPES["resnet50_n32"]
    if set(network) <= set(present):
        return network
    return [shape for shape in present if shape not in SWEPT] or present


def drawn(times: Times) -> list[str]:
    """Choose the operations that were measured."""
    present = {case.operation for case in times}
    return [operation for operation in DRAWN if operation in present]


def select(times: Times, **wanted: Any) -> dict[Shape, dict[str, Row]]:
    """Find the float32 cases with these properties, by shape."""
    wanted = {"dtype": "float32"} | wanted
    return {
        case.shape: found
        for case, found in times.items()
        if BNCORE in found and all(getattr(case, name) == value for name, value in wanted.items())
    }


def bars(axes: Any, shapes: list[Shape], series: dict[str, list[float]], from_: float) -> None:
    """Draw groups of bars, one group for each shape; missing values are NaN."""
    width = 0.8 / max(len(series), 1)
    names = [entry.name for entry in PEERS.values()]
    for number, (label, values) in enumerate(series.items()):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(shapes))]
        peer = label.partition(WRITTEN["returned"])[0]
        colour = COLOURS[(names.index(peer) if peer in names else number) % len(COLOURS)]
        heights = [value - from_ for value in values]
        hatch = "//" if label.endswith(WRITTEN["pooled"]) else None
        axes.bar(places, heights, width, bottom=from_, label=label, color=colour, hatch=hatch)
    axes.set_xticks(range(len(shapes)), [named(s) for s in shapes], rotation=30, ha="right")
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def panels(rows: int, columns: int, title: str) -> tuple[Figure, Any]:
    """Make a picture of several, with a title above."""
    figure = Figure(figsize=(6.5 * columns, 2.6 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def speed(times: Times, threads: int) -> Figure | None:
    """Draw the ratio of every peer's time to bncore's; above 1 bncore is faster."""
    chosen = {c: f for c, f in times.items() if c.threads == threads and c.operation in DRAWN}
    shapes = shown(chosen)
    if not shapes:
        return None
    title = f"Times of others, in times of bncore's: {counted(threads)}, float32"
    operations = drawn(chosen)
    figure, grid = panels(len(operations), len(LAYOUTS), title)
    for i, operation in enumerate(operations):
        for j, layout in enumerate(LAYOUTS):
            here = [shape for shape in shapes if layout in layouts_of(shape)]
            series: dict[str, list[float]] = {}
            for output, suffix in WRITTEN.items():
                found = select(chosen, operation=operation, layout=layout, output=output)
                for name in others_in(found.values()):
                    if name == GIVEN or (output != "given" and name in series):
                        continue  # these are only about the pool; preallocated outputs show more
                    series[name + suffix] = [ratio(found.get(shape), name) for shape in here]
            ratio_panel(grid[i][j], here, series, f"{operation}, {layout}")
    return figure


def ratio(found: dict[str, Row] | None, name: str) -> float:
    """Return the ratio of a peer's time to bncore's, or NaN if it was not measured."""
    if not found or name not in found:
        return float("nan")
    return found[name].median / found[BNCORE].median


def ratio_panel(axes: Any, shapes: list[Shape], series: dict[str, list[float]], title: str) -> None:
    """Draw ratios on a logarithmic scale, from 1 up or down."""
    bars(axes, shapes, series, 1.0)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_title(title, fontsize=9)
    if series:
        axes.legend(**beside(6))


def share_of_limit(times: Times) -> Figure | None:
    """Draw bncore's speed as a share of what the memory allows."""
    return by_layout(
        times, "Share of the memory limit that bncore reaches", 1.0,
        lambda case, found: found[BNCORE].limit_share,
    )  # fmt: skip


def scaling(times: Times) -> Figure | None:
    """Draw the ratio of the time on one thread to the time on more."""
    one = {(c.shape, c.layout, c.operation): f for c, f in times.items() if plain(c, 1)}

    def value(case: Case, found: dict[str, Row]) -> float:
        base = one.get((case.shape, case.layout, case.operation), {}).get(BNCORE)
        return base.median / found[BNCORE].median if base else float("nan")

    several = {c: f for c, f in times.items() if c.threads > 1}
    return by_layout(several, "bncore's time on one thread, in times of that on more", 1.0, value)


def plain(case: Case, threads: int) -> bool:
    """Tell whether a case is float32 with a given output and this number of threads."""
    return (case.threads, case.dtype, case.output) == (threads, "float32", "given")


def by_layout(
    times: Times, title: str, line: float, value: Callable[[Case, dict[str, Row]], float]
) -> Figure | None:
    """Draw a property of bncore's rows for every shape, operation and number of threads."""
    shapes = shown(times)
    if not shapes:
        return None
    kinds = ([o for o in drawn(times) if (o in FUSED) is fused] for fused in (False, True))
    columns = [operations for operations in kinds if operations]
    figure, grid = panels(len(LAYOUTS), len(columns), title)
    for i, layout in enumerate(LAYOUTS):
        here = [shape for shape in shapes if layout in layouts_of(shape)]
        for j, operations in enumerate(columns):
            series: dict[str, dict[Shape, float]] = {}
            for case, found in times.items():
                wanted = case.layout == layout and case.operation in operations and BNCORE in found
                if wanted and plain(case, case.threads):
                    label = f"{case.operation}, {counted(case.threads)}"
                    series.setdefault(label, {})[case.shape] = value(case, found)
            lists = {k: [v.get(s, float("nan")) for s in here] for k, v in sorted(series.items())}
            bars(grid[i][j], here, lists, 0.0)
            grid[i][j].axhline(line, color="black", linewidth=1)
            grid[i][j].set_title(layout, fontsize=9)
            if lists:
                grid[i][j].legend(**beside(6))
    return figure


def throughput(times: Times, caches: list[dict[str, Any]]) -> Figure | None:
    """Draw the minimal bytes per second against the size of x, and mark the caches."""
    sizes = set(SHAPES["sizes"])
    lines: dict[str, list[tuple[int, float]]] = {}
    for case, found in times.items():
        if case.shape in sizes and case.layout == LAYOUTS[0] and plain(case, case.threads):
            add_points(lines, case, found.values())
    most = max(map(len, lines.values()), default=0)
    if most < 2:
        return None
    lines = {label: points for label, points in lines.items() if 2 * len(points) > most}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        style = ":" if label.startswith("streaming") else "-" if BNCORE in label else "--"
        axes.plot(*zip(*sorted(points), strict=True), style, marker=".", label=label)
    for cache in caches:
        axes.axvline(cache["bytes"], color="grey", linewidth=1)
        axes.text(cache["bytes"], axes.get_ylim()[1], f" L{cache['level']}", va="top", fontsize=8)
    axes.set_xscale("log", base=2)
    ticks = [2**e for e in range(10, 30, 2)]
    axes.set_xticks(ticks, [f"{t >> 10} KB" if t < 2**20 else f"{t >> 20} MB" for t in ticks])
    axes.set_xlabel("size of x (float32, channels first)")
    axes.set_ylabel("GB/s of minimal traffic")
    axes.set_title("Throughput against size", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(**beside(7))
    return figure


def add_points(lines: dict[str, list[tuple[int, float]]], case: Case, rows: Iterable[Row]) -> None:
    """Add the throughput of a case to its lines."""
    for row in rows:
        label = f"{row.peer}, {case.operation}, {counted(case.threads)}"
        lines.setdefault(label, []).append((case.x_bytes, row.gb_per_s))
        if row.peer == BNCORE and case.operation == "train" and row.copy == row.copy:
            label = f"streaming copy, {counted(case.threads)}"
            lines.setdefault(label, []).append((case.x_bytes, 2 * case.x_bytes / row.copy / 1e9))
