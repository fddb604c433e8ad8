"""What a second thread is worth where calls are not made in a loop of their own.

    python benchmarks/between_layers.py [--threads 2] [--operations infer,train] [--rounds 3]

A benchmark that calls a function again and again finds its threads awake and its data where the
last call left it.  A network calls it between other layers.  Three patterns are timed, each call
after the other work, a product of matrices on one thread, that puts the other threads to sleep:

    loop:   work, five calls, the timed call
    warm:   work, one call, the timed call
    work:   one call, work that leaves the data in the cache, the timed call

The arrays x have 2 to 25 MB of float32.  bncore and PyTorch, where it is installed, run in
processes of their own that take turns; each result is checked before it is timed.  The numbers are
medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np

from bncore.programs.bench.cases import LAYOUTS, Case, Shape, named
from bncore.programs.bench.results import geometric_mean
from bncore.programs.bench.tables import Table, milliseconds
from bncore.programs.bench.worker import Worker

SHAPES: tuple[Shape, ...] = (
    (16, 672, 7, 7), (24, 1152, 7, 7), (16, 672, 14, 14), (32, 256, 14, 14), (32, 512, 14, 14),
    (24, 240, 28, 28), (32, 1024, 14, 14),
)  # fmt: skip
PATTERNS = {"loop": 5, "warm": 1, "work": 1}  # calls before the timed one
WORK = 0.3e-3  # seconds of other work, about a small convolution's


def measured(key: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time every case with one peer: medians by pattern, by the name of the case."""
    worker = Worker(key, options.alone_threads)
    left, right = np.ones((2, 96, 96), np.float32)

    def work() -> None:
        end = time.perf_counter() + WORK
        while time.perf_counter() < end:
            left @ right

    found = {}
    for case in cases(options, options.alone_threads):
        worker.prepare(case)
        call = worker.call
        assert call is not None
        taken: dict[str, list[float]] = {pattern: [] for pattern in PATTERNS}
        for _ in range(options.calls):
            for pattern, seconds in taken.items():
                if pattern != "work":
                    work()
                for _ in range(PATTERNS[pattern]):
                    call()
                if pattern == "work":
                    work()
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
        found[named_case(case)] = {pattern: median(times) for pattern, times in taken.items()}
    return found


def cases(options: argparse.Namespace, threads: int) -> list[Case]:
    """List what is measured."""
    return [
        Case(operation, shape, layout, threads=threads)
        for operation in options.operations.split(",")
        for layout in LAYOUTS
        for shape in SHAPES
    ]


def named_case(case: Case) -> str:
    return f"{case.operation}, {case.layout}, {named(case.shape)}"


def in_turns(options: argparse.Namespace) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """Measure each peer and number of threads in processes of their own, round after round."""
    kinds = [("native", 1), ("native", options.threads)]
    if importlib.util.find_spec("torch"):
        kinds += [("torch", 1), ("torch", options.threads)]
    rounds: dict[tuple[str, int], list[dict[str, dict[str, float]]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for key, threads in kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--alone", key]
            done = subprocess.run(
                [*command, "--alone-threads", str(threads)],
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                text=True,
            )
            rounds[key, threads].append(json.loads(done.stdout))
    return {
        kind: {
            name: {p: median(one[name][p] for one in all_rounds) for p in PATTERNS}
            for name in all_rounds[0]
        }
        for kind, all_rounds in rounds.items()
    }


def table(
    pattern: str, found: dict[tuple[str, int], dict[str, dict[str, float]]], threads: int
) -> Table:
    """Show one pattern: times, and what the second thread and PyTorch are worth."""
    peers = {"native": "bncore", "torch": "PyTorch"}
    ratios = {f"bncore, 1 / {threads}": (("native", 1), ("native", threads))}
    if ("torch", 1) in found:
        ratios[f"PyTorch, 1 / {threads}"] = (("torch", 1), ("torch", threads))
        ratios[f"PyTorch / bncore, {threads}"] = (("torch", threads), ("native", threads))
    made = Table(pattern, ["case", *(f"{peers[k]}, {n}, ms" for k, n in found), *ratios])
    gathered: dict[str, dict[str, list[float]]] = {}
    for name in found["native", 1]:
        times = [milliseconds(found[kind][name][pattern]) for kind in found]
        worth = {
            title: found[first][name][pattern] / found[second][name][pattern]
            for title, (first, second) in ratios.items()
        }
        made.lines.append([name, *times, *(f"{ratio:.2f}" for ratio in worth.values())])
        for title, ratio in worth.items():
            group = gathered.setdefault(name.rpartition(", ")[0], {})
            group.setdefault(title, []).append(ratio)
    for group, by_title in gathered.items():
        means = [
            f"{geometric_mean(part):.2f} (least {min(part):.2f})" for part in by_title.values()
        ]
        made.lines.append([f"{group}: geometric mean", *[""] * len(found), *means])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--operations", default="infer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=30, help="timed calls of each in a round")
    parser.add_argument("--alone", choices=["native", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--alone-threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measured(options.alone, options)))
        return
    found = in_turns(options)
    for pattern in PATTERNS:
        print(f"{pattern}\n\n{table(pattern, found, options.threads).markdown()}\n")


if __name__ == "__main__":
    main()
