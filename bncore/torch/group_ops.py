"""The operators of group norm, and with it of instance norm and layer norm, and their gradients.

x is (N, C, ...), and every group of C / groups neighbouring channels of every sample has its own
statistics.  ``moments`` is a (3, N * groups) float64 tensor with count, mean and sum of squared
deviations.  Layer norm is group norm of one group, of x as (rows, width).

The first gradients are an operator of their own.  Gradients that will be differentiated again are a
formula in PyTorch's operations, which can be differentiated to any order.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

import bncore
from bncore.torch import compiled, ops, transforms
from bncore.torch.dtypes import ARITHMETIC, checked, gradient_dtype
from bncore.torch.memory import array, copied, in_order_of, optional, output

SCHEMAS = {
    "group_norm": (
        "(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps) "
        "-> (Tensor y, Tensor moments)"
    ),
    "group_norm_backward": (
        "(Tensor dy, Tensor x, Tensor moments, int groups, Tensor? weight, float eps) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias)"
    ),
}

_batched = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched makes them

Gradients: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def in_samples(x: torch.Tensor) -> torch.Tensor:
    """Return x in the memory order that PyTorch gives to results like it."""
    return x.contiguous(memory_format=_format(x))


def _format(x: torch.Tensor) -> torch.memory_format:
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    kind = kinds.get(x.dim())
    if kind is not None and not x.is_contiguous() and x.is_contiguous(memory_format=kind):
        return kind
    return torch.contiguous_format


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `bncore.group_norm`."""
    x = in_samples(checked(x))
    y = output(x)
    given = optional(weight), optional(bias)
    threads = torch.get_num_threads()
    _, moments = bncore.group_norm(
        array(x), groups, *given, eps=eps, out=array(y), n_threads=threads
    )
    return y, ops.as_tensor(moments)


def group_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    eps: float,
) -> Gradients:
    """Run `bncore.group_norm_backward`."""
    x = in_samples(checked(x))
    dx = output(x)
    given = array(in_order_of(x, dy)), array(x), ops.as_moments(moments), groups, optional(weight)
    threads = torch.get_num_threads()
    _, dweight, dbias = bncore.group_norm_backward(
        *given, eps=eps, out=array(dx), n_threads=threads
    )
    return dx, copied(dweight), copied(dbias)


# Without values, for tracing


def shapes(x: torch.Tensor, groups: int, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Make tensors like the results of `group_norm`."""
    moments = x.new_empty((3, x.shape[0] * groups), dtype=torch.float64)
    return torch.empty_like(in_samples(checked(x))), moments


def backward_shapes(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    eps: float,
) -> Gradients:
    """Make tensors like the results of `group_norm_backward`."""
    dtype = gradient_dtype(x, weight)
    dweight, dbias = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    return torch.empty_like(in_samples(x)), dweight, dbias


# Gradients


def formula(
    dy: torch.Tensor,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    eps: float,
) -> Gradients:
    """Compute the gradients in PyTorch's operations: ``dx = r P(weight * dy)``.

    ``P(v) = v - mean(v) - xhat mean(v xhat)``, with means over a group, and ``r = invstd``.
    """
    kind = ARITHMETIC[x.dtype]
    shape = (x.shape[0], groups, -1)
    along = (1, -1, *[1] * (x.dim() - 2))
    values = x.to(kind).reshape(shape)
    centered = values - values.mean(2, keepdim=True)
    r = torch.rsqrt((centered * centered).mean(2, keepdim=True) + eps)
    xhat = centered * r
    g = dy.to(kind)
    slope = g if weight is None else g * weight.to(kind).reshape(along)
    v = slope.reshape(shape)
    projected = v - v.mean(2, keepdim=True) - xhat * (v * xhat).mean(2, keepdim=True)
    dx = (r * projected).reshape(x.shape).to(x.dtype)
    axes = [d for d in range(x.dim()) if d != 1]
    dtype = gradient_dtype(x, weight)
    dweight = (g * xhat.reshape(x.shape)).sum(axes).to(dtype)
    return dx, dweight, g.sum(axes).to(dtype)


def gradients(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    groups: int,
    first: int,
    weight: torch.Tensor | None,
    eps: float,
) -> Gradients:
    """Return the gradients; with ``first > 0`` those of layer norm of the axes from `first` on."""
    if first > 0:
        rows = moments.shape[1]
        two = dy.reshape(rows, -1), x.reshape(rows, -1)
        flat = None if weight is None else weight.reshape(-1)
        dx, *others = gradients(*two, moments, 1, 0, flat, eps)
        dweight, dbias = (one.reshape(x.shape[first:]) for one in others)
        return dx.reshape(x.shape), dweight, dbias
    with torch._C.DisableTorchFunctionSubclass():  # as PyTorch's own gradients
        if torch.is_grad_enabled() or transforms.active() or _batched(dy):
            return formula(dy, x, groups, weight, eps)
        found: Gradients = backward_op(dy, x, moments, groups, weight, eps)
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, ctx.groups, weight, _, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight)


def _backward(ctx: Any, dy: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 5
    x, moments, weight = ctx.saved_tensors
    found = gradients(dy, x, moments, ctx.groups, 0, weight, ctx.eps)
    needs = (ctx.needs_input_grad[i] for i in (0, 2, 3))
    dx, dweight, dbias = (v if n else None for v, n in zip(found, needs, strict=True))
    return dx, None, dweight, dbias, None


def _define() -> None:
    kernels: dict[str, tuple[Any, Any]] = {
        "group_norm": (group_norm, shapes),
        "group_norm_backward": (group_norm_backward, backward_shapes),
    }
    for name, (kernel, shape) in kernels.items():
        ops.library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        if compiled.adapter is None:  # the compiled part has its own kernels
            ops.library.impl(name, ops.guarded(kernel), "CPU")
        torch.library.register_fake(f"{ops.NAMESPACE}::{name}", shape, lib=ops.library)
    torch.library.register_autograd(
        f"{ops.NAMESPACE}::group_norm", _backward, setup_context=_save, lib=ops.library
    )


_define()
forward_op = torch.ops.bncore.group_norm.default
backward_op = torch.ops.bncore.group_norm_backward.default

if compiled.adapter is not None:
    compiled.adapter.set_group_backward(gradients)
