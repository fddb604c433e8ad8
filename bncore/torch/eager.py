"""The short way of a call that nothing traces, where the compiled part is missing.

The operators of `ops.py` pass PyTorch's dispatcher several times a step, which costs more than a
small batch norm.  Where nobody watches (no compiler, no mode, no transform, ordinary CPU tensors),
one autograd function calls their kernels at once; a gradient that will be differentiated again is
the operator's.  Results are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch

from bncore.torch import gradients, ops, transforms

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))

_modes = torch._C._len_torch_dispatch_stack
_batched = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched makes them
_compiling = torch.compiler.is_compiling


def possible(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Tell whether a call with these tensors may go the short way."""
    if _compiling() or _modes() or transforms.active():
        return False
    if _batched(x) or not x.is_cpu or x.layout is not torch.strided or x.is_neg():
        return False
    return type(x) in PLAIN and PLAIN.issuperset(map(type, others))


def call(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    momentum: float,
    *fused: Any,
) -> torch.Tensor:
    """Return y, and move the running statistics; gradients are recorded where PyTorch does."""
    if torch.is_grad_enabled():
        y, moments = Train.apply(x, *fused)
    else:
        y, moments = ops.batch_norm_train(x, *fused)
    if running_mean is not None and running_var is not None:
        count = ops.values_per_channel(x)
        ops.update_running_stats_(running_mean, running_var, moments, count, momentum)
    result: torch.Tensor = y
    return result


class Train(torch.autograd.Function):
    """`ops.batch_norm_train` and its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y and the moments."""
        y, moments = ops.batch_norm_train(*arguments)
        gradients.save_train(ctx, arguments, (y, moments))
        return y, moments

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        """Return the gradients by forward's tensors."""
        dy = grads[0]
        short = dy is not None and possible(dy) and not torch.is_grad_enabled()
        kernel = ops.batch_norm_train_backward if short else transforms.train_backward
        return gradients.train_backward(ctx, *grads, kernel=kernel)
