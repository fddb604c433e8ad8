"""A faster path for calls that nothing traces, used if the compiled part is missing.

The operators of `ops.py` go through PyTorch's dispatcher several times a step, which takes longer
than a small batch norm.  If no compiler, mode or transform is active and all tensors are ordinary
CPU tensors, one autograd function calls the kernels directly.  A gradient that will be
differentiated again still uses the operator.  The results have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bncore.torch import gradients, ops, transforms

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))

_modes = torch._C._len_torch_dispatch_stack
_batched = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched makes them
_tracing = torch._C._get_tracing_state
_zero = torch._is_zerotensor
_compiling = torch.compiler.is_compiling


def possible(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Tell whether a call with these tensors may take the faster path."""
    if _compiling() or _modes() or _tracing() is not None or transforms.active():
        return False
    return not _batched(x) and all(map(ordinary, (x, *others)))


def ordinary(tensor: torch.Tensor | None) -> bool:
    """Tell whether a tensor is plain memory on the CPU, or None."""
    if tensor is None:
        return True
    if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
        return False
    return not (tensor.is_neg() or tensor.is_quantized or tensor.is_nested or _zero(tensor))


def call(x: torch.Tensor, *fused: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the moments; record gradients if PyTorch does."""
    if torch.is_grad_enabled():
        y, moments = Train.apply(x, *fused)
        return y, moments
    return ops.batch_norm_train(x, *fused)


def track(
    move: Callable[..., None],
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    moments: torch.Tensor,
    momentum: float,
    batches: torch.Tensor | None,
) -> None:
    """Update running statistics with `move` and count the batch; do both or nothing.

    KeyboardInterrupt can come between the steps; then the tensors get back the values that they
    had.  Under a mode or a transform, which would see the copies, they do not.
    """
    changed = [one for one in (running_mean, running_var, batches) if one is not None]
    alone = not (_compiling() or _modes() or transforms.active())
    before = [one.detach().clone() for one in changed] if alone else []
    try:
        if running_mean is not None:
            move(running_mean, running_var, moments, momentum)
        if batches is not None:
            batches.add_(1)
    except BaseException:
        with torch.no_grad():
            for one, old in zip(changed, before, strict=False):
                one.copy_(old)
        raise


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
        """Return the gradients of forward's tensors."""
        dy = grads[0]
        short = dy is not None and possible(dy) and not torch.is_grad_enabled()
        kernel = ops.batch_norm_train_backward if short else transforms.train_backward
        return gradients.train_backward(ctx, *grads, kernel=kernel)
