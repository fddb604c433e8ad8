"""The operators: bncore's functions under ``torch.ops.bncore``, for CPU and meta tensors.

x is (N, C, ...), in any memory order.  ``moments`` is a (3, C) float64 tensor with count, mean and
sum of squared deviations of each channel.  Parameters are (C,) or None.  x, and each parameter and
statistic for itself, is float16, bfloat16, float32 or float64.  All operators except
`update_running_stats_` are functional.  The fused operations (`activation`, `negative_slope`,
`residual`) are as in `bncore.batch_norm_train`, and so is what counts (`where`, `weights`,
`nan_policy`, `fill`): `where` is bool, `weights` of real numbers.

A call uses ``torch.get_num_threads()`` threads.  The gradients are in `gradients.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.autograd import forward_ad

import bncore
from bncore.arguments.arrays import cast
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.weights import PROPAGATE
from bncore.statistics import Moments, require_divisors, trusted_moments
from bncore.torch import compiled, shapes
from bncore.torch.dtypes import NOT_DIFFERENTIABLE, checked
from bncore.torch.memory import array, copied, in_order_of, optional, output

NAMESPACE = "bncore"

# No argument has a default: the dispatcher drops arguments that equal their defaults, and backward
# would then count the arguments wrongly.
PARAMETERS = "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? where, Tensor? weights"
SETTINGS = "float eps, str? activation, float negative_slope, str nan_policy, float? fill"
GRADIENTS = "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"

# The backward operators return the gradients of the forward arguments with these names.  dresidual
# is empty unless residual_gradient is true.
SCHEMAS = {
    "batch_norm_train": f"(Tensor x, {PARAMETERS}, {SETTINGS}) -> (Tensor y, Tensor moments)",
    "batch_norm_train_backward": (
        f"(Tensor dy, Tensor x, Tensor moments, {PARAMETERS}, {SETTINGS}, "
        f"bool residual_gradient) -> {GRADIENTS}"
    ),
    "batch_norm_infer": f"(Tensor x, Tensor mean, Tensor var, {PARAMETERS}, {SETTINGS}) -> Tensor",
    "batch_norm_infer_backward": (
        f"(Tensor dy, Tensor x, Tensor mean, Tensor var, {PARAMETERS}, {SETTINGS}, "
        f"bool residual_gradient) -> {GRADIENTS}"
    ),
    "update_running_stats_": (
        "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor moments, float momentum) -> ()"
    ),
}

library = torch.library.Library(NAMESPACE, "DEF")
Gradients: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Suspend `torch.jit.trace`, in which sizes are tensors."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def as_moments(moments: torch.Tensor) -> Moments:
    """Return moments as a `bncore.Moments`."""
    return trusted_moments(*array(moments))


def as_tensor(moments: Moments) -> torch.Tensor:
    """Return moments as one tensor, a copy because bncore's arrays are read-only."""
    tensor = torch.empty((3, moments.mean.shape[0]), dtype=torch.float64, device="cpu")
    array(tensor)[...] = moments.count, moments.mean, moments.m2
    return tensor


def options(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    activation: str | None,
    negative_slope: float,
    nan_policy: str,
    fill: float | None,
) -> dict[str, Any]:
    """Return the arguments of fused operations, of what counts, and the number of threads."""
    if residual is not None:
        residual = in_order_of(x, residual)
    return {
        "activation": activation,
        "negative_slope": negative_slope,
        "residual": optional(residual),
        "where": optional(where),
        "weights": optional(weights),
        "nan_policy": PROPAGATE if nan_policy == PROPAGATE else nan_policy,  # not an equal string
        "fill": fill,
        "n_threads": torch.get_num_threads(),
    }


def batch_norm_train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    *settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `bncore.batch_norm_train`."""
    y = output(checked(x))
    x = in_order_of(y, x)  # a copy if x has gaps
    _, moments = bncore.batch_norm_train(
        array(x),
        optional(weight),
        optional(bias),
        eps=eps,
        out=array(y),
        **options(x, residual, where, weights, *settings),
    )
    return y, as_tensor(moments)


def batch_norm_train_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    *given: Any,
) -> Gradients:
    """Run `bncore.batch_norm_train_backward`; `residual_gradient` is the last of `given`."""
    *settings, residual_gradient = given
    dx = output(checked(x))
    x = in_order_of(dx, x)
    dresidual = output(x) if residual_gradient else x.new_empty(0)
    _, dweight, dbias = bncore.batch_norm_train_backward(
        array(in_order_of(x, dy)),
        array(x),
        as_moments(moments),
        optional(weight),
        eps=eps,
        out=array(dx),
        bias=optional(bias),
        dresidual=array(dresidual) if residual_gradient else None,
        **options(x, residual, where, weights, *settings),
    )
    return dx, copied(dweight), copied(dbias), dresidual


def batch_norm_infer(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    *settings: Any,
) -> torch.Tensor:
    """Run `bncore.batch_norm_infer`."""
    y = output(checked(x))
    x = in_order_of(y, x)
    bncore.batch_norm_infer(
        array(x),
        array(mean),
        array(var),
        optional(weight),
        optional(bias),
        eps=eps,
        out=array(y),
        **options(x, residual, where, weights, *settings),
    )
    return y


def batch_norm_infer_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    *given: Any,
) -> Gradients:
    """Run `bncore.batch_norm_infer_backward`; `residual_gradient` is the last of `given`."""
    *settings, residual_gradient = given
    dx = output(checked(x))
    x = in_order_of(dx, x)
    dresidual = output(x) if residual_gradient else x.new_empty(0)
    _, dweight, dbias = bncore.batch_norm_infer_backward(
        array(in_order_of(x, dy)),
        array(x),
        array(mean),
        array(var),
        optional(weight),
        eps=eps,
        out=array(dx),
        bias=optional(bias),
        dresidual=array(dresidual) if residual_gradient else None,
        **options(x, residual, where, weights, *settings),
    )
    return dx, copied(dweight), copied(dbias), dresidual


def update_running_stats_(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    moments: torch.Tensor,
    momentum: float,
) -> None:
    """Update running statistics in place with those of a batch."""
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if torch.is_grad_enabled() and running.requires_grad:
            raise RuntimeError(NOT_DIFFERENTIABLE.format("operator of bncore", name))
    move_running_stats(running_mean, running_var, as_moments(moments), momentum)


def move_running_stats(
    running_mean: torch.Tensor, running_var: torch.Tensor, moments: Moments, momentum: float
) -> None:
    """Do what `bncore.update_running_stats` does, but with any momentum, as PyTorch allows."""
    some = moments.count > 0.0
    if not some.any():
        return
    require_divisors(moments.count, 1, "input: expected a sum of weights per channel")
    stats = array(running_mean), array(running_var)
    torch.autograd.graph.increment_version(
        [one for one in (running_mean, running_var) if not one.is_inference()]
    )
    with silent_arithmetic():
        keep = 1.0 - momentum
        for values, batch in zip(stats, (moments.mean, moments.var(1)), strict=True):
            new = cast(keep * cast(values, np.float64) + momentum * batch, values.dtype)
            np.copyto(values, new, where=some)


def update_negated_(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    moments: torch.Tensor,
    momentum: float,
) -> None:
    """Run `update_running_stats_` for views with a negative sign, which no kernel can write."""
    given = running_mean, running_var
    plain = [one.resolve_neg() for one in given]
    update_op(*plain, moments.resolve_neg(), momentum)
    for one, new in zip(given, plain, strict=True):
        if one.is_neg():
            one.copy_(new)


def guarded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that is not traced and refuses tangents, which it would lose."""

    def run(*given: Any) -> Any:
        if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
            tensors = (value for value in given if isinstance(value, torch.Tensor))
            if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
                raise NotImplementedError(
                    "torch.ops.bncore: forward mode is not implemented; "
                    "bncore.torch.batch_norm has it"
                )
        with untraced():
            return kernel(*given)

    return run


def _define() -> None:
    kernels: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "batch_norm_train": (batch_norm_train, shapes.train),
        "batch_norm_train_backward": (batch_norm_train_backward, shapes.train_backward),
        "batch_norm_infer": (batch_norm_infer, shapes.infer),
        "batch_norm_infer_backward": (batch_norm_infer_backward, shapes.infer_backward),
        "update_running_stats_": (update_running_stats_, shapes.nothing),
    }
    for name, (kernel, shape) in kernels.items():
        library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        if compiled.adapter is None:  # the compiled part has its own kernels
            library.impl(name, guarded(kernel), "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", shape, lib=library)
    # PyTorch's fallback expects that an operator returns what it has changed.
    library.impl("update_running_stats_", update_negated_, "Negative")


_define()
train_op = torch.ops.bncore.batch_norm_train.default
train_backward_op = torch.ops.bncore.batch_norm_train_backward.default
infer_op = torch.ops.bncore.batch_norm_infer.default
infer_backward_op = torch.ops.bncore.batch_norm_infer_backward.default
update_op = torch.ops.bncore.update_running_stats_.default
