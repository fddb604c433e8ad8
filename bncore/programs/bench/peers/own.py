"""bncore itself: one of its backends, and the native one in two other ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

import bncore
from bncore.backends import load
from bncore.programs.bench.cases import EPS, FUSED, ITEM_BYTES, MAIN, Array, Case, Problem
from bncore.programs.bench.peers import Call

POOL = 1 << 30  # bytes; at least two arrays of every measured size


class Bncore:
    """A backend of bncore."""

    exact = True

    def __init__(self, name: str, backend: str) -> None:
        self.name = name
        self.backend = backend
        load(backend)

    def can(self, case: Case) -> bool:
        """Everything."""
        return True

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Choose the backend; threads are an argument of each call."""
        try:
            with bncore.use_backend(self.backend):
                yield
        finally:
            bncore.set_buffer_pool(None)

    def call(self, case: Case, p: Problem) -> Call:
        """Call the public functions; set the pool as this case needs it, until the next call."""
        bncore.set_buffer_pool(POOL if case.output == "pooled" else None)
        common: dict[str, Any] = {"axis": p.axis, "n_threads": case.threads}
        into = {**common, "eps": EPS}
        if case.output == "given":
            into["out"] = p.out
        if case.operation in FUSED:
            into |= {"activation": "relu", "residual": p.residual}
        match case.operation:
            case "train" | "add_relu":
                return lambda: bncore.batch_norm_train(p.x, p.weight, p.bias, **into)[0]
            case "infer":
                mean, var = p.running_mean, p.running_var
                return lambda: bncore.batch_norm_infer(p.x, mean, var, p.weight, p.bias, **into)
            case "infer_backward":
                given = (p.dy, p.x, p.running_mean, p.running_var, p.weight)
                return lambda: bncore.batch_norm_infer_backward(*given, **into)
            case "moments":
                return lambda: bncore.moments(p.x, **common)
            case "mean_var":
                x, axes = p.reduced
                return lambda: bncore.mean_var(x, axis=axes, n_threads=case.threads)
        moments = bncore.moments(p.x, **common)
        if case.operation == "train_backward":
            return lambda: bncore.batch_norm_train_backward(p.dy, p.x, moments, p.weight, **into)
        if case.operation == "add_relu_backward":
            return _add_relu_backward(case, p, moments, into)
        common["eps"] = EPS
        if case.operation == "grad_sums":
            return lambda: bncore.grad_sums(p.dy, p.x, moments, **common)
        sums = bncore.grad_sums(p.dy, p.x, moments, **common)
        return lambda: bncore.grad_input(p.dy, p.x, moments, sums, p.weight, **into)

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Return the arrays of the statistics instead of their objects."""
        if case.operation == "grad_sums":
            return result.sum_dy, result.sum_dy_xhat
        if case.operation == "moments":
            return result.mean, result.var()
        return result if isinstance(result, tuple) else (result,)


class Given(Bncore):
    """The same call with preallocated memory, for comparison with the pool."""

    def can(self, case: Case) -> bool:
        """Take part where the others return."""
        return case.output == "pooled"

    def call(self, case: Case, p: Problem) -> Call:
        """Call with ``out=``."""
        p.clear(given := replace(case, output="given"))
        return super().call(given, p)


class Alone(Bncore):
    """Batch norm without the fused operations, for comparison with fusion.

    It does the rest only for the check, which is not timed.
    """

    def can(self, case: Case) -> bool:
        """Take part where something is fused, and steps of 16 bits do not round in between."""
        return case.operation in FUSED and ITEM_BYTES[case.dtype] > 2

    def call(self, case: Case, p: Problem) -> Call:
        """Call without activation and residual; backward takes dy times the derivative."""
        if case.operation == "add_relu_backward":
            y = bncore.batch_norm_train(p.x, p.weight, p.bias, axis=p.axis, eps=EPS)[0]
            np.multiply(p.dy, y + p.residual > 0, out=p.dresidual)
            p = p.with_dy(p.dresidual)
        return super().call(replace(case, operation=FUSED[case.operation]), p)

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Do the operations that the timed call left out."""
        if case.operation == "add_relu_backward":
            return (*result, p.dresidual)
        return (np.maximum(result + p.residual, 0),)


class Wide(Bncore):
    """The same values in float32, for comparison with 16 bits."""

    def can(self, case: Case) -> bool:
        """Take the main operations on 16-bit data."""
        return ITEM_BYTES[case.dtype] == 2 and case.operation in MAIN

    def call(self, case: Case, p: Problem) -> Call:
        """Widen the arrays; the result is rounded for the check, which is not timed."""
        wide = replace(p, dtype="float32")
        wide.x, wide.dy = wide.touched(), wide.touched()
        wide.x[...], wide.dy[...] = p.x, p.dy
        return super().call(replace(case, dtype="float32"), wide)


def _add_relu_backward(case: Case, p: Problem, moments: bncore.Moments, into: Any) -> Call:
    """Give memory for the residual's gradient; where dx is returned, the other takes dy's place."""
    dy, dresidual = p.dy, p.dresidual
    if case.output != "given":
        dy = dresidual  # of p.dy a copy: others need it as it is, and twice gives the same
        dy[...] = p.dy
    given = (dy, p.x, moments, p.weight)
    into = {**into, "bias": p.bias, "dresidual": dresidual}
    return lambda: (*bncore.batch_norm_train_backward(*given, **into), dresidual)


KINDS = {"": Bncore, "given": Given, "alone": Alone, "wide": Wide}


def peer(name: str, backend: str, kind: str = "") -> Bncore:
    """Make the peer; ImportError where the backend is missing."""
    return KINDS[kind](name, backend)
