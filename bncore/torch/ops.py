"""The operators: bncore's functions under ``torch.ops.bncore``, for CPU and meta tensors.

x is (N, C, ...), in any memory order.  ``moments`` is a (3, C) float64 tensor with count, mean and
sum of squared deviations of each channel.  Parameters are (C,) or None.  x, and each parameter and
statistic for itself, is float16, bfloat16, float32 or float64.  All operators except
`update_running_stats_` are functional.  The fused operations (`activation`, `negative_slope`,
`residual`) are as in `bncore.batch_norm_train`.

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
from bncore.arguments.layout import canonical
from bncore.statistics import Moments, trusted_moments
from bncore.torch import compiled
from bncore.torch.memory import array, copied, in_order_of, optional, output

NAMESPACE = "bncore"

# No argument has a default: the dispatcher drops arguments that equal their defaults, and backward
# would then count the arguments wrongly.
FUSED = "str? activation, float negative_slope"
PARAMETERS = "Tensor? weight, Tensor? bias, Tensor? residual, float eps"
GRADIENTS = "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"

# The backward operators return the gradients of the forward arguments with these names.  dresidual
# is empty unless residual_gradient is true.
SCHEMAS = {
    "batch_norm_train": f"(Tensor x, {PARAMETERS}, {FUSED}) -> (Tensor y, Tensor moments)",
    "batch_norm_train_backward": (
        f"(Tensor dy, Tensor x, Tensor moments, {PARAMETERS}, {FUSED}, "
        f"bool residual_gradient) -> {GRADIENTS}"
    ),
    "batch_norm_infer": f"(Tensor x, Tensor mean, Tensor var, {PARAMETERS}, {FUSED}) -> Tensor",
    "batch_norm_infer_backward": (
        f"(Tensor dy, Tensor x, Tensor mean, Tensor var, {PARAMETERS}, {FUSED}, "
        f"bool residual_gradient) -> {GRADIENTS}"
    ),
    "update_running_stats_": (
        "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor moments, float momentum) -> ()"
    ),
}

library = torch.library.Library(NAMESPACE, "DEF")
Gradients: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


# PyTorch's text for arguments that have no gradient.
NOT_DIFFERENTIABLE = (
    "The {} is not differentiable with respect to argument '{}'. "
    "This input cannot have requires_grad True."
)

# The dtypes of x and of parameters, and of the arithmetic on data of each of them.
ARITHMETIC = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def checked(x: torch.Tensor) -> torch.Tensor:
    """Return x if there are kernels for its dtype; otherwise raise PyTorch's error."""
    if x.dtype not in ARITHMETIC:
        raise NotImplementedError(f"\"batch_norm\" not implemented for '{scalar_type(x)}'")
    return x


def gradient_dtype(x: torch.Tensor, weight: torch.Tensor | None) -> torch.dtype:
    """Return the dtype of the gradients by weight and bias."""
    return ARITHMETIC[checked(x).dtype] if weight is None else weight.dtype


def values_per_channel(x: torch.Tensor) -> int:
    """Return the number of values of each channel of x."""
    shape = canonical(x.shape, 1, 2)
    return shape.outer * shape.inner


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


def scalar_type(tensor: torch.Tensor) -> str:
    """Return the name of a dtype in PyTorch's messages, such as Half."""
    kind: str = tensor.type()
    return kind.rpartition(".")[2].removesuffix("Tensor")


def as_moments(moments: torch.Tensor) -> Moments:
    """Return moments as a `bncore.Moments`."""
    return trusted_moments(*array(moments))


def as_tensor(moments: Moments) -> torch.Tensor:
    """Return moments as one tensor, a copy because bncore's arrays are read-only."""
    tensor = torch.empty((3, moments.mean.shape[0]), dtype=torch.float64, device="cpu")
    array(tensor)[...] = moments.count, moments.mean, moments.m2
    return tensor


def fused(
    x: torch.Tensor, residual: torch.Tensor | None, activation: str | None, negative_slope: float
) -> dict[str, Any]:
    """Return the arguments of fused operations, and the number of threads."""
    if residual is not None:
        residual = in_order_of(x, residual)
    return {
        "activation": activation,
        "negative_slope": negative_slope,
        "residual": optional(residual),
        "n_threads": torch.get_num_threads(),
    }


def batch_norm_train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
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
        **fused(x, residual, activation, negative_slope),
    )
    return y, as_tensor(moments)


def batch_norm_train_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual_gradient: bool,
) -> Gradients:
    """Run `bncore.batch_norm_train_backward`."""
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
        **fused(x, residual, activation, negative_slope),
    )
    return dx, copied(dweight), copied(dbias), dresidual


def batch_norm_infer(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
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
        **fused(x, residual, activation, negative_slope),
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
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual_gradient: bool,
) -> Gradients:
    """Run `bncore.batch_norm_infer_backward`."""
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
        **fused(x, residual, activation, negative_slope),
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


# The same operators without values, for tracing: they give the results' shapes, dtypes and strides.


def train_shapes(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Make tensors like the results of `batch_norm_train`."""
    return torch.empty_like(checked(x)), x.new_empty((3, x.shape[1]), dtype=torch.float64)


def infer_shapes(x: torch.Tensor, *_: object) -> torch.Tensor:
    """Make a tensor like the result of `batch_norm_infer`."""
    return torch.empty_like(checked(x))


def gradient_shapes(
    x: torch.Tensor, weight: torch.Tensor | None, residual_gradient: bool
) -> Gradients:
    """Make tensors like the results of both backward operators."""
    dtype = gradient_dtype(x, weight)
    dweight, dbias = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    dresidual = torch.empty_like(x) if residual_gradient else x.new_empty(0)
    return torch.empty_like(x), dweight, dbias, dresidual


def train_backward_shapes(
    dy: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, *rest: Any
) -> Gradients:
    """Make tensors like the results of `batch_norm_train_backward`."""
    return gradient_shapes(x, rest[0], rest[-1])


def infer_backward_shapes(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *rest: Any
) -> Gradients:
    """Make tensors like the results of `batch_norm_infer_backward`."""
    return gradient_shapes(x, rest[0], rest[-1])


def nothing(*_: object) -> None:
    """Do nothing, because `update_running_stats_` returns nothing."""


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
        "batch_norm_train": (batch_norm_train, train_shapes),
        "batch_norm_train_backward": (batch_norm_train_backward, train_backward_shapes),
        "batch_norm_infer": (batch_norm_infer, infer_shapes),
        "batch_norm_infer_backward": (batch_norm_infer_backward, infer_backward_shapes),
        "update_running_stats_": (update_running_stats_, nothing),
    }
    for name, (kernel, shapes) in kernels.items():
        library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        if compiled.adapter is None:  # the compiled part has its own kernels
            library.impl(name, guarded(kernel), "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=library)
    # PyTorch's fallback expects that an operator returns what it has changed.
    library.impl("update_running_stats_", update_negated_, "Negative")


_define()
train_op = torch.ops.bncore.batch_norm_train.default
train_backward_op = torch.ops.bncore.batch_norm_train_backward.default
infer_op = torch.ops.bncore.batch_norm_infer.default
infer_backward_op = torch.ops.bncore.batch_norm_infer_backward.default
update_op = torch.ops.bncore.update_running_stats_.default
