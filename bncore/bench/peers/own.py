"""bncore itself: one of its backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bncore
from bncore.backends import load
from bncore.bench.cases import EPS, Array, Case, Problem
from bncore.bench.peers import Call


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
        with bncore.use_backend(self.backend):
            yield

    def call(self, case: Case, p: Problem) -> Call:
        """Call the public functions."""
        common: dict[str, Any] = {"axis": p.axis, "n_threads": case.threads}
        into = {**common, "eps": EPS}
        if case.output == "given":
            into["out"] = p.out
        match case.operation:
            case "train":
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
        common["eps"] = EPS
        if case.operation == "grad_sums":
            return lambda: bncore.grad_sums(p.dy, p.x, moments, **common)
        sums = bncore.grad_sums(p.dy, p.x, moments, **common)
        return lambda: bncore.grad_input(p.dy, p.x, moments, sums, p.weight, **into)

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Take the statistics out of their classes."""
        if case.operation == "grad_sums":
            return result.sum_dy, result.sum_dy_xhat
        if case.operation == "moments":
            return result.mean, result.var()
        return result if isinstance(result, tuple) else (result,)


def peer(name: str, backend: str) -> Bncore:
    """Make the peer; ImportError where the backend is missing."""
    return Bncore(name, backend)
