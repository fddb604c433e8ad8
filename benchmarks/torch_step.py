"""Time bncore.torch against PyTorch's own batch norm, and against bncore's NumPy functions.

    python benchmarks/torch_step.py [--threads 1,2] [--repeats N] [--pool BYTES] [--output FILE]

First a training step, forward and backward, of ``BatchNorm2d`` on the shapes of ResNet-50 at batch
32: both modules allocate what they return.  Then what the adapter costs above the NumPy functions
on the same memory, 32x64x56x56: the operators against the functions, each pair with the same
arrays.  Everybody takes turns in one process, after the results are compared; medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import bncore
import bncore.torch
from bncore.bench.cases import EPS, LAYOUTS, SHAPES, named
from bncore.bench.tables import Table
from bncore.torch.memory import array

NETWORK = "resnet50_n32"
OVERHEAD_SHAPE = (32, 64, 56, 56)
Calls = dict[str, Callable[[], Any]]


def tensors(shape: tuple[int, ...], layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x, which wants a gradient, and dy."""
    generator = torch.Generator().manual_seed(len(layout))
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    if layout == "channels last":
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    return x.add_(3.0).requires_grad_(), dy


def step(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One training step of a layer: y, and the gradients by x, weight and bias."""
    y = layer(x)
    return (y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy))


def check(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """Both compute the same; sums of float32 values differ by their order of additions."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))


def medians(calls: Calls, repeats: int) -> dict[str, float]:
    """Seconds of each call, in turns; what a call returned is gone before the next."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            end = time.perf_counter()
            del result
            if round_:
                taken[name].append(end - start)
    return {name: median(times) for name, times in taken.items()}


def steps(threads: int, repeats: int, console: Console) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of a step by layout, shape and module."""
    torch.set_num_threads(threads)
    found: dict[str, dict[str, dict[str, float]]] = {layout: {} for layout in LAYOUTS}
    cases = [(layout, shape) for layout in LAYOUTS for shape in SHAPES[NETWORK]]
    for layout, shape in track(cases, f"steps, {threads} thread(s)", console=console):
        x, dy = tensors(shape, layout)
        theirs = torch.nn.BatchNorm2d(shape[1])
        own = bncore.torch.BatchNorm2d(shape[1])
        check(step(own, x, dy), step(theirs, x, dy))
        found[layout][named(shape)] = medians(
            {
                "torch.nn": lambda layer=theirs, x=x, dy=dy: step(layer, x, dy),
                "bncore.torch": lambda layer=own, x=x, dy=dy: step(layer, x, dy),
            },
            repeats,
        )
    return found


def overhead(threads: int, repeats: int) -> dict[str, float]:
    """Microseconds that operators take above the functions, which write into the same memory.

    The adapter's results go into memory that its allocator just got back, so the functions are
    given the very same blocks as ``out``.
    """
    torch.set_num_threads(threads)
    x, dy = tensors(OVERHEAD_SHAPE, LAYOUTS[0])
    layer = bncore.torch.BatchNorm2d(x.shape[1])
    weight, bias = layer.weight, layer.bias
    nx, ndy, w, b = map(array, (x, dy, weight, bias))
    running = array(layer.running_mean), array(layer.running_var)
    common: dict[str, Any] = {"n_threads": threads, "eps": EPS}

    def functions() -> Any:
        y = array(torch.empty_like(x))
        _, moments = bncore.batch_norm_train(nx, w, b, out=y, **common)
        bncore.update_running_stats(*running, moments)
        dx = array(torch.empty_like(x))
        return y, bncore.batch_norm_train_backward(ndy, nx, moments, w, out=dx, **common)

    times = medians({"module": lambda: step(layer, x, dy), "functions": functions}, repeats)
    small, dsmall = (t[:1, :, :1, :2].contiguous() for t in (x.detach(), dy))
    sx, sdy = array(small), array(dsmall)
    small.requires_grad_()

    def small_functions() -> Any:
        _, moments = bncore.batch_norm_train(sx, w, b, **common)
        bncore.update_running_stats(*running, moments)
        return bncore.batch_norm_train_backward(sdy, sx, moments, w, **common)

    tiny = medians(
        {"module": lambda: step(layer, small, dsmall), "functions": small_functions}, 50 * repeats
    )
    return {
        "step, functions, us": times["functions"] * 1e6,
        "step, module, us": times["module"] * 1e6,
        "overhead, us": (times["module"] - times["functions"]) * 1e6,
        "overhead on 1x64x1x2, us": (tiny["module"] - tiny["functions"]) * 1e6,
    }


def step_table(threads: int, found: dict[str, dict[str, dict[str, float]]]) -> Table:
    """How many times bncore's time PyTorch takes, by shape."""
    table = Table(f"training step, {threads} thread(s)", ["shape", *LAYOUTS])
    ratios = {
        layout: [t["torch.nn"] / t["bncore.torch"] for t in shapes.values()]
        for layout, shapes in found.items()
    }
    for i, shape in enumerate(found[LAYOUTS[0]]):
        table.lines.append([shape, *(f"{ratios[layout][i]:.2f}×" for layout in LAYOUTS)])
    means = (f"{geometric_mean(ratios[layout]):.2f}×" for layout in LAYOUTS)
    table.lines.append(["geometric mean", *means])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pool", type=int, help="bytes for bncore.set_buffer_pool")
    parser.add_argument("--output", type=Path, help="JSON of what was measured")
    options = parser.parse_args()
    console = Console(stderr=True)
    bncore.set_buffer_pool(options.pool)
    measured: dict[str, Any] = {"steps": {}, "overhead": {}}
    for threads in map(int, options.threads.split(",")):
        found = measured["steps"][threads] = steps(threads, options.repeats, console)
        print(f"\n{step_table(threads, found).markdown()}\n", flush=True)
        costs = measured["overhead"][threads] = overhead(threads, 21 * options.repeats)
        table = Table("overhead", ["above the NumPy functions", f"{threads} thread(s)"])
        table.lines = [[name, f"{value:.1f}"] for name, value in costs.items()]
        print(f"{table.markdown()}\n", flush=True)
    if options.output:
        options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
