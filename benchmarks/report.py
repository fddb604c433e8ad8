"""Measure bncore and its peers, and write the README's block, docs/benchmarks.md and its pictures.

    python benchmarks/report.py                     measure everything and write the pages
    python benchmarks/report.py --quick             a quick run instead
    python benchmarks/report.py --from report.json  write the pages anew from figures kept

Ratios hold on this machine and in this run; absolute times elsewhere will differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import figures
from bncore.backends import native_module
from bncore.programs.bench import promises, tables
from bncore.programs.bench.cases import FUSED, LAYOUTS, SHAPES
from bncore.programs.bench.command import progress_bar
from bncore.programs.bench.pictures import draw
from bncore.programs.bench.plan import NETWORKS, parse
from bncore.programs.bench.promises import About, Ratio
from bncore.programs.bench.results import Results
from bncore.programs.bench.run import run
from bncore.programs.bench.tables import Table

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
PICTURES = {
    "speed-1.png": "Times of others in times of bncore's, one thread, by shape",
    "speed-2.png": "Times of others in times of bncore's, two threads, by shape",
    "limit.png": "Share of the memory limit that bncore reaches, by shape",
    "sizes.png": "Throughput against size, with the caches marked",
    "scaling.png": "Time on one thread in times of that on two, by shape",
}
# What the first release promised of its speed, one thread; the promises of today go further.
BASE = [
    Ratio(About(NETWORKS[:1], "train"), [promises.TORCH], 4.0),
    Ratio(About(NETWORKS[:1], "train", LAYOUTS[1]), [promises.TORCH], 1.0),
    Ratio(About(NETWORKS[:1], "train_backward"), [promises.TORCH], 3.0),
]


def base_promises(results: Results, figured: dict[str, Any], resident: int) -> Table:
    """Each promise: what, how it must be, how it is, and whether it is kept."""
    made = Table("", ["figure", "must be", "is", "kept"])

    def at_most(what: str, value: float, most: float, unit: str) -> None:
        answer = "yes" if value <= most else "**no**"
        made.lines.append([what, f"≤ {most:g}{unit}", f"{value:.3g}{unit}", answer])

    for v in promises.judged(results.rows, resident, BASE):
        if v.threads == 1 and v.shapes:
            made.lines.append([v.figure, v.required, v.measured, v.answer])
    numba = figures.numba_against_native(results.rows)
    if numba:
        at_most("Numba's time against native's, worst operation", numba, 1.5, "×")
    at_most("subnormal against normal input", max(figured["subnormal"].values()), 1.5, "×")
    own = [ulp for name, ulps in figured["accuracy"].items() if "bncore" in name for ulp in ulps]
    at_most("float32 forward error, every backend", max(own), 3, " ulp")
    return made


def accuracy_table(errors: dict[str, list[float]]) -> Table:
    """Errors by who and by mean/std."""
    made = Table("", ["mean/std", *(f"{ratio:g}" for ratio in figures.MEAN_OVER_STD)])
    for name, ulps in errors.items():
        made.lines.append([name, *(f"{e:.2f}" if e < 100 else f"{e:.0f}" for e in ulps)])
    return made


def measured_on(results: Results) -> str:
    """The machine and the versions, in a sentence."""
    facts = "; ".join(f"{name} {fact}" for name, fact in results.machine.items())
    return f"Measured by `make report` on: {facts}."


def picture(name: str, folder: str) -> str:
    return f"![{PICTURES[name]}]({folder}/{name})"


def readme(results: Results, figured: dict[str, Any], resident: int) -> str:
    """The README's block: means, one picture, accuracy, promises."""
    network = set(SHAPES["resnet50_n32"])
    rows = [row for row in results.rows if row.case.shape in network]
    rows = [row for row in rows if row.case.dtype == "float32"]
    fused = [row for row in rows if row.case.operation in FUSED or row.case.output == "pooled"]
    rows = [row for row in rows if row.case.output == "given" and row.case.operation not in FUSED]
    fresh, cached = (figured["numba compile time"][s] for s in ("nothing cached", "cached"))
    return "\n\n".join(
        [
            measured_on(results),
            "Speed: how many times bncore's time the others take. float32, outputs preallocated on "
            "both sides, the shapes of ResNet-50 at batch 32: geometric mean, and the worst shape "
            "for bncore. Below 1 the other one is faster.",
            tables.summary_table(rows).markdown(),
            "The same for the end of a residual block in training, relu(bn(x) + residual) in one "
            "call where others take separate steps, `add_relu`; and for returned outputs, bncore's "
            "from its buffer pool. bncore's batch norm alone and its call with outputs given stand "
            "beside it.",
            tables.summary_table(fused).markdown(),
            picture("speed-1.png", "docs/images"),
            "Every shape, more peers and the share of the memory limit: "
            "[docs/benchmarks.md](docs/benchmarks.md).",
            "Accuracy: largest error of training forward, in ulp of |weight·x̂| + |bias|, against "
            "the formula in extended precision. Four channels of a million normal float32 values.",
            accuracy_table(figured["accuracy"]).markdown(),
            "Promises of the first release; those of today, which go further, stand in "
            "[docs/benchmarks.md](docs/benchmarks.md#promises), kept or not:",
            base_promises(results, figured, resident).markdown(),
            f"Numba's first call in a fresh process: train {fresh[0]:.1f} s, backward "
            f"{fresh[1]:.1f} s; with its kernels cached on disk {cached[0]:.2f} s and "
            f"{cached[1]:.2f} s.",
        ]
    )


def page(results: Results, resident: int, drawn: list[str]) -> str:
    """Everything else: the generated part of docs/benchmarks.md."""
    parts = [
        measured_on(results),
        f"Medians and quartiles of {results.options['repeats']} turns.",
        *(picture(name, "images") for name in drawn),
        "## Promises",
        promises.table(promises.judged(results.rows, resident)).markdown(),
        "## Means",
    ]
    for name in (name for name in SHAPES if name not in ("sizes", "quick")):
        shapes = set(SHAPES[name])
        table = tables.summary_table(row for row in results.rows if row.case.shape in shapes)
        if table.lines:
            parts += [f"### {name}", table.markdown()]
    parts.append("## Every shape")
    for table in tables.shape_tables(results.rows):
        summary = f"<details><summary>{table.title}</summary>"
        parts += [summary, table.markdown(), "</details>"]
    refused = tables.refusals(results)
    if refused.lines:
        parts += ["## Not timed", refused.markdown()]
    return "\n\n".join(parts)


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    old = path.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not marked.search(old):
        sys.exit(f"{path} has no markers {BEGIN} and {END}")
    path.write_text(marked.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", old), encoding="utf-8")


def measure(arguments: list[str]) -> tuple[Results, dict[str, Any]]:
    """Take all figures."""
    if native_module() is None:
        sys.exit("bncore's native extension is not built; the report is about it")
    with progress_bar() as progress:
        results = run(parse(arguments, "report.py"), progress)

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    return results, {
        "subnormal": figures.subnormal_ratio(),
        "numba compile time": figures.numba_compile_time(),
        "accuracy": figures.accuracy(say),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options are those of python -m bncore bench.",
    )
    parser.add_argument("--from", type=Path, dest="kept", metavar="JSON", help="do not measure")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "report.json")
    options, others = parser.parse_known_args()
    if options.kept:
        text = options.kept.read_text(encoding="utf-8")
        figured = json.loads(text)["figures"]
        results = Results.parse(json.loads(text)["results"])
    else:
        results, figured = measure(others)
        kept = {"figures": figured, "results": results.plain()}
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    resident = results.resident()
    IMAGES.mkdir(exist_ok=True)
    drawn = [path.name for path in draw(results, IMAGES)]
    write_between_markers(ROOT / "README.md", readme(results, figured, resident))
    write_between_markers(ROOT / "docs" / "benchmarks.md", page(results, resident, drawn))


if __name__ == "__main__":
    main()
