"""Training that keeps y for the gradient, and not x: in-place activated batch norm.

The next layer keeps y anyway, so that x is freed.  Backward inverts what forward did.  With the
leaky ReLU's inverse, ``z = leaky^-1(y) - residual`` is what batch norm itself gave, and z is
normalized by its own bias b and weight w: ``xhat = (z - b) / w``.  The gradients of batch norm are
the same for z in place of x, with the mean b and the variance w^2, so x itself is never computed.

y was rounded when it was stored.  So xhat has an error of a few roundings, ``2^-24`` of
``|xhat| + |b / w| + |residual / w|`` in float32, where a layer that keeps x has ``2^-24 |xhat|``.
`LOSS` bounds the second term.

S. Rota Bulo, L. Porzi, P. Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training
of DNNs", CVPR 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bncore.torch import eager, ops
from bncore.torch.counting import Counted
from bncore.torch.functional import check
from bncore.torch.memory import output

KEEPS_OUTPUT = "_bncore_keeps_output"  # the attribute of a module that keeps y where it can:
ALWAYS, ACTIVATED = "always", "activated"  # ... whatever follows, or if leaky ReLU does
LOSS = 128.0  # |bias| may be so many weights, and 1 where there is a residual: 7 bits are lost
SMALLEST = 2.0**-60  # of a weight or slope: gradients or y are divided by it
FLOATS = (torch.float32, torch.float64)  # 16 bits have none to lose


def train(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    momentum: float,
    eps: float,
    then: tuple[str, float] | None,
    residual: torch.Tensor | None,
    batches: torch.Tensor | None,
    counted: Counted,
) -> torch.Tensor | None:
    """Compute batch norm in training and keep y, or return None where x has to be kept."""
    tensors = (weight, bias, residual, running_mean, running_var, batches)
    if not (torch.is_grad_enabled() and counted.plain and eager.possible(x, *tensors)):
        return None
    if x.dtype not in FLOATS or not (then is None or _can_go_back(*then)):
        return None
    check(x, running_mean, running_var, weight, bias, residual, True, eps)
    if not x.numel() or not _is_invertible(weight, bias, residual is not None):
        return None
    y, moments = _KeepsOutput.apply(x, weight, bias, residual, eps, then)
    eager.track(ops.update_op, running_mean, running_var, moments, momentum, batches)
    result: torch.Tensor = y
    return result


def _can_go_back(activation: str, slope: float) -> bool:
    """Tell whether an activation has an inverse, for values that neither vanish nor overflow."""
    return activation == "leaky_relu" and SMALLEST <= slope <= 1.0 / SMALLEST


def _is_invertible(weight: torch.Tensor | None, bias: torch.Tensor | None, residual: bool) -> bool:
    """Tell whether the inverse loses no more digits than `LOSS` says."""
    with torch.no_grad():
        added = torch.zeros(1) if bias is None else bias.abs().double()
        least = added.clamp_min(1.0 if residual else 0.0) / LOSS
        own = torch.ones(1) if weight is None else weight.abs()
        return bool((own >= least.clamp_min(SMALLEST)).all())


class _KeepsOutput(torch.autograd.Function):
    """Training, and the gradients from y."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        eps: float,
        then: tuple[str, float] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        settings = (eps, *(then or (None, 0.0)), "propagate", None)
        y, moments = ops.train_op(x, weight, bias, residual, None, None, *settings)
        ctx.mark_non_differentiable(moments)
        ctx.eps, ctx.slope = eps, then and then[1]
        ctx.save_for_backward(y, weight, bias, residual, moments)
        return y, moments

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        y, weight, bias, residual, moments = ctx.saved_tensors
        z, g = y, dy
        if ctx.slope is not None:  # into memory of earlier results
            z, g = output(y), output(y)
            torch.ops.aten.leaky_relu.out(y, 1.0 / ctx.slope, out=z)
            torch.ops.aten.leaky_relu_backward.grad_input(dy, y, ctx.slope, True, grad_input=g)
        if residual is not None:
            z = torch.sub(y, residual, out=output(y)) if z is y else z.sub_(residual)
        count, _, m2 = moments
        b = torch.zeros_like(m2) if bias is None else bias.double()
        w = torch.ones_like(m2) if weight is None else weight.double()
        scale = w.square() / (m2 / count + ctx.eps).sqrt() * w.sign()
        dx, dweight, dbias, _ = ops.train_backward_op(
            g, z, torch.stack((count, b, count * w.square())), scale, None, None, None, None,
            0.0, None, 0.0, "propagate", None, False,
        )  # fmt: skip
        found = (dx, dweight * w.sign(), dbias, g)
        dtypes = (x if x is None else x.dtype for x in (y, weight, bias, residual))
        return (
            *(
                one.to(dtype) if need else None
                for one, dtype, need in zip(found, dtypes, ctx.needs_input_grad, strict=False)
            ),
            None,
            None,
        )
