"""Time bncore.torch against PyTorch's own batch norm, and against bncore's NumPy functions.

    python benchmarks/torch_step.py [--threads 1,2] [--repeats N] [--pool BYTES] [--quick]
                                    [--write]

First a training step, forward and backward, of ``BatchNorm2d`` on the shapes of ResNet-50 at
batch 32: both modules allocate what they return, bncore's from its pool of --pool bytes, and then
without one.  Then what the adapter costs above the NumPy functions on the same memory, 32x64x56x56,
and what PyTorch's autograd costs there by itself.  Everybody takes turns in one process, after
results are compared; medians.  --write puts the tables into docs/pytorch.md; --quick is a small run
that shows whether everything works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import bncore
import bncore.torch
from bncore.programs.bench.cases import EPS, LAYOUTS, SHAPES, named
from bncore.programs.bench.tables import Table, counted
from bncore.torch.memory import Array, array, output
from steps import NETWORK, Times, made_on, medians, ratio_table
from steps import put as put_into

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pytorch.md"
OVERHEAD_SHAPE = (32, 64, 56, 56)


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


def steps(threads: int, repeats: int, console: Console) -> Times:
    """Seconds of a step by layout, shape and module."""
    torch.set_num_threads(threads)
    found: Times = {layout: {} for layout in LAYOUTS}
    cases = [(layout, shape) for layout in LAYOUTS for shape in SHAPES[NETWORK]]
    for layout, shape in track(cases, f"steps, {counted(threads)}", console=console):
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
    """Seconds that the module takes above the functions, large and tiny.

    The functions write into memory that was allocated as the adapter allocates it.
    """
    torch.set_num_threads(threads)
    costs = {}
    x, dy = tensors(OVERHEAD_SHAPE, LAYOUTS[0])
    tiny = [t.detach()[:1, :, :1, :2].contiguous() for t in (x, dy)]
    for given, turns in (((x, dy), repeats), (tiny, 50 * repeats)):
        x, dy = given[0].requires_grad_(), given[1]
        layer = bncore.torch.BatchNorm2d(x.shape[1])
        arrays = [array(t) for t in (x, dy, layer.weight, layer.bias)]
        first = arrays[:1] + arrays[2:]
        running = array(layer.running_mean), array(layer.running_var)
        times = medians(
            {
                "module": lambda layer=layer, x=x, dy=dy: step(layer, x, dy),
                "functions": lambda a=arrays, r=running, x=x: functions(*a, r, x, threads),
                "forward": lambda layer=layer, x=x: forward(layer, x),
                "function": lambda a=first, r=running, x=x: function(*a, r, x, threads),
            },
            turns,
        )
        autograd = []
        for _ in range(turns):
            functions(*arrays, running, x, threads)  # leaves the caches as a layer's data does
            start = time.perf_counter()
            torch.autograd.grad(x.view_as(x), x, dy)
            autograd.append(time.perf_counter() - start)
        size = named(tuple(x.shape))
        costs[f"{size}: NumPy functions, forward"] = times["function"]
        costs[f"{size}: the module above them, under `no_grad`"] = (
            times["forward"] - times["function"]
        )
        costs[f"{size}: NumPy functions, a step"] = times["functions"]
        costs[f"{size}: the module above them"] = times["module"] - times["functions"]
        costs[f"{size}: autograd alone, of a view"] = median(autograd)
    return costs


def forward(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The forward half of a step, where no gradient is wanted."""
    with torch.no_grad():
        return layer(x)


def function(
    x: Array, weight: Array, bias: Array, running: Any, like: torch.Tensor, threads: int
) -> Any:
    """The forward half of a step by bncore's NumPy functions."""
    y = array(output(like))
    _, moments = bncore.batch_norm_train(x, weight, bias, out=y, eps=EPS, n_threads=threads)
    bncore.update_running_stats(*running, moments)
    return y, moments


def functions(
    x: Array, dy: Array, weight: Array, bias: Array, running: Any, like: torch.Tensor, threads: int
) -> Any:
    """A training step by bncore's NumPy functions."""
    y, moments = function(x, weight, bias, running, like, threads)
    common: dict[str, Any] = {"n_threads": threads, "eps": EPS, "out": array(output(like))}
    return y, bncore.batch_norm_train_backward(dy, x, moments, weight, **common)


def step_table(found: dict[int, Times], without: dict[int, Times]) -> Table:
    """How many times bncore's time PyTorch takes; the last line is without the pool."""
    table, bare = (ratio_table(each, "bncore.torch", "torch.nn") for each in (found, without))
    table.lines.append(["without the pool", *bare.lines[-1][1:]])
    return table


def cost_table(found: dict[int, dict[str, float]]) -> Table:
    """What a step costs above the NumPy functions; columns by threads."""
    table = Table("overhead", ["", *map(counted, found)])
    for name in next(iter(found.values())):
        table.lines.append([name, *(f"{costs[name] * 1e6:.0f} µs" for costs in found.values())])
    return table


def put(name: str, text: str) -> None:
    """Put text into docs/pytorch.md, between the marks of this name."""
    put_into(PAGE, name, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pool", type=int, default=1 << 28, help="bytes of its pool")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.threads, options.repeats = "1", 1
    console = Console(stderr=True)
    found: dict[int, Times] = {}
    without: dict[int, Times] = {}
    costs: dict[int, dict[str, float]] = {}
    for threads in map(int, options.threads.split(",")):
        bncore.torch.set_buffer_pool(0)
        without[threads] = steps(threads, options.repeats, console)
        bncore.torch.set_buffer_pool(options.pool)
        found[threads] = steps(threads, options.repeats, console)
        costs[threads] = overhead(threads, 21 * options.repeats)
    tables = step_table(found, without), cost_table(costs)
    text = "\n\n".join([*(table.markdown() for table in tables), made_on("torch")])
    print(text)
    if options.write:
        put("step", text)


if __name__ == "__main__":
    main()
