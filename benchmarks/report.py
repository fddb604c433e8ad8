"""Measure bncore against NumPy and PyTorch and write what came out.

    python benchmarks/report.py                      print it
    python benchmarks/report.py --write README.md    also put it between the markers of README.md

Contestants take turns, so all of them meet the same noise; times are medians. Ratios hold on this
machine and in this run; absolute times elsewhere will differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import figures
from cases import LAYOUTS
from contestants import native_module
from figures import MEAN_OVER_STD, NETWORK, OPERATIONS, geometric_mean, ratios

BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def name_of(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def speed_table(rows: list[dict[str, Any]]) -> str:
    others = list(rows[0]["seconds"])[1:]
    lines = []
    for operation in OPERATIONS:
        for layout in LAYOUTS:
            line = [f"{operation}, {layout}"]
            for other in others:
                by_shape = ratios(rows, operation, layout, other)
                worst = min(by_shape, key=by_shape.__getitem__)
                line.append(
                    f"{geometric_mean(list(by_shape.values())):.2f} "
                    f"({by_shape[worst]:.2f} at {name_of(worst)})"
                )
            lines.append(line)
    return table(["operation, layout", *others], lines)


def shape_table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["seconds"])
    lines = []
    for row in rows:
        line = [f"{row['operation']}, {row['layout']}, {name_of(row['shape'])}"]
        for name in names:
            s = row["seconds"][name]
            line.append(f"{s['median'] * 1e3:.3f} ({s['low'] * 1e3:.3f} to {s['high'] * 1e3:.3f})")
        own = row["seconds"][names[0]]["median"]
        lines.append([*line, f"{row['bytes'] / own / 1e9:.1f}"])
    return table(["operation, layout, shape", *names, f"GB/s, {names[0]}"], lines)


def accuracy_table(errors: dict[str, list[float]]) -> str:
    return table(
        ["mean/std", *(f"{ratio:g}" for ratio in MEAN_OVER_STD)],
        [
            [name, *(f"{e:.2f}" if e < 100 else f"{e:.0f}" for e in errors[name])]
            for name in sorted(errors, key=lambda name: name.rpartition(",")[2])
        ],
    )


def gates(data: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Each promise: what, how it must be, how it is, and whether it is kept."""
    rows, found = data["speed"], []

    def at_least(what: str, operation: str, layout: str, least: float) -> None:
        by_shape = list(ratios(rows, operation, layout, "PyTorch").values())
        if by_shape:
            mean = geometric_mean(by_shape)
            found.append((what, f"≥ {least:g}×", f"{mean:.2f}×", mean >= least))

    def at_most(what: str, value: float, most: float, unit: str) -> None:
        found.append((what, f"≤ {most:g}{unit}", f"{value:.3g}{unit}", value <= most))

    at_least("train, channels first, against PyTorch", "train", LAYOUTS[0], 4)
    at_least("train, channels last, against PyTorch", "train", LAYOUTS[1], 1)
    at_least("backward, channels first, against PyTorch", "train_backward", LAYOUTS[0], 3)
    against_numba = [
        geometric_mean(list(ratios(rows, operation, layout, "bncore numba").values()))
        for operation in OPERATIONS
        for layout in LAYOUTS
    ]
    at_most("Numba's time against native's, worst operation", max(against_numba), 1.5, "×")
    tiny = data["tiny"]
    at_most("train on 1×16×4×4, output returned", tiny["bncore"] * 1e6, 3, " µs")
    if "PyTorch" in tiny:
        at_most("the same against PyTorch's", tiny["bncore"] / tiny["PyTorch"], 0.5, "×")
    at_most("subnormal against normal input", max(data["subnormal"].values()), 1.5, "×")
    own = [ulp for name, ulps in data["accuracy"].items() if "bncore" in name for ulp in ulps]
    at_most("float32 forward error, every backend", max(own), 3, " ulp")
    return found


def markdown(data: dict[str, Any]) -> str:
    best = next(iter(data["speed"][0]["seconds"]))
    compile_time = data["numba compile time"]
    fresh, cached = (compile_time[state] for state in ("nothing cached", "cached"))
    verdicts = [[a, b, c, "yes" if kept else "**no**"] for a, b, c, kept in gates(data)]
    return "\n\n".join(
        [
            "Measured by `make report` on: "
            + "; ".join(f"{what} {fact}" for what, fact in data["machine"].items())
            + ".",
            f"Speed: how many times the time of {best} the others take. float32, one thread, "
            f"outputs preallocated (not in the NumPy formula), the nine shapes of `{NETWORK}` in "
            "`benchmarks/shapes.json`: geometric mean, and the worst shape for bncore.",
            speed_table(data["speed"]),
            "Accuracy: largest error of training forward, in ulp of |weight·x̂| + |bias|, against "
            "the formula in extended precision. Four channels of a million normal float32 values.",
            accuracy_table(data["accuracy"]),
            "Promises:",
            table(["figure", "must be", "is", "kept"], verdicts),
            f"Numba's first call in a fresh process: train {fresh[0]:.1f} s, backward "
            f"{fresh[1]:.1f} s; with its kernels cached on disk {cached[0]:.2f} s and "
            f"{cached[1]:.2f} s.",
            "<details><summary>Milliseconds of every shape: median (and quartiles) of "
            f"{data['repeats']} interleaved repeats</summary>",
            shape_table(data["speed"]),
            "</details>",
        ]
    )


def write_between_markers(path: Path, text: str) -> None:
    page = path.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not marked.search(page):
        sys.exit(f"{path} has no markers {BEGIN} and {END}")
    path.write_text(marked.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=11, help="rounds of each timing (11)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page with the markers")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args()

    if native_module() is None:
        sys.exit("bncore's native extension is not built; the report is about it")

    def progress(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    data = {
        "machine": figures.machine(),
        "repeats": options.repeats,
        "tiny": figures.tiny_call(),
        "subnormal": figures.subnormal_ratio(),
        "numba compile time": figures.numba_compile_time(),
        "accuracy": figures.accuracy(progress),
        "speed": figures.speed(options.repeats, progress),
    }
    text = markdown(data)
    print(text)
    if options.write:
        write_between_markers(options.write, text)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
