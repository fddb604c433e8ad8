"""``torch.compile``: Inductor's C++, with returned outputs.  Compiling is not timed.

It needs a C++ compiler.  Compiled code belongs to one shape, dtype and number of threads.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bncore.programs.bench.cases import EPS, FUSED, ITEM_BYTES, MAIN, Case, Problem
from bncore.programs.bench.peers import Call
from bncore.programs.bench.peers.pytorch import Torch, tensor


def train(x: Any, w: Any, b: Any) -> Any:
    """Normalize with the statistics of the batch, as a user writes it."""
    return torch.nn.functional.batch_norm(x, None, None, w, b, True, 0.1, EPS)


def infer(x: Any, mean: Any, var: Any, w: Any, b: Any) -> Any:
    """Normalize with given statistics."""
    return torch.nn.functional.batch_norm(x, mean, var, w, b, False, 0.1, EPS)


def backward(dy: Any, x: Any, w: Any, mean: Any, invstd: Any) -> Any:
    """Compute the gradients, for which Inductor makes its own loops."""
    return torch.ops.aten.native_batch_norm_backward(
        dy, x, w, None, None, mean, invstd, True, EPS, [True, True, True]
    )


def add_relu(x: Any, residual: Any, w: Any, b: Any) -> Any:
    """Compute the end of a residual block."""
    return torch.relu(train(x, w, b) + residual)


def add_relu_backward(dy: Any, y: Any, x: Any, w: Any, mean: Any, invstd: Any) -> Any:
    """Compute its gradients from y, which PyTorch saves; the last one is the residual's."""
    g = torch.ops.aten.threshold_backward(dy, y, 0)
    return (*backward(g, x, w, mean, invstd), g)


class TorchCompiled(Torch):
    """PyTorch, with calls of compiled functions."""

    def can(self, case: Case) -> bool:
        """Take the three main operations and the fused ones, returned."""
        takes = case.operation in (*MAIN, *FUSED) and ITEM_BYTES[case.dtype] > 2
        return takes and case.output != "given"

    def call(self, case: Case, p: Problem) -> Call:
        """Compile for this case alone."""
        x = tensor(p.x, p)
        w, b, *stored = map(torch.from_numpy, (p.weight, p.bias, p.running_mean, p.running_var))
        function: Any
        given: tuple[Any, ...]
        match case.operation:
            case "train":
                function, given = train, (x, w, b)
            case "infer":
                function, given = infer, (x, *stored, w, b)
            case "add_relu":
                function, given = add_relu, (x, tensor(p.residual, p), w, b)
            case _:
                saved = torch.native_batch_norm(x, w, b, None, None, True, 0.1, EPS)[1:]
                function, given = backward, (tensor(p.dy, p), x, w, *saved)
        if case.operation == "add_relu_backward":
            y = add_relu(x, tensor(p.residual, p), w, b)
            function, given = add_relu_backward, (given[0], y, *given[1:])
        torch._dynamo.reset()  # because the number of versions of a function is limited
        compiled = torch.compile(function, dynamic=False, fullgraph=True)
        with warnings.catch_warnings():  # Inductor's own, about older parts of PyTorch
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled(*given)
        return lambda: compiled(*given)


def peer(name: str) -> TorchCompiled:
    """Make the peer."""
    return TorchCompiled(name)
