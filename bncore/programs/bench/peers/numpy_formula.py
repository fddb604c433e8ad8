"""The formula that everybody writes in NumPy, in x's own dtype.

With returned outputs it is the formula of :mod:`bncore.programs.demo.formula`.  With given outputs
it does the same operations with ``out=`` wherever NumPy has it, and one preallocated array for
xhat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from bncore.programs.bench.cases import EPS, FUSED, ITEM_BYTES, Array, Case, Problem
from bncore.programs.bench.peers import Call
from bncore.programs.demo import formula


class NumpyFormula:
    """The formula, on one thread, because NumPy does not use more."""

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name

    def can(self, case: Case) -> bool:
        """Everything but 16-bit data, whatever the number of threads."""
        return ITEM_BYTES[case.dtype] > 2

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Nothing to prepare."""
        yield

    def call(self, case: Case, p: Problem) -> Call:
        """Write the operation out."""
        if case.operation in ("moments", "mean_var"):
            x, axes = p.reduced
            return lambda: (np.mean(x, axis=axes), np.var(x, axis=axes))
        if case.operation in FUSED:
            return self._separate(case, p)
        w = p.per_channel(p.weight)
        stored = p.per_channel(p.running_mean), p.per_channel(p.running_var)
        if case.operation in ("train", "infer"):
            return _forward(case, p, w, stored)
        return _backward(case, p, w, stored)

    def _separate(self, case: Case, p: Problem) -> Call:
        """Add the steps after batch norm, in place; backward reads y, writes g = dy * (y > 0)."""
        unfused = replace(case, operation=FUSED[case.operation])
        if case.operation == "add_relu":
            normalize, residual = self.call(unfused, p), p.residual

            def forward() -> Array:
                y: Array = normalize()
                np.add(y, residual, out=y)
                return np.maximum(y, 0, out=y)

            return forward
        y = self.call(replace(case, operation="add_relu", output="returned"), p)()
        dy, g = p.dy, p.dresidual
        backward = self.call(unfused, p.with_dy(g))

        def gradients() -> Any:
            np.multiply(dy, y > 0, out=g)
            return (*backward(), g)

        return gradients

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """They are arrays already."""
        return result if isinstance(result, tuple) else (result,)


def _forward(case: Case, p: Problem, w: Array, stored: tuple[Array, Array]) -> Call:
    x, b = p.x, p.per_channel(p.bias)
    batch = case.operation == "train"
    if case.output != "given":
        if batch:
            return lambda: formula.train(x, w, b, p.axes, EPS)
        return lambda: formula.infer(x, *stored, w, b, EPS)

    def into() -> Array:
        mean, var = formula.statistics(x, p.axes) if batch else stored
        np.subtract(x, mean, out=p.out)
        np.multiply(p.out, w / np.sqrt(var + EPS), out=p.out)
        return np.add(p.out, b, out=p.out)

    p.out  # noqa: B018 - made here, not in the first call
    return into


def _backward(case: Case, p: Problem, w: Array, stored: tuple[Array, Array]) -> Call:
    dy, x = p.dy, p.x
    frozen = case.operation == "infer_backward"
    mean, var = stored if frozen else formula.statistics(x, p.axes)
    sums = formula.sums(dy, x, mean, var, p.axes, EPS)
    if case.operation == "grad_sums":
        return lambda: formula.sums(dy, x, mean, var, p.axes, EPS)
    if case.output == "given":
        return _backward_into(case, p, w, (mean, var), sums)
    if case.operation == "grad_input":
        return lambda: sum(formula.input_terms(dy, x, mean, var, *sums, w, EPS))
    backward = formula.infer_backward if frozen else formula.backward
    return lambda: backward(dy, x, mean, var, w, p.axes, EPS)


def _backward_into(
    case: Case, p: Problem, w: Array, statistics: tuple[Array, Array], known: tuple[Array, Array]
) -> Call:
    """Dx = scale * (dy - sum_dy / count - xhat * sum_dy_xhat / count); or scale * dy, frozen."""
    mean, var = statistics
    dy, x, out, xhat = p.dy, p.x, p.out, np.zeros_like(p.x)
    count = x.size // mean.size

    def into() -> Any:
        invstd = 1.0 / np.sqrt(var + EPS)
        np.subtract(x, mean, out=xhat)
        np.multiply(xhat, invstd, out=xhat)
        if case.operation == "grad_input":
            sum_dy, sum_dy_xhat = known
        else:
            np.multiply(dy, xhat, out=out)
            sum_dy, sum_dy_xhat = (a.sum(axis=p.axes, keepdims=True) for a in (dy, out))
        if case.operation == "infer_backward":
            return np.multiply(dy, w * invstd, out=out), sum_dy_xhat, sum_dy
        np.multiply(xhat, sum_dy_xhat / count, out=xhat)
        np.subtract(dy, sum_dy / count, out=out)
        np.subtract(out, xhat, out=out)
        np.multiply(out, w * invstd, out=out)
        return out if case.operation == "grad_input" else (out, sum_dy_xhat, sum_dy)

    return into


def peer(name: str) -> NumpyFormula:
    """Make the peer."""
    return NumpyFormula(name)
