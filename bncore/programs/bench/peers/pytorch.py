"""PyTorch, eager, with and without allocation; its channels last is a view of NHWC memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bncore.programs.bench.cases import (
    EPS,
    FUSED,
    ITEM_BYTES,
    Array,
    Case,
    Problem,
    numpy_dtype,
)
from bncore.programs.bench.peers import Call


class Torch:
    """The functions behind ``torch.nn.functional.batch_norm``."""

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name

    def can(self, case: Case) -> bool:
        """Take everything except the halves of the gradient; statistics have no given output.

        Statistics of 16-bit values come in 16 bits, and separate steps round in between: these are
        other operations than bncore's.
        """
        if case.operation in ("moments", "mean_var", *FUSED):
            return ITEM_BYTES[case.dtype] > 2
        return case.operation not in ("grad_sums", "grad_input")

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Set PyTorch's number of threads, and switch the recording of gradients off."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_num_threads(before)

    def call(self, case: Case, p: Problem) -> Call:
        """Wrap the arrays as tensors, NCHW in PyTorch's eyes."""
        if case.operation in ("moments", "mean_var"):
            return self._statistics(case, p)
        if case.operation in FUSED:
            return separate(case, p)
        x = tensor(p.x, p)
        w, b, *stored = map(torch.from_numpy, (p.weight, p.bias, p.running_mean, p.running_var))
        if case.operation in ("train", "infer"):
            batch = case.operation == "train"
            given = (x, w, b, *([None, None] if batch else stored), batch, 0.1, EPS)
            if case.output != "given":
                return lambda: torch.native_batch_norm(*given)[0]
            saved = [torch.empty(w.shape if batch else 0, dtype=w.dtype) for _ in range(2)]
            out = (tensor(p.out, p), *saved)
            return lambda: torch.native_batch_norm(*given, out=out)[0]
        dy, batch = tensor(p.dy, p), case.operation == "train_backward"
        # Training saved the mean and the inverse standard deviation.
        saved = torch.native_batch_norm(x, w, b, None, None, True, 0.1, EPS)[1:]
        running = [None, None] if batch else stored
        given = (dy, x, w, *running, *saved, batch, EPS, [True, True, True])
        backward = torch.ops.aten.native_batch_norm_backward
        if case.output != "given":
            return lambda: backward(*given)
        outs = {"out0": tensor(p.out, p), "out1": torch.empty_like(w), "out2": torch.empty_like(w)}
        return lambda: backward.out(*given, **outs)

    def _statistics(self, case: Case, p: Problem) -> Call:
        x, axes = p.reduced
        wrapped = torch.from_numpy(x)
        return lambda: torch.var_mean(wrapped, axes, correction=0)[::-1]

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Move the channel axis back to its place in memory."""
        tensors = result if isinstance(result, tuple | list) else (result,)
        return tuple(array_of(t, p) for t in tensors)


def separate(case: Case, p: Problem) -> Call:
    """Use one operation for each step, in place if the step before made the array.

    Backward reads y, which PyTorch saves.
    """
    x, residual = tensor(p.x, p), tensor(p.residual, p)
    w, b = map(torch.from_numpy, (p.weight, p.bias))
    given = (x, w, b, None, None, True, 0.1, EPS)
    saved = [torch.empty_like(w) for _ in range(2)]
    outs: dict[str, Any] = {}
    if case.output == "given":
        outs["out"] = (tensor(p.out, p), *saved)

    def forward() -> Any:
        return torch.native_batch_norm(*given, **outs)[0].add_(residual).relu_()

    if case.operation == "add_relu":
        return forward
    y = torch.relu(torch.native_batch_norm(*given, out=(torch.empty_like(x), *saved))[0] + residual)
    dy = tensor(p.dy, p)
    known = (None, None, *saved, True, EPS, [True, True, True])
    aten = torch.ops.aten
    if case.output == "given":
        dresidual, dw, db = tensor(p.dresidual, p), torch.empty_like(w), torch.empty_like(w)
        grads = {"out0": tensor(p.out, p), "out1": dw, "out2": db}

        def backward() -> Any:
            g = aten.threshold_backward.grad_input(dy, y, 0, grad_input=dresidual)
            return (*aten.native_batch_norm_backward.out(g, x, w, *known, **grads), g)

        return backward

    def returned() -> Any:
        g = aten.threshold_backward(dy, y, 0)
        return (*aten.native_batch_norm_backward(g, x, w, *known), g)

    return returned


def tensor(array: Array, p: Problem) -> Any:
    """Wrap an array of x's shape; the channel axis becomes the second.

    Sequences become images of height 1, because PyTorch has channels last only in four and five
    dimensions, and writes NLC to a given output in the wrong order.
    """
    if p.dtype == "bfloat16":  # PyTorch does not know NumPy's
        wrapped = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        wrapped = torch.from_numpy(array)
    wrapped = wrapped.movedim(p.axis, 1)
    return wrapped.unsqueeze(2) if array.ndim == 3 and p.axis == -1 else wrapped


def array_of(made: Any, p: Problem) -> Array:
    """Return a tensor as an array, the channel axis of a large one at its place in memory."""
    if made.ndim > 1:
        made = made.movedim(1, p.axis)
    if made.dtype == torch.bfloat16:
        array: Array = made.contiguous().view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    else:
        array = made.numpy()
    return array.reshape(p.memory_shape) if made.ndim > 1 else array


def peer(name: str) -> Torch:
    """Make the peer."""
    return Torch(name)
