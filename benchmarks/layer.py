"""Measure what the layer costs beside the functions that it calls; print both tables.

    python benchmarks/layer.py [--threads N] [--repeats N]

float32, outputs given, and the same arrays for both, which take turns in one process; medians.
The functions are `batch_norm_train`, `update_running_stats` and `batch_norm_train_backward`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import geometric_mean, median
from typing import Any

import numpy as np

import bncore
from bncore.programs.bench.cases import EPS, LAYOUTS, SHAPES, Problem, named
from bncore.programs.bench.tables import Table

NETWORK = "resnet50_n32"
SMALL = (1, 16, 4, 4)


class Contest:
    """The layer and the functions over the arrays of one problem."""

    def __init__(self, p: Problem, threads: int | None) -> None:
        self.p = p
        self.common: dict[str, Any] = {"axis": p.axis, "eps": EPS, "n_threads": threads}
        self.layer = bncore.BatchNorm(p.shape[1], dtype=p.dtype, **self.common)
        self.layer.weight[:], self.layer.bias[:] = p.weight, p.bias
        self.running = np.zeros(p.shape[1]), np.ones(p.shape[1])
        self.y = p.out
        self.dx = np.zeros_like(p.x)

    def layer_forward(self) -> None:
        self.layer.forward(self.p.x, out=self.y)

    def functions_forward(self) -> None:
        p = self.p
        _, self.moments = bncore.batch_norm_train(p.x, p.weight, p.bias, out=self.y, **self.common)
        bncore.update_running_stats(*self.running, self.moments)

    def train_alone(self) -> None:
        p = self.p
        bncore.batch_norm_train(p.x, p.weight, p.bias, out=self.y, **self.common)

    def layer_step(self) -> None:
        self.layer_forward()
        self.layer.backward(self.p.dy, out=self.dx)

    def functions_step(self) -> None:
        self.functions_forward()
        p = self.p
        self.gradients = bncore.batch_norm_train_backward(
            p.dy, p.x, self.moments, p.weight, out=self.dx, **self.common
        )

    def check(self) -> None:
        """Both give the same bits."""
        self.layer_step()
        y, dx = self.y.copy(), self.dx.copy()
        self.functions_step()
        assert np.array_equal(self.y, y) and np.array_equal(self.dx, dx)
        assert np.array_equal(self.layer.dweight, self.gradients[1])
        assert np.array_equal(self.layer.running_var, self.running[1])


def seconds(calls: list[Callable[[], None]], repeats: int, at_once: int = 1) -> list[list[float]]:
    """Seconds of each call by turns, the first of every round another one."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for turn in range(repeats):
        for place in range(len(calls)):
            number = (turn + place) % len(calls)
            call = calls[number]
            start = time.perf_counter()
            for _ in range(at_once):
                call()
            taken[number].append((time.perf_counter() - start) / at_once)
    return taken


def rounds_of(call: Callable[[], None], least: int) -> int:
    """Rounds that take a second: short calls scatter more."""
    start = time.perf_counter()
    call()
    return max(least, int(0.5 / (time.perf_counter() - start)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()

    contest = Contest(Problem(SMALL), options.threads)
    contest.check()
    calls = [contest.layer_forward, contest.functions_forward, contest.train_alone]
    layer, functions, alone = map(median, seconds(calls, options.repeats * 20, at_once=200))
    table = Table("", [f"forward of {named(SMALL)}, µs", "layer", "functions", "overhead"])
    for name, other in (("with running statistics", functions), ("train alone", alone)):
        times = [layer, other, layer - other]
        table.lines.append([name, *(f"{value * 1e6:.2f}" for value in times)])
    print(f"\n{options.threads} thread(s)\n\n{table.markdown()}", flush=True)

    table = Table("", ["forward + backward", "functions, ms", "layer / functions"])
    for layout in LAYOUTS:
        ratios = []
        for shape in SHAPES[NETWORK]:
            contest = Contest(Problem(shape, layout), options.threads)
            contest.check()
            calls = [contest.layer_step, contest.functions_step]
            layer, functions = map(median, seconds(calls, rounds_of(calls[1], options.repeats)))
            ratios.append(layer / functions)
            table.lines.append(
                [f"{layout}, {named(shape)}", f"{functions * 1e3:.2f}", f"{ratios[-1]:.3f}"]
            )
        table.lines.append([f"{layout}, geometric mean", "", f"{geometric_mean(ratios):.3f}"])
    print(f"\n{table.markdown()}")


if __name__ == "__main__":
    main()
