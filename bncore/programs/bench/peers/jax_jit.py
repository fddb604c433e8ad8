"""JAX: the formula as a user writes it with jax.numpy, compiled by XLA for the processor.

XLA creates its threads once, one for each processor it may run on, and returns new memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bncore.programs.bench.cases import EPS, Array, Case, Problem
from bncore.programs.bench.peers import Call, Unavailable


class Jax:
    """Functions under ``jax.jit``; a call waits for the result."""

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads = 0

    def can(self, case: Case) -> bool:
        """Tell whether it is float32, JAX's default dtype, with a returned output."""
        main = case.operation in ("train", "infer", "train_backward")
        return main and case.output == "returned" and case.dtype == "float32"

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Make XLA's threads, the first time; their number is the number of processors it sees."""
        if not self.threads:
            start_with(threads)
            self.threads = threads
        if threads != self.threads:
            raise Unavailable(f"JAX keeps the number of threads it started with: {self.threads}")
        yield

    def call(self, case: Case, p: Problem) -> Call:
        """Compile for this case."""
        axes = p.axes
        x, dy = map(jnp.asarray, (p.x, p.dy if case.operation == "train_backward" else p.weight))
        per_channel = map(p.per_channel, (p.weight, p.bias, p.running_mean, p.running_var))
        w, b, mean, var = map(jnp.asarray, per_channel)

        def infer(x: Any, mean: Any, var: Any, w: Any, b: Any) -> Any:
            return (x - mean) * (jax.lax.rsqrt(var + EPS) * w) + b

        def train(x: Any, w: Any, b: Any) -> Any:
            mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
            return infer(x, mean, var, w, b)

        def backward(dy: Any, x: Any, mean: Any, var: Any, w: Any) -> Any:
            count = x.size // mean.size
            invstd = jax.lax.rsqrt(var + EPS)
            xhat = (x - mean) * invstd
            sum_dy = jnp.sum(dy, axes, keepdims=True)
            sum_dy_xhat = jnp.sum(dy * xhat, axes, keepdims=True)
            dx = w * invstd * (dy - sum_dy / count - xhat * (sum_dy_xhat / count))
            return dx, sum_dy_xhat, sum_dy

        given: tuple[Any, ...] = (x, w, b)
        compiled = jax.jit(train)
        if case.operation == "infer":
            compiled, given = jax.jit(infer), (x, mean, var, w, b)
        elif case.operation == "train_backward":
            batch = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
            compiled, given = jax.jit(backward), (dy, x, *batch, w)
        return lambda: jax.block_until_ready(compiled(*given))

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """View them as NumPy's."""
        return tuple(map(np.asarray, result if isinstance(result, tuple) else (result,)))


def start_with(threads: int) -> None:
    """Start XLA while this process may run on only as many processors as it should have threads.

    Afterwards every thread may run on all processors again.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:threads]))
    try:
        jnp.zeros(1).block_until_ready()
    finally:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), allowed)


def peer(name: str) -> Jax:
    """Make the peer."""
    return Jax(name)
