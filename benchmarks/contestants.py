"""Who is measured: bncore's backends, the NumPy formula, and PyTorch where it is installed.

Each contestant makes, for an operation on a `Problem`, a function without arguments that does it
and returns the result. bncore and PyTorch write into preallocated outputs; the formula, as people
write it, does not. What is timed is one call; nothing is prepared in it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

import bncore
from bncore.demo import formula
from cases import EPS, Problem

Call = Callable[[], Any]


def torch_module() -> ModuleType | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch


def native_module() -> ModuleType | None:
    if importlib.util.find_spec("bncore.backends.native") is None:
        return None
    return importlib.import_module("bncore.backends.native")


class Bncore:
    """A backend of bncore."""

    exact = True  # it is held to the promised accuracy; the others to plausibility

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"bncore {backend}"

    def can(self, operation: str) -> bool:
        return True

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        with bncore.use_backend(self.backend):
            yield

    def call(self, operation: str, p: Problem) -> Call:
        common = {"axis": p.axis, "n_threads": p.threads}
        eps = {"eps": EPS}
        moments = bncore.moments(p.x, **common)
        sums = bncore.grad_sums(p.dy, p.x, moments, **common, **eps)
        statistics = (p.running_mean, p.running_var)
        into = {**common, **eps, "out": p.out}
        calls: dict[str, Call] = {
            "train": lambda: bncore.batch_norm_train(p.x, p.weight, p.bias, **into)[0],
            "infer": lambda: bncore.batch_norm_infer(p.x, *statistics, p.weight, p.bias, **into),
            "train_backward": lambda: bncore.batch_norm_train_backward(
                p.dy, p.x, moments, p.weight, **into
            ),
            "infer_backward": lambda: bncore.batch_norm_infer_backward(
                p.dy, p.x, *statistics, p.weight, **into
            ),
            "grad_sums": lambda: bncore.grad_sums(p.dy, p.x, moments, **common, **eps),
            "grad_input": lambda: bncore.grad_input(p.dy, p.x, moments, sums, p.weight, **into),
            "moments": lambda: bncore.moments(p.x, **common),
            "mean_var": lambda: bncore.mean_var(p.x, axis=p.axes, n_threads=p.threads),
        }
        return calls[operation]

    def arrays(self, operation: str, result: Any, p: Problem) -> tuple[np.ndarray, ...]:
        if operation == "grad_sums":
            return result.sum_dy, result.sum_dy_xhat
        if operation == "moments":
            return result.mean, result.var()
        return result if isinstance(result, tuple) else (result,)


class NumpyFormula:
    """What everybody writes, in float32."""

    exact = False
    name = "NumPy formula"

    def can(self, operation: str) -> bool:
        return True

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        yield

    def call(self, operation: str, p: Problem) -> Call:
        w, b = p.per_channel(p.weight), p.per_channel(p.bias)
        stored = p.per_channel(p.running_mean), p.per_channel(p.running_var)
        batch = formula.statistics(p.x, p.axes)
        sums = formula.sums(p.dy, p.x, *batch, p.axes, EPS)
        calls: dict[str, Call] = {
            "train": lambda: formula.train(p.x, w, b, p.axes, EPS),
            "infer": lambda: formula.infer(p.x, *stored, w, b, EPS),
            "train_backward": lambda: formula.backward(p.dy, p.x, *batch, w, p.axes, EPS),
            "infer_backward": lambda: formula.infer_backward(p.dy, p.x, *stored, w, p.axes, EPS),
            "grad_sums": lambda: formula.sums(p.dy, p.x, *batch, p.axes, EPS),
            "grad_input": lambda: sum(formula.input_terms(p.dy, p.x, *batch, *sums, w, EPS)),
            "moments": lambda: formula.statistics(p.x, p.axes),
            "mean_var": lambda: (p.x.mean(axis=p.axes), p.x.var(axis=p.axes)),
        }
        return calls[operation]

    def arrays(self, operation: str, result: Any, p: Problem) -> tuple[np.ndarray, ...]:
        return result if isinstance(result, tuple) else (result,)


class Torch:
    """PyTorch without its allocations; its channels last is an NCHW view of NHWC memory."""

    exact = False
    name = "PyTorch"

    def __init__(self, torch: ModuleType) -> None:
        self.torch = torch

    def can(self, operation: str) -> bool:
        return operation not in ("grad_sums", "grad_input")

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(threads)
        try:
            with self.torch.no_grad():
                yield
        finally:
            self.torch.set_num_threads(before)

    def call(self, operation: str, p: Problem) -> Call:
        torch = self.torch
        x, dy, out = (torch.from_numpy(a).movedim(p.axis, 1) for a in (p.x, p.dy, p.out))
        w, b, *stored = map(torch.from_numpy, (p.weight, p.bias, p.running_mean, p.running_var))
        batch_mean, invstd, dw, db = (torch.empty_like(w) for _ in range(4))
        forward, backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward.out
        train_out = {"out": (out, batch_mean, invstd)}
        infer_out = {"out": (out, torch.empty(0), torch.empty(0))}
        saved, grads = (batch_mean, invstd), {"out0": out, "out1": dw, "out2": db}
        which = [True, True, True]
        axes = [a for a in range(x.ndim) if a != 1]
        if operation == "train_backward":  # it reads what training saved
            forward(x, w, b, None, None, True, 0.1, EPS, **train_out)
        calls: dict[str, Call] = {
            "train": lambda: forward(x, w, b, None, None, True, 0.1, EPS, **train_out)[0],
            "infer": lambda: forward(x, w, b, *stored, False, 0.1, EPS, **infer_out)[0],
            "train_backward": lambda: backward(
                dy, x, w, None, None, *saved, True, EPS, which, **grads
            ),
            "infer_backward": lambda: backward(
                dy, x, w, *stored, *saved, False, EPS, which, **grads
            ),
            "moments": lambda: torch.var_mean(x, axes, correction=0)[::-1],
        }
        calls["mean_var"] = calls["moments"]
        return calls[operation]

    def arrays(self, operation: str, result: Any, p: Problem) -> tuple[np.ndarray, ...]:
        tensors = result if isinstance(result, tuple) else (result,)
        return tuple((t.movedim(1, p.axis) if t.ndim == p.x.ndim else t).numpy() for t in tensors)


Contestant = Bncore | NumpyFormula | Torch


def contestants() -> list[Contestant]:
    """Everyone who can run here, bncore first."""
    backends = ["native"] * (native_module() is not None) + ["numba", "numpy"]
    torch = torch_module()
    return [*map(Bncore, backends), NumpyFormula(), *([Torch(torch)] if torch else [])]
