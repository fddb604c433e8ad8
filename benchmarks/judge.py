"""Measure what bncore promises of ResNet-50 and MobileNetV2, and write it to docs/benchmarks.md.

    python benchmarks/judge.py                          measure everything and write the page
    python benchmarks/judge.py --measure a.json --shapes 32x64x56x56    measure a part
    python benchmarks/judge.py --from a.json b.json     write the page from parts

float32 with warm and cold caches and with AVX2 alone, bfloat16 and float16, against PyTorch and
against the oneDNN that its wheel contains: everything in a quarter of an hour on two processors.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from bncore.programs.bench import promises, tables
from bncore.programs.bench.command import progress_bar
from bncore.programs.bench.plan import parse
from bncore.programs.bench.results import Results
from bncore.programs.bench.run import run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
TURNS = 5


def measured(words: list[str]) -> Results:
    """Measure, with the options of ``python -m bncore bench``."""
    with progress_bar() as progress:
        return run(parse(["--judged", "--repeats", str(TURNS), *words], "judge.py"), progress)


def joined(paths: list[Path]) -> Results:
    """Read parts, whose machine and software are those of the first."""
    parts = [Results.parse(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    rows = [row for part in parts for row in part.rows]
    return replace(parts[0], rows=rows)


def text(results: Results) -> str:
    """Write the generated part of the page."""
    facts = "; ".join(f"{name} {fact}" for name, fact in results.machine.items())
    verdicts = [v for v in promises.judged(results.rows, results.resident()) if v.shapes]
    judged = [v for v in verdicts if v.kept is not None]
    kept = sum(bool(v.kept) for v in judged)
    ahead = tables.peers_ahead(results.rows)
    timed = sum(not row.refused for row in results.rows)
    return "\n\n".join(
        [
            f"Measured by `benchmarks/judge.py` on: {facts}. Medians of "
            f"{results.options['repeats']} turns.",
            f"bncore reaches {kept} of these {len(judged)} targets.",
            promises.table(judged).markdown(),
            f"A peer was faster in {len(ahead.lines)} of the {timed} times that were taken. "
            "Times of both sides vary on a machine that others use, so that single lines may be "
            "chance.",
            "<details><summary>All lines in which a peer was faster</summary>",
            ahead.markdown(),
            "</details>",
        ]
    )


def main() -> None:
    """Measure or read, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options are those of python -m bncore bench.",
    )
    parser.add_argument("--from", type=Path, dest="parts", nargs="+", metavar="JSON")
    parser.add_argument("--measure", type=Path, metavar="JSON", help="write this file alone")
    options, words = parser.parse_known_args()
    results = joined(options.parts) if options.parts else measured(words)
    if options.measure:
        results.write(options.measure)
        return
    import report  # here, so that the workers' processes, which import this module, do not load it

    report.write_data(results, results.resident(), "judged.csv", "judged_promises.csv")
    report.write_between_markers(PAGE, text(results), "judged")


if __name__ == "__main__":
    main()
