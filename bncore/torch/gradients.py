"""Gradients of the operators, and gradients of those gradients.

The first gradients are fast operators of their own.  The second gradients are formulas in PyTorch's
operations.  They use only x, dy and weight, so PyTorch can differentiate them again, to any order.
Data of 16 bits is computed in float32 here, too, and rounded at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from bncore.torch import dtypes, ops
from bncore.torch.counting import Counting, total

Grad: TypeAlias = torch.Tensor | None


class Settings(NamedTuple):
    """The arguments of the operators that are no tensors."""

    eps: float
    activation: str | None
    slope: float
    nan_policy: str
    fill: float | None

    @classmethod
    def of_forward(cls, *settings: Any) -> Settings:
        """Return what backward takes; forward has refused NaN that it had to refuse."""
        given = cls(*settings)
        return given._replace(nan_policy="propagate") if given.nan_policy == "raise" else given

    @property
    def changes_residual(self) -> bool:
        """Whether the gradient of the residual may differ from that of y."""
        return self.activation is not None or self.fill is not None


# First


def refuse_gradients(ctx: Any, **positions: int) -> None:
    """Raise PyTorch's error if one of these arguments requires a gradient, which it has not."""
    for name, position in positions.items():
        if ctx.needs_input_grad[position]:
            raise RuntimeError(dtypes.NOT_DIFFERENTIABLE.format("operator of bncore", name))


def save_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Save the tensors that backward of `batch_norm_train` needs."""
    x, weight, bias, residual, where, weights, *settings = inputs
    refuse_gradients(ctx, weights=5)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.settings = Settings.of_forward(*settings)
    if ctx.settings.activation is None:  # no gradient depends on them without an activation
        bias, residual = None, None
    ctx.save_for_backward(x, output[1], weight, bias, residual, where, weights)


def train_backward(
    ctx: Any, dy: Grad, _: Grad, *, kernel: Callable[..., ops.Gradients] = ops.train_backward_op
) -> tuple[Any, ...]:
    """Return the gradients of `batch_norm_train`; `kernel` is called in place of the operator."""
    if dy is None:
        return (None,) * 11
    x, moments, *tensors = ctx.saved_tensors
    needs_x, *needs, needs_residual = ctx.needs_input_grad[:4]
    through = needs_residual and ctx.settings.changes_residual
    with torch._C.DisableTorchFunctionSubclass():  # as PyTorch's own gradients
        results = kernel(dy, x, moments, *tensors, *ctx.settings, through)
    return *_wanted(results, dy, (needs_x, *needs, needs_residual), through), *(None,) * 7


def save_infer(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Save the tensors that backward of `batch_norm_infer` needs."""
    x, mean, var, weight, bias, residual, where, weights, *settings = inputs
    refuse_gradients(ctx, mean=1, var=2, weights=7)
    ctx.set_materialize_grads(False)
    ctx.settings = Settings.of_forward(*settings)
    if ctx.settings.activation is None:
        bias, residual = None, None
    if not _needs_x(ctx):
        x = None
    # Save copies, because a batch in training may update the statistics before this backward.
    statistics = mean.detach().clone(), var.detach().clone()
    ctx.save_for_backward(x, *statistics, weight, bias, residual, where, weights)


def _needs_x(ctx: Any) -> bool:
    """Tell whether backward in evaluation needs x; its NaNs may say where y is a constant."""
    settings = ctx.settings
    return settings.activation is not None or settings.fill is not None or ctx.needs_input_grad[3]


def infer_backward(
    ctx: Any, dy: Grad, *, kernel: Callable[..., ops.Gradients] = ops.infer_backward_op
) -> tuple[Any, ...]:
    """Return the gradients of `batch_norm_infer`; `kernel` as in `train_backward`."""
    if dy is None:
        return (None,) * 13
    x, mean, var, *tensors = ctx.saved_tensors
    if x is None:  # its values do not matter, and it is like dy
        x = dy
    needs_x, _, _, *needs, needs_residual = ctx.needs_input_grad[:6]
    through = needs_residual and ctx.settings.changes_residual
    with torch._C.DisableTorchFunctionSubclass():  # as PyTorch's own gradients
        results = kernel(dy, x, mean, var, *tensors, *ctx.settings, through)
    dx, *others = _wanted(results, dy, (needs_x, *needs, needs_residual), through)
    return dx, None, None, *others, *(None,) * 7


def _wanted(
    results: ops.Gradients, dy: torch.Tensor, needs: tuple[bool, ...], through: bool
) -> list[Grad]:
    """Return the gradients that are needed, None for others; the residual's may be dy itself."""
    *own, dresidual = results
    found = [*own, dresidual if through else dy]
    return [one if need else None for one, need in zip(found, needs, strict=True)]


# Second


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return values of 16 bits as float32, and any other values as they are."""
    return values.to(dtypes.ARITHMETIC[values.dtype])


class Projection(NamedTuple):
    """invstd of shape (1, C, 1, ...), xhat, P and its transpose."""

    r: torch.Tensor
    xhat: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor]
    transposed: Callable[[torch.Tensor], torch.Tensor]


class Given(NamedTuple):
    """The gradients with respect to the results of a backward operator; each may be None."""

    dx: Grad
    dweight: Grad
    dbias: Grad
    dresidual: Grad

    @classmethod
    def of(cls, grads: tuple[Grad, ...], through: bool, counting: Counting) -> Given:
        """Return the gradients that PyTorch passes; a residual's only if it was asked for."""
        dx, dweight, dbias, dresidual = (None if g is None else wide(g) for g in grads[:4])
        kept = [None if g is None else counting.kept(g) for g in (dx, dresidual)]
        return cls(kept[0], dweight, dbias, kept[1] if through else None)


def along_channels(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (C,) values so that they broadcast along x's channels, in the dtype of arithmetic."""
    return values.to(dtypes.ARITHMETIC[x.dtype]).reshape(1, -1, *[1] * (x.dim() - 2))


def slope_of(y: torch.Tensor, activation: str | None, slope: float) -> torch.Tensor | None:
    """Return the activation's derivative from its value, or None without an activation."""
    if activation is None:
        return None
    negative = 0.0 if activation == "relu" else slope
    return torch.ones_like(y).masked_fill(y <= 0, negative)  # where() has scalars in float32


def projection(x: torch.Tensor, eps: float, counting: Counting) -> Projection:
    """Return invstd, xhat and the projections of `train_backward_backward`."""
    average, spread, total = counting.average, counting.spread, counting.total
    centered = x - average(x)
    r = torch.rsqrt(average(centered * centered) + eps)
    xhat = centered * r
    return Projection(
        r,
        xhat,
        lambda v: v - average(v) - xhat * average(v * xhat),
        lambda v: v - spread(total(v) + xhat * total(v * xhat)),
    )


def _direct(given: Given, g: torch.Tensor, xhat: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
    refuse_gradients(ctx, moments=2, weights=7)
    save_backward(ctx, inputs, 8)


def save_infer_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `batch_norm_infer_backward`."""
    refuse_gradients(ctx, mean=2, var=3, weights=8)
    save_backward(ctx, inputs, 9)


def save_backward(ctx: Any, inputs: tuple[Any, ...], tensors: int) -> None:
    """Save the arguments of a backward operator, the first of which are tensors."""
    ctx.set_materialize_grads(False)
    *settings, ctx.through = inputs[tensors:]
    ctx.settings = Settings(*settings)
    ctx.save_for_backward(*inputs[:tensors])


def train_backward_backward(
    ctx: Any, *grads: Grad, forward: Callable[..., Any] = ops.train_op
) -> tuple[Any, ...]:
    """Return the gradients of `batch_norm_train_backward`, by `second_gradients`."""
    dy, x, _, weight, bias, residual, *counts = ctx.saved_tensors
    _, activation, slope, *policy = ctx.settings
    counting = Counting.of(wide(x), *counts, *policy)
    a = None
    if activation is not None:
        with torch.no_grad():
            y, _ = forward(x, weight, bias, residual, *counts, *ctx.settings)
        a = slope_of(wide(y), activation, slope)
    given = Given.of(grads, ctx.through, counting)
    to_dy, to_x, to_weight = second_gradients(given, dy, x, weight, ctx.settings[0], counting, a)
    return to_dy, to_x, None, to_weight, *(None,) * 10


def second_gradients(
    given: Given,
    saved_dy: torch.Tensor,
    saved_x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    counting: Counting,
    a: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Grad]:
    """Differentiate ``dx = w r Q(g)``, ``dweight = sum(g xhat)``, ``dbias = sum(g)``.

    ``r = invstd``, ``P(v) = v - mean(v) - xhat mean(v xhat)``, Q is its transpose, and ``g = dy a``
    with the activation's derivative a.  The means are weighted; P = Q if all weights are equal.
    With a value's part q of the sum of weights, ``Q(v) = v - q (sum(v) + xhat sum(v xhat))``.  A
    gradient h of xhat gives ``r Q(h)`` for x; ``dr/dx = -r^2 q xhat``.  The gradients are those of
    dy, x and weight.
    """
    dy = counting.kept(wide(saved_dy))
    g = dy if a is None else dy * a
    x = counting.cleaned(wide(saved_x), g)
    r, xhat, project, transposed = projection(x, eps, counting)
    w = torch.ones_like(r) if weight is None else along_channels(x, weight)
    to_g, to_xhat = _direct(given, g, xhat)
    to_weight: Grad = None
    to_x = torch.zeros_like(x)
    if given.dx is not None:
        u = w * given.dx
        projected = transposed(g)
        to_g = to_g + r * project(u)
        to_weight = (r * total(given.dx * projected)).flatten()
        of_u = counting.spread(u * counting.total(g * xhat))
        to_xhat = to_xhat - r * (of_u + g * counting.average(u * xhat))
        to_x = -r * r * counting.spread(xhat * counting.total(u * projected))
    to_x = (to_x + r * transposed(to_xhat)).to(saved_x.dtype)
    to_dy = counting.kept(to_g if a is None else to_g * a).to(saved_dy.dtype)
    if weight is None or to_weight is None:
        return to_dy, to_x, None
    return to_dy, to_x, to_weight.to(weight.dtype)


def infer_backward_backward(
    ctx: Any, *grads: Grad, forward: Callable[..., Any] = ops.infer_op
) -> tuple[Any, ...]:
    """Differentiate ``dx = w r g``, ``dweight = sum(g xhat)``, ``dbias = sum(g)``, constant r."""
    saved_dy, saved_x, mean, var, weight, bias, residual, *counts = ctx.saved_tensors
    eps, activation, slope, *policy = ctx.settings
    counting = Counting.of(wide(saved_x), *counts, *policy)
    given = Given.of(grads, ctx.through, counting)
    a = None
    if activation is not None:
        with torch.no_grad():
            y = forward(saved_x, mean, var, weight, bias, residual, *counts, *ctx.settings)
        a = slope_of(wide(y), activation, slope)
    dy = counting.kept(wide(saved_dy))
    g = dy if a is None else dy * a
    x = counting.cleaned(wide(saved_x), g)
    r = along_channels(x, torch.rsqrt(var.double() + eps))
    xhat = (x - along_channels(x, mean)) * r
    w = torch.ones_like(r) if weight is None else along_channels(x, weight)
    to_g, to_xhat = _direct(given, g, xhat)
    to_weight: Grad = None
    if given.dx is not None:
        to_g = to_g + w * r * given.dx
        to_weight = (r * total(given.dx * g)).flatten()
    to_dy = counting.kept(to_g if a is None else to_g * a).to(saved_dy.dtype)
    to_x = (r * to_xhat).to(saved_x.dtype)
    if weight is None or to_weight is None:
        return to_dy, to_x, *(None,) * 13
    return to_dy, to_x, None, None, to_weight.to(weight.dtype), *(None,) * 10


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
