"""Measure bncore and its peers, and write the README's caption and docs/benchmarks.md with data.

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
from datetime import date
from pathlib import Path
from typing import Any

import data_files
import drawings
import figures
import history
from bncore.backends import native_module
from bncore.programs.bench import promises, tables
from bncore.programs.bench.cases import FUSED, SHAPES
from bncore.programs.bench.command import progress_bar
from bncore.programs.bench.plan import parse
from bncore.programs.bench.results import Results, Row
from bncore.programs.bench.run import run
from bncore.programs.bench.tables import Table
from data_files import DATA, ROOT

# Below the tables; the other pictures stand where the pages say more about them.
PICTURES = {
    "shapes-train.png": "Times faster than others in training, by shape, one thread",
    "shapes-train_backward.png": "Times faster than others backward, by shape, one thread",
    "shapes-infer.png": "Times faster than others in inference, by shape, one thread",
    "limit.png": "Share of the memory's speed that bncore reaches, by shape, one thread",
    "sizes.png": "Speed of training forward against size, with the caches marked",
    "scaling.png": "How many times faster two threads are than one",
    "history.png": "Times faster than PyTorch in each run of this report",
}


def checks_table(results: Results, figured: dict[str, Any]) -> Table:
    """What bncore promises beside its speed against peers, and whether it keeps it."""
    made = Table("", ["figure", "must be", "is", "kept"])

    def at_most(what: str, value: float, most: float, unit: str) -> None:
        answer = "yes" if value <= most else "**no**"
        made.lines.append([what, f"≤ {most:g}{unit}", f"{value:.3g}{unit}", answer])

    numba = figures.numba_against_native(results.rows)
    if numba:
        at_most("the Numba backend's time against the native one's, worst operation", numba, 3, "×")
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


def network_rows(results: Results) -> list[Row]:
    """Find the float32 rows on the shapes of ResNet-50."""
    network = set(SHAPES["resnet50_n32"])
    return [r for r in results.rows if r.case.shape in network and r.case.dtype == "float32"]


def caption(results: Results) -> str:
    """Say below the README's chart what it shows and where it was measured."""
    return (
        "A point is the geometric mean over the shapes of ResNet-50 at batch 32, in float32 on one "
        "thread; the line through it reaches from the worst shape to the best one. Of oneDNN's two "
        "formats the faster one counts. Outputs are preallocated on all sides, and every result "
        f"was checked before it was timed. {measured_on(results)}"
    )


def page(results: Results, figured: dict[str, Any], resident: int) -> str:
    """Write the generated part of docs/benchmarks.md."""
    rows = network_rows(results)
    fused = [r for r in rows if r.case.operation in FUSED or r.case.output == "pooled"]
    plain = [r for r in rows if r.case.output == "given" and r.case.operation not in FUSED]
    verdicts = [v for v in promises.judged(results.rows, resident) if v.shapes]
    judged = [v for v in verdicts if v.kept is not None]
    broken = [v for v in judged if not v.kept]
    fresh, cached = (figured["numba compile time"][s] for s in ("nothing cached", "cached"))
    parts = [
        measured_on(results),
        "Each number says how many times bncore's time the other library takes: the geometric mean "
        f"over the shapes of ResNet-50, and the worst shape for bncore. Times are medians of "
        f"{results.options['repeats']} turns.",
        tables.summary_table(plain).markdown(),
        "The next table shows the end of a residual block in training, relu(bn(x) + residual). "
        "bncore computes it in one call, the others in separate steps (`add_relu`). It also shows "
        "calls that return their outputs, with bncore's buffer pool on.",
        tables.summary_table(fused).markdown(),
        *(f"![{text}](images/{name})" for name, text in PICTURES.items()),
        "## Targets that are missed",
        "The project set itself targets for speed, from what memory allows and what other "
        f"libraries reach. This run judged {len(judged)} of them, and bncore reaches "
        f"{len(judged) - len(broken)}. [data/promises.csv](data/promises.csv) lists all of them. "
        "These are missed:",
        promises.table(broken).markdown(),
        "## Accuracy and other promises",
        "Largest error of the training forward pass, in ulp of |weight·x̂| + |bias|, against the "
        "formula in extended precision. The data are four channels of a million normal float32 "
        "values.",
        "![Largest error against mean/std](images/accuracy.png)",
        accuracy_table(figured["accuracy"]).markdown(),
        checks_table(results, figured).markdown(),
        f"The first call of the Numba backend in a fresh process takes {fresh[0]:.1f} s for "
        f"training and {fresh[1]:.1f} s for the backward pass. With its functions cached on disk "
        f"it takes {cached[0]:.2f} s and {cached[1]:.2f} s.",
    ]
    refused = tables.refusals(results)
    if refused.lines:
        parts += ["## Not timed", refused.markdown()]
    return "\n\n".join(parts)


def write_data(results: Results, resident: int, rows: str, kept: str) -> None:
    """Keep every row and every promise where a program can read it."""
    data_files.write_rows(DATA / rows, results.rows)
    made = promises.table(promises.judged(results.rows, resident))
    plain = [[cell.strip("*") for cell in line] for line in made.lines]
    data_files.write_csv(DATA / kept, made.head, plain)


def write_figures(results: Results, figured: dict[str, Any]) -> None:
    """Keep what else the pictures show: the machine, the errors, and the history."""
    # The option of the same name says whether the caches are warm; here their sizes are meant.
    about = {**results.options, "machine": results.machine, "caches": results.caches}
    (DATA / "benchmarks.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    lines = [
        [*name.rsplit(", ", 1), f"{ratio:g}", f"{ulp:.4g}"]
        for name, ulps in figured["accuracy"].items()
        for ratio, ulp in zip(figures.MEAN_OVER_STD, ulps, strict=True)
    ]
    head = ["peer", "layout", "mean_over_std", "ulp"]
    data_files.write_csv(DATA / "accuracy.csv", head, lines)
    processor = results.machine["processor"].partition(",")[0]
    history.append(results.rows, date.today().isoformat(), results.machine["bncore"], processor)


def write_between_markers(path: Path, text: str, name: str = "report") -> None:
    """Replace what stands between the markers of a page."""
    begin, end = (f"<!-- {name}:{word} -->" for word in ("begin", "end"))
    old = path.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(old):
        sys.exit(f"{path} has no markers {begin} and {end}")
    path.write_text(marked.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", old), encoding="utf-8")


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
    write_data(results, resident, "benchmarks.csv", "promises.csv")
    write_figures(results, figured)
    drawings.main()
    write_between_markers(ROOT / "README.md", caption(results))
    write_between_markers(ROOT / "docs" / "benchmarks.md", page(results, figured, resident))


if __name__ == "__main__":
    main()
