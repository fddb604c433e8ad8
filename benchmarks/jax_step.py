"""Time bncore.jax against jax.numpy's formula and Flax's layer, all compiled by `jax.jit`.

    python benchmarks/jax_step.py [--threads 1,2] [--repeats N] [--part PART] [--write]

A training step, forward and backward by `jax.vjp`, on the shapes of ResNet-50 at batch 32: all
allocate what they return.  PART is "functions" (bncore.jax.batch_norm_train beside the formula, and
the smallest step beside bncore's NumPy functions) or "layers" (bncore.jax.linen.BatchNorm beside
flax.linen.BatchNorm, running statistics included); without it, both.  Everybody takes turns in one
process, after the results are compared; medians.  JAX makes its threads once, as many as there are
processors to run on: every number of threads has a process of its own.  --write puts the tables
into docs/jax.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

import bncore
import bncore.jax
from bncore.programs.bench.cases import EPS, LAYOUTS, SHAPES, Problem, named
from bncore.programs.bench.peers.jax_jit import start_with
from bncore.programs.bench.tables import Table, counted
from steps import NETWORK, Times, made_on, medians, put, ratio_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "jax.md"
SMALL = (1, 64, 1, 2)
Array = jax.Array


def formula(x: Array, weight: Array, bias: Array, axis: int) -> Array:
    """Batch norm as a user writes it."""
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    weight, bias = (jnp.expand_dims(v, axes) for v in (weight, bias))
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    return (x - mean) * (jax.lax.rsqrt(var + EPS) * weight) + bias


def own(x: Array, weight: Array, bias: Array, axis: int) -> Array:
    """The same by bncore."""
    return bncore.jax.batch_norm_train(x, weight, bias, axis=axis, eps=EPS)[0]


def step(function: Callable[..., Array], axis: int) -> Callable[..., Any]:
    """One training step, compiled: y, and the gradients by x, weight and bias."""

    def forward_and_backward(x: Array, weight: Array, bias: Array, dy: Array) -> Any:
        y, pull = jax.vjp(lambda *given: function(*given, axis), x, weight, bias)
        return y, *pull(dy)

    return jax.jit(forward_and_backward)


def check(got: tuple[Array, ...], expected: tuple[Array, ...]) -> None:
    """Both compute the same; sums of float32 values differ by their order of additions."""
    for a, b in zip(got, expected, strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * scale)


def calls(p: Problem) -> dict[str, Callable[[], Any]]:
    """A step of each, on the same arrays, waited for; compared."""
    given = tuple(map(jnp.asarray, (p.x, p.weight, p.bias, p.dy)))
    compiled = {
        "jax.numpy": step(formula, p.axis),
        "bncore.jax": step(own, p.axis),
    }
    check(*(compiled[name](*given) for name in ("bncore.jax", "jax.numpy")))
    return {
        name: lambda call=call: jax.block_until_ready(call(*given))
        for name, call in compiled.items()
    }


def layer_step(module: Any, p: Problem) -> Callable[[], Any]:
    """One training step of a layer of Flax: y, new statistics, gradients; compiled."""
    layer = module(use_running_average=False, axis=p.axis, epsilon=EPS)
    x, dy = jnp.asarray(p.x), jnp.asarray(p.dy)
    parameters = {"scale": jnp.asarray(p.weight), "bias": jnp.asarray(p.bias)}
    stats = {"mean": jnp.zeros_like(parameters["bias"]), "var": jnp.ones_like(parameters["bias"])}

    def forward_and_backward(parameters: Any, stats: Any, x: Array, dy: Array) -> Any:
        def forward(parameters: Any, x: Array) -> Any:
            variables = {"params": parameters, "batch_stats": stats}
            return layer.apply(variables, x, mutable=["batch_stats"])

        y, pull, state = jax.vjp(forward, parameters, x, has_aux=True)
        return y, state, *pull(dy)

    compiled = jax.jit(forward_and_backward)
    return lambda: jax.block_until_ready(compiled(parameters, stats, x, dy))


def layers(p: Problem) -> dict[str, Callable[[], Any]]:
    """A step of each layer, on the same arrays, waited for; compared."""
    from flax import linen  # an extra of its own

    import bncore.jax.linen

    found = {
        "flax": layer_step(linen.BatchNorm, p),
        "bncore.jax": layer_step(bncore.jax.linen.BatchNorm, p),
    }
    check(*(tuple(jax.tree.leaves(found[name]())) for name in ("bncore.jax", "flax")))
    return found


def steps(made: Callable[[Problem], Any], repeats: int, title: str, console: Console) -> Times:
    """Seconds of a step by layout, shape and contestant."""
    found: Times = {layout: {} for layout in LAYOUTS}
    cases = [(layout, shape) for layout in LAYOUTS for shape in SHAPES[NETWORK]]
    for layout, shape in track(cases, title, console=console):
        found[layout][named(shape)] = medians(made(Problem(shape, layout)), repeats)
    return found


def smallest(threads: int, repeats: int) -> dict[str, float]:
    """Seconds of the smallest step, which is all overhead."""
    p = Problem(SMALL)
    common: dict[str, Any] = {"n_threads": threads, "eps": EPS}

    def functions() -> Any:
        y, moments = bncore.batch_norm_train(p.x, p.weight, p.bias, **common)
        return y, *bncore.batch_norm_train_backward(p.dy, p.x, moments, p.weight, **common)

    compared = calls(p)
    check(compared["bncore.jax"](), tuple(map(jnp.asarray, functions())))
    return medians({"NumPy functions": functions, **compared}, repeats)


def measured(threads: int, repeats: int, part: str) -> tuple[Times, dict[str, float]]:
    """One part, in a process that has not started JAX yet."""
    start_with(threads)
    title, console = f"{part}, {counted(threads)}", Console(stderr=True)
    if part == "layers":
        return steps(layers, repeats, title, console), {}
    return steps(calls, repeats, title, console), smallest(threads, 100 * repeats)


def small_table(found: dict[int, dict[str, float]]) -> Table:
    """Microseconds of the smallest step; columns by threads."""
    table = Table("overhead", [f"a step of {named(SMALL)}", *map(counted, found)])
    for name in next(iter(found.values())):
        table.lines.append([name, *(f"{times[name] * 1e6:.0f} µs" for times in found.values())])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--part", choices=("functions", "layers"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for part in (options.part,) if options.part else ("functions", "layers"):
        found, small = {}, {}
        for threads in map(int, options.threads.split(",")):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                done = process.submit(measured, threads, options.repeats, part)
                found[threads], small[threads] = done.result()
        if part == "functions":
            tables = [ratio_table(found, "bncore.jax", "jax.numpy"), small_table(small)]
        else:
            tables = [ratio_table(found, "bncore.jax", "flax")]
        made = made_on("jax")
        if part == "layers":
            made = f"{made.removesuffix('.')}; flax {version('flax')}."
        text = "\n\n".join([*(table.markdown() for table in tables), made])
        print(text)
        if options.write:
            put(PAGE, "step" if part == "functions" else "layers", text)


if __name__ == "__main__":
    main()
