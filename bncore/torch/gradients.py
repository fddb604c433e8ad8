"""Gradients of the operators, and gradients of those gradients.

The first gradients are fast operators of their own.  The second gradients are formulas in PyTorch's
operations.  They use only x, dy and weight, so PyTorch can differentiate them again, to any order.
Data of 16 bits is computed in float32 here, too, and rounded at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from bncore.torch import ops

Grad: TypeAlias = torch.Tensor | None


# First


def refuse_gradients(ctx: Any, **positions: int) -> None:
    """Raise PyTorch's error if one of these arguments requires a gradient, which it has not."""
    for name, position in positions.items():
        if ctx.needs_input_grad[position]:
            raise RuntimeError(ops.NOT_DIFFERENTIABLE.format("operator of bncore", name))


def save_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Save the tensors that backward of `batch_norm_train` needs."""
    x, weight, bias, residual, eps, activation, slope = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.fusion = eps, activation, slope
    if activation is None:  # no gradient depends on them without an activation
        bias, residual = None, None
    ctx.save_for_backward(x, output[1], weight, bias, residual)


def train_backward(
    ctx: Any, dy: Grad, _: Grad, *, kernel: Callable[..., ops.Gradients] = ops.train_backward_op
) -> tuple[Any, ...]:
    """Return the gradients of `batch_norm_train`; `kernel` is called in place of the operator."""
    if dy is None:
        return (None,) * 7
    x, moments, weight, bias, residual = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual, *_rest = ctx.needs_input_grad
    through = needs_residual and ctx.fusion[1] is not None
    with torch._C.DisableTorchFunctionSubclass():  # as PyTorch's own gradients
        dx, dweight, dbias, dresidual = kernel(
            dy, x, moments, weight, bias, residual, *ctx.fusion, through
        )
    return (
        dx if needs_x else None,
        dweight if needs_weight else None,
        dbias if needs_bias else None,
        (dresidual if through else dy) if needs_residual else None,
        None,
        None,
        None,
    )


def save_infer(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Save the tensors that backward of `batch_norm_infer` needs."""
    x, mean, var, weight, bias, residual, eps, activation, slope = inputs
    refuse_gradients(ctx, mean=1, var=2)
    ctx.set_materialize_grads(False)
    ctx.fusion = eps, activation, slope
    if activation is None:
        bias, residual = None, None
    # Save copies, because a batch in training may update the statistics before this backward.
    ctx.save_for_backward(x, mean.detach().clone(), var.detach().clone(), weight, bias, residual)


def infer_backward(
    ctx: Any, dy: Grad, *, kernel: Callable[..., ops.Gradients] = ops.infer_backward_op
) -> tuple[Any, ...]:
    """Return the gradients of `batch_norm_infer`; `kernel` as in `train_backward`."""
    if dy is None:
        return (None,) * 9
    x, mean, var, weight, bias, residual = ctx.saved_tensors
    needs_x, _, _, needs_weight, needs_bias, needs_residual, *_rest = ctx.needs_input_grad
    through = needs_residual and ctx.fusion[1] is not None
    with torch._C.DisableTorchFunctionSubclass():  # as PyTorch's own gradients
        dx, dweight, dbias, dresidual = kernel(
            dy, x, mean, var, weight, bias, residual, *ctx.fusion, through
        )
    return (
        dx if needs_x else None,
        None,
        None,
        dweight if needs_weight else None,
        dbias if needs_bias else None,
        (dresidual if through else dy) if needs_residual else None,
        None,
        None,
        None,
    )


# Second


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return values of 16 bits as float32, and any other values as they are."""
    return values.to(ops.ARITHMETIC[values.dtype])


class _Given(NamedTuple):
    """The gradients with respect to the results of a backward operator; each may be None."""

    dx: Grad
    dweight: Grad
    dbias: Grad
    dresidual: Grad

    @classmethod
    def of(cls, grads: tuple[Grad, ...], through: bool) -> _Given:
        """Return the gradients that PyTorch passes; a residual's only if it was asked for."""
        dx, dweight, dbias, dresidual = (None if g is None else wide(g) for g in grads[:4])
        return cls(dx, dweight, dbias, dresidual if through else None)


def along_channels(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (C,) values so that they broadcast along x's channels, in the dtype of arithmetic."""
    return values.to(ops.ARITHMETIC[x.dtype]).reshape(1, -1, *[1] * (x.dim() - 2))


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum every channel; the result has shape (1, C, 1, ...)."""
    return values.sum([i for i in range(values.dim()) if i != 1], keepdim=True)


def slope_of(y: torch.Tensor, activation: str | None, slope: float) -> torch.Tensor | None:
    """Return the activation's derivative from its value, or None without an activation."""
    if activation is None:
        return None
    negative = 0.0 if activation == "relu" else slope
    return torch.ones_like(y).masked_fill(y <= 0, negative)  # where() has scalars in float32


def count(x: torch.Tensor) -> int:
    """Return the number of values per channel as a divisor: 1 if there are none."""
    return max(ops.values_per_channel(x), 1)


def projection(
    x: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Return invstd (1, C, 1, ...), xhat and P of `train_backward_backward`."""
    n = count(x)
    centered = x - total(x) / n
    r = torch.rsqrt(total(centered * centered) / n + eps)
    xhat = centered * r
    return r, xhat, lambda v: v - total(v) / n - xhat * total(v * xhat) / n


def _direct(given: _Given, g: torch.Tensor, xhat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the gradients of g from dweight, dbias and dresidual, and of xhat from dweight."""
    to_g, to_xhat = torch.zeros_like(g), torch.zeros_like(g)
    if given.dweight is not None:
        along = along_channels(g, given.dweight)
        to_g, to_xhat = to_g + along * xhat, to_xhat + along * g
    if given.dbias is not None:
        to_g = to_g + along_channels(g, given.dbias)
    if given.dresidual is not None:
        to_g = to_g + given.dresidual
    return to_g, to_xhat


def save_train_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `batch_norm_train_backward`; the moments follow from x."""
    refuse_gradients(ctx, moments=2)
    save_backward(ctx, inputs, output)


def save_infer_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `batch_norm_infer_backward`."""
    refuse_gradients(ctx, mean=2, var=3)
    save_backward(ctx, inputs, output)


def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of a backward operator."""
    *tensors, eps, activation, slope, through = inputs
    ctx.set_materialize_grads(False)
    ctx.fusion = eps, activation, slope
    ctx.through = through
    ctx.save_for_backward(*tensors)


def train_backward_backward(
    ctx: Any, *grads: Grad, forward: Callable[..., Any] = ops.train_op
) -> tuple[Any, ...]:
    """Differentiate ``dx = w r P(g)``, ``dweight = sum(g xhat)``, ``dbias = sum(g)``.

    ``r = invstd``, ``P(v) = v - mean(v) - xhat mean(v xhat)``, which is its own transpose, and
    ``g = dy a`` with the activation's derivative a.  A gradient h of xhat gives ``r P(h)`` for x;
    ``dr/dx = -r^2 xhat / n``.
    """
    saved_dy, saved_x, _, weight, bias, residual = ctx.saved_tensors
    eps, activation, slope = ctx.fusion
    given = _Given.of(grads, ctx.through)
    dy, x = wide(saved_dy), wide(saved_x)
    n = count(x)
    r, xhat, project = projection(x, eps)
    w = torch.ones_like(r) if weight is None else along_channels(x, weight)
    a = None
    if activation is not None:
        with torch.no_grad():
            y, _ = forward(saved_x, weight, bias, residual, eps, activation, slope)
        a = slope_of(wide(y), activation, slope)
    g = dy if a is None else dy * a
    to_g, to_xhat = _direct(given, g, xhat)
    to_weight: Grad = None
    to_x = torch.zeros_like(x)
    if given.dx is not None:
        u = w * given.dx
        projected = project(g)
        to_g = to_g + r * project(u)
        to_weight = (r * total(given.dx * projected)).flatten()
        to_xhat = to_xhat - r / n * (u * total(g * xhat) + g * total(u * xhat))
        to_x = -r * r * xhat / n * total(u * projected)
    to_x = to_x + r * project(to_xhat)
    to_dy = (to_g if a is None else to_g * a).to(saved_dy.dtype)
    to_x = to_x.to(saved_x.dtype)
    if weight is None or to_weight is None:
        return to_dy, to_x, *(None,) * 8
    return to_dy, to_x, None, to_weight.to(weight.dtype), *(None,) * 6


def infer_backward_backward(
    ctx: Any, *grads: Grad, forward: Callable[..., Any] = ops.infer_op
) -> tuple[Any, ...]:
    """Differentiate ``dx = w r g``, ``dweight = sum(g xhat)``, ``dbias = sum(g)``, constant r."""
    saved_dy, saved_x, mean, var, weight, bias, residual = ctx.saved_tensors
    eps, activation, slope = ctx.fusion
    given = _Given.of(grads, ctx.through)
    dy, x = wide(saved_dy), wide(saved_x)
    r = along_channels(x, torch.rsqrt(var.double() + eps))
    xhat = (x - along_channels(x, mean)) * r
    w = torch.ones_like(r) if weight is None else along_channels(x, weight)
    a = None
    if activation is not None:
        with torch.no_grad():
            y = forward(saved_x, mean, var, weight, bias, residual, eps, activation, slope)
        a = slope_of(wide(y), activation, slope)
    g = dy if a is None else dy * a
    to_g, to_xhat = _direct(given, g, xhat)
    to_weight: Grad = None
    if given.dx is not None:
        to_g = to_g + w * r * given.dx
        to_weight = (r * total(given.dx * g)).flatten()
    to_dy = (to_g if a is None else to_g * a).to(saved_dy.dtype)
    to_x = (r * to_xhat).to(saved_x.dtype)
    if weight is None or to_weight is None:
        return to_dy, to_x, *(None,) * 9
    return to_dy, to_x, None, None, to_weight.to(weight.dtype), *(None,) * 6


def _register() -> None:
    formulas = {
        "batch_norm_train": (train_backward, save_train),
        "batch_norm_train_backward": (train_backward_backward, save_train_backward),
        "batch_norm_infer": (infer_backward, save_infer),
        "batch_norm_infer_backward": (infer_backward_backward, save_infer_backward),
    }
    for name, (backward, setup) in formulas.items():
        torch.library.register_autograd(
            f"{ops.NAMESPACE}::{name}", backward, setup_context=setup, lib=ops.library
        )


_register()
