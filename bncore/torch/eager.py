"""The short way of a call that nothing traces: one autograd function, straight to bncore.

The operators of `ops.py` pass PyTorch's dispatcher several times a step, which costs more than a
small batch norm.  Where nobody watches (no compiler, no mode, no transform, ordinary CPU tensors),
the same functions are called at once; a gradient that will be differentiated again is the
operator's.  Results are the same to the bit.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

import bncore
from bncore.statistics import Moments
from bncore.torch import ops
from bncore.torch.memory import array, in_order_of, optional, output

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))

Running = tuple[torch.Tensor, torch.Tensor, float]  # mean, var, momentum

_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_compiling = torch.compiler.is_compiling


def possible(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Tell whether a call with these tensors may go the short way."""
    if _compiling() or _modes() or _transform() is not None:
        return False
    if not x.is_cpu or x.layout is not torch.strided or x.is_neg():
        return False
    return type(x) in PLAIN and PLAIN.issuperset(map(type, others))


def train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    activation: Literal["relu", "leaky_relu"] | None,
    slope: float,
    running: Running | None,
) -> tuple[torch.Tensor, Moments]:
    """Return y and the batch's moments, and move the running statistics, where there are any."""
    y = output(x)
    _, moments = bncore.batch_norm_train(
        array(x),
        optional(weight),
        optional(bias),
        eps=eps,
        out=array(y),
        activation=activation,
        negative_slope=slope,
        residual=None if residual is None else array(in_order_of(x, residual)),
        n_threads=torch.get_num_threads(),
    )
    if running is not None:
        ops.move_running_stats(running[0], running[1], moments, running[2])
    return y, moments


def call(*arguments: Any) -> torch.Tensor:
    """Do what `train` does, for y alone; gradients are recorded where PyTorch records any."""
    y: torch.Tensor = Train.apply(*arguments) if torch.is_grad_enabled() else train(*arguments)[0]
    return y


class Train(torch.autograd.Function):
    """`train` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        eps: float,
        activation: Literal["relu", "leaky_relu"] | None,
        slope: float,
        running: Running | None,
    ) -> torch.Tensor:
        """Return y, and move the running statistics."""
        y, moments = train(x, weight, bias, residual, eps, activation, slope, running)
        if activation is None:  # then no gradient depends on them
            bias = residual = None
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.moments = moments
        ctx.fusion = eps, activation, slope
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by forward's tensors."""
        x, weight, bias, residual = ctx.saved_tensors
        eps, activation, slope = ctx.fusion
        needs_residual = ctx.needs_input_grad[3]
        through = needs_residual and activation is not None
        dresidual = dy
        if torch.is_grad_enabled():
            dx, dweight, dbias, masked = ops.train_backward_op(
                dy, x, ops.as_tensor(ctx.moments), weight, bias, residual, *ctx.fusion, through
            )
            if through:
                dresidual = masked
        else:
            dx = output(x)
            if through:
                dresidual = output(x)
            _, dweight, dbias = bncore.batch_norm_train_backward(
                array(in_order_of(x, dy)),
                array(x),
                ctx.moments,
                optional(weight),
                eps=eps,
                out=array(dx),
                bias=optional(bias),
                activation=activation,
                negative_slope=slope,
                residual=None if residual is None else array(in_order_of(x, residual)),
                dresidual=array(dresidual) if through else None,
                n_threads=torch.get_num_threads(),
            )
            dweight, dbias = torch.from_numpy(dweight), torch.from_numpy(dbias)
        needs = ctx.needs_input_grad
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            dbias if needs[2] else None,
            dresidual if needs_residual else None,
            None,
            None,
            None,
            None,
        )
