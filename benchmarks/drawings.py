"""Draw the pictures of the documents from the data files of docs/data, and from nothing else.

    make pictures

Nothing is measured: a picture shows what the benchmarks wrote when they last ran.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

import data_files
import history
from bncore.programs import look
from bncore.programs.bench.overview import OPERATIONS
from bncore.programs.bench.pictures import draw, ratios_on
from bncore.programs.bench.results import Results

IMAGES = data_files.ROOT / "docs" / "images"
COLOURS = {"bncore": look.OWN, "PyTorch": look.PYTORCH, "NumPy formula": look.PLAIN}
# The contestants of benchmarks/torch_model.py.
KINDS = {
    "torch": ("PyTorch", look.PYTORCH),
    "convert": ("bncore, after convert", look.OWN),
    "fused": ("bncore, fused modules", look.OWN),
}


def results() -> Results:
    """Read what `make report` measured."""
    about = json.loads((data_files.DATA / "benchmarks.json").read_text(encoding="utf-8"))
    rows = data_files.read_rows(data_files.DATA / "benchmarks.csv")
    return Results(about["machine"], about["caches"], {}, rows=rows)


def accuracy() -> Figure:
    """Draw the largest error of training forward against mean/std, a line for each library."""
    made, panels = look.figure(height=3.6)
    axes = panels[0, 0]
    drawn = []
    lines: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for entry in data_files.read_csv(data_files.DATA / "accuracy.csv"):
        if entry["peer"] in COLOURS:
            xs, ys = lines.setdefault((entry["peer"], entry["layout"]), ([], []))
            xs.append(float(entry["mean_over_std"]))
            ys.append(float(entry["ulp"]))
    for (peer, layout), (xs, ys) in lines.items():
        last = layout == "channels last"
        style = "--" if last else "-"
        axes.plot(xs, ys, style, color=COLOURS[peer], marker="o", markersize=5)
        short = peer.removesuffix(" formula")
        name = short + (", last" if last else "")
        drawn.append((name, COLOURS[peer], xs, ys))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 1e8)
    axes.set_xticks([1, 100, 1e4, 1e6], ["1", "100", "10,000", "1,000,000"])
    axes.set_yticks([1, 1e2, 1e4, 1e6, 1e8], ["1", "100", "10⁴", "10⁶", "10⁸"])
    axes.minorticks_off()
    axes.grid(axis="y", color=look.FAINT)
    look.describe(
        axes,
        x="mean of the data, in standard deviations",
        y="largest error, in ulp; dashed: channels last",
    )
    look.names_at_ends(axes, drawn)
    look.head(made, "Training forward: bncore keeps its digits")
    return made


def model() -> Figure:
    """Draw the time of a training step of a whole model, with PyTorch's batch norm and bncore's."""
    steps: dict[str, dict[str, list[float]]] = {}
    for entry in data_files.read_csv(data_files.DATA / "torch_model.csv"):
        wanted = (entry["network"], entry["dtype"], entry["mode"], entry["isa"])
        if wanted == ("resnet50", "float32", "eager", "") and entry["quantity"] == "processor":
            layout = "channels first" if entry["layout"] == "NCHW" else entry["layout"]
            many = "1 thread" if entry["threads"] == "1" else f"{entry['threads']} threads"
            spread = [float(entry[name]) for name in ("low", "median", "high")]
            steps.setdefault(f"{layout},\n{many}", {})[entry["kind"]] = spread
    made, panels = look.figure(height=0.9 + 1.05 * len(steps))
    axes = panels[0, 0]
    most = max(spread[2] for kinds in steps.values() for spread in kinds.values())
    for place, kinds in enumerate(steps.values()):
        for number, (kind, (name, colour)) in enumerate(KINDS.items()):
            if kind not in kinds:
                continue
            low, middle, high = kinds[kind]
            y = place + (number - 1) * 0.27
            axes.barh(y, middle, 0.22, color=colour, alpha=1.0 if kind != "convert" else 0.6)
            axes.plot([low, high], [y, y], color=look.INK, linewidth=1)
            said = f"{middle:.1f} s" + (f", {name}" if place == 0 else "")
            axes.text(
                high + most * 0.02, y, said, color=colour, va="center", fontsize=9.5,
                fontweight="bold",
            )  # fmt: skip
    axes.set_xlim(0, most * 1.75)
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_yticks(range(len(steps)), list(steps))
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(range(int(most) + 1), [f"{n} s" for n in range(int(most) + 1)])
    look.describe(axes, x="processor time")
    look.head(made, "A training step of ResNet-50 in PyTorch")
    return made


def past() -> Figure:
    """Draw how many times faster than PyTorch bncore was in each entry of the history."""
    lines: dict[tuple[str, str], dict[str, float]] = {}
    when: list[str] = []
    for entry in data_files.read_csv(history.PATH):
        name = f"{entry['date']}\n{entry['processor']}"
        if name not in when:
            when.append(name)
        if entry["threads"] == "1" and entry["PyTorch"]:
            key = (entry["layout"], entry["operation"])
            lines.setdefault(key, {})[name] = float(entry["PyTorch"])
    layouts = sorted({layout for layout, _ in lines})
    made, panels = look.figure(rows=len(layouts), height=2.3, sharex=True, sharey=True)
    for axes, layout in zip(panels[:, 0], layouts, strict=True):
        drawn = []
        for operation, style in zip(OPERATIONS, ("-", "--", ":"), strict=True):
            known = lines.get((layout, operation), {})
            ys = [known.get(name, float("nan")) for name in when]
            axes.plot(range(len(when)), ys, style, color=look.OWN, marker="o")
            drawn.append((OPERATIONS[operation], look.OWN, range(len(when)), ys))
        axes.set_xlim(-0.3, len(when) - 0.7)
        ratios_on(axes)
        axes.set_xticks(range(len(when)), when)
        look.describe(axes, layout)
        look.names_at_ends(axes, drawn)
    look.head(made, "Times faster than PyTorch, run by run")
    return made


def main(images: Path = IMAGES) -> None:
    """Draw everything."""
    images.mkdir(exist_ok=True)
    for path in draw(results(), images):
        print(path)
    for name, figure in (("accuracy", accuracy()), ("model", model()), ("history", past())):
        look.save(figure, images / f"{name}.png")
        print(images / f"{name}.png")


if __name__ == "__main__":
    main()
