"""Operators for batch norm over the batches of all processes, by merging their moments.

Each process gathers the moments of all processes and merges them in the order of their ranks, so
that all processes get the same bits.  Batches may differ in size and may be empty, and each process
has its own mask and weights.  The gradient sums are gathered and added in the same way.

A process whose batch is refused tells the others in the same exchange, so that none of them waits
for it: all raise its error.

A process group goes by its name, as in PyTorch's functional collectives, so that compilers can
keep an operator in their graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist

import bncore
from bncore.statistics import GradSums, Moments
from bncore.torch import dtypes, gradients, ops, shapes
from bncore.torch.counting import Counted, Counting, total
from bncore.torch.memory import Array, array, in_order_of, optional, output, rounded

COUNTED = "Tensor? where, Tensor? weights, float eps, str nan_policy, float? fill, str group"
SCHEMAS = {
    "sync_batch_norm_train": (
        f"(Tensor x, Tensor? weight, Tensor? bias, {COUNTED}) -> (Tensor y, Tensor moments)"
    ),
    # dx is empty unless input_gradient is true.
    "sync_batch_norm_train_backward": (
        f"(Tensor dy, Tensor x, Tensor moments, Tensor? weight, {COUNTED}, bool input_gradient)"
        " -> (Tensor dx, Tensor dweight, Tensor dbias)"
    ),
    "sync_total": "(Tensor local, str group) -> Tensor",
}


# What travels


def group_name(group: Any) -> str:
    """Return the name of a process group; None is the group of all processes."""
    name: str = (dist.group.WORLD if group is None else group).group_name
    return name


def gathered(values: Array, group: str) -> list[Array]:
    """Return the float64 vectors of all processes of a group, by rank; all have the same size."""
    found = dist.distributed_c10d._resolve_process_group(group)
    mine = torch.from_numpy(values)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(found))]
    dist.all_gather(parts, mine, group=found)
    return [array(part) for part in parts]


ERRORS = {kind.__name__: kind for kind in (TypeError, ValueError, NotImplementedError)}


def merged_moments(
    local: Moments, weighs: bool, group: str, error: Exception | None = None
) -> tuple[Moments, bool]:
    """Return the moments of all processes together, and whether values have weights in any.

    If there is an error in any process, all of them raise it.
    """
    flags = [float(weighs), float(error is not None)]
    parts = gathered(np.concatenate((flags, local.count, local.mean, local.m2)), group)
    if any(part[1] for part in parts):
        raise _first_error(error, group) from error
    merged: Moments | None = None
    for part in parts:
        moments = Moments(*part[2:].reshape(3, -1))
        merged = moments if merged is None else merged.merge(moments)
    assert merged is not None
    return merged, any(part[0] for part in parts)


def refuse(error: Exception, channels: int, group: str) -> NoReturn:
    """Raise an error in all processes, which are about to merge moments of so many channels."""
    merged_moments(Moments(*np.zeros((3, channels))), False, group, error)
    raise error


def _first_error(mine: Exception | None, group: str) -> Exception:
    """Return the error of the first process that has one; all processes exchange them."""
    found = dist.distributed_c10d._resolve_process_group(group)
    told: list[Any] = [None] * dist.get_world_size(found)
    text = None if mine is None else (type(mine).__name__, str(mine))
    dist.all_gather_object(told, text, group=found)
    rank, (kind, message) = next((i, one) for i, one in enumerate(told) if one is not None)
    return ERRORS.get(kind, RuntimeError)(f"rank {rank}: {message}")


def added_sums(local: GradSums, group: str) -> GradSums:
    """Return the gradient sums over the batches of all processes."""
    total: GradSums | None = None
    for part in gathered(np.concatenate((local.sum_dy, local.sum_dy_xhat)), group):
        sums = GradSums(*part.reshape(2, -1))
        total = sums if total is None else total + sums
    assert total is not None
    return total


# Kernels; x is (N, C, ...), this process's part of the batch


def options(
    where: torch.Tensor | None, weights: torch.Tensor | None, nan_policy: str
) -> dict[str, Any]:
    """Return arguments that all of bncore's functions take."""
    return {
        "where": optional(where),
        "weights": optional(weights),
        "nan_policy": nan_policy,
        "n_threads": torch.get_num_threads(),
    }


def train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    nan_policy: str,
    fill: float | None,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalize by the moments of all processes, which are the second result."""
    y = output(dtypes.checked(x))
    values = array(in_order_of(y, x))
    common = options(where, weights, nan_policy)
    try:
        local = bncore.moments(values, **common)
    except Exception as error:  # of a mask, weights or NaN; the others must not wait
        refuse(error, x.shape[1], group)
    counted = Counted(where, weights, nan_policy, fill)
    moments, weighs = merged_moments(local, counted.weighs, group)
    if not weighs and (moments.count == 1.0).any():
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )
    if weighs or moments.count.any():
        common |= {"eps": eps, "fill": fill, "out": array(y)}
        bncore.normalize(values, moments, optional(weight), optional(bias), **common)
    return y, ops.as_tensor(moments)


def train_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    weight: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    nan_policy: str,
    fill: float | None,
    group: str,
    input_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients: of x from the sums of all processes, of parameters its own."""
    dx = output(dtypes.checked(x))
    x = in_order_of(dx, x)
    common = options(where, weights, nan_policy) | {"eps": eps, "fill": fill}
    given = array(in_order_of(x, dy)), array(x), ops.as_moments(moments)
    local = bncore.grad_sums(*given, **common)
    if input_gradient:
        sums = added_sums(local, group)
        bncore.grad_input(*given, sums, optional(weight), out=array(dx), **common)
    else:
        dx = x.new_empty(0)
    dtype = dtypes.gradient_dtype(x, weight)
    return dx, rounded(local.sum_dy_xhat, dtype), rounded(local.sum_dy, dtype)


def total_of_all(local: torch.Tensor, group: str) -> torch.Tensor:
    """Return the sum of a tensor over all processes, added in the order of their ranks."""
    parts = gathered(local.detach().double().flatten().numpy(), group)
    summed = np.add.reduce(parts, axis=0)
    return torch.from_numpy(summed).to(local.dtype).reshape(local.shape)


# Gradients


class Settings(NamedTuple):
    """The arguments of the operators that are no tensors."""

    eps: float
    nan_policy: str
    fill: float | None
    group: str


def save_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Save what backward of `sync_batch_norm_train` needs."""
    x, weight, _, where, weights, *settings = inputs
    gradients.refuse_gradients(ctx, weights=4)
    ctx.mark_non_differentiable(output[1])
    given = Settings(*settings)
    if given.nan_policy == "raise":  # forward has looked for NaN
        given = given._replace(nan_policy="propagate")
    ctx.settings = given
    ctx.save_for_backward(x, output[1], weight, where, weights)


def gradients_of_train(ctx: Any, dy: torch.Tensor, _: Any) -> tuple[Any, ...]:
    """Return the gradients of `sync_batch_norm_train`."""
    needed = ctx.needs_input_grad[:3]
    found = backward_op(dy, *ctx.saved_tensors, *ctx.settings, needed[0])
    return *(one if need else None for one, need in zip(found, needed, strict=True)), *(None,) * 6


def save_train_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments of `sync_batch_norm_train_backward`."""
    gradients.refuse_gradients(ctx, moments=2, weights=5)
    ctx.set_materialize_grads(False)
    ctx.settings = Settings(*inputs[6:10])
    ctx.save_for_backward(*inputs[:6])


def gradients_of_train_backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of gradients, by formulas with sums over all processes."""
    dy, x, moments, weight, where, weights = ctx.saved_tensors
    eps, nan_policy, fill, group = ctx.settings
    own = Counting.of(gradients.wide(x), where, weights, nan_policy, fill)
    count = torch.where(moments[0] > 0.0, moments[0], 1.0)
    counting = own._replace(
        number=gradients.along_channels(x, count),
        total=lambda values: total_op(total(values), group),
    )
    given = gradients.Given.of((*grads, None), False, counting)
    to_dy, to_x, to_weight = gradients.second_gradients(given, dy, x, weight, eps, counting)
    return to_dy, to_x, None, to_weight, *(None,) * 7


def save_total(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the name of the group."""
    ctx.group = inputs[1]


def gradient_of_total(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Return the gradient of `sync_total`: every process has a part of the loss."""
    return total_op(gradient, ctx.group), None


# Registration


def shape_of_gradients(
    dy: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, weight: Any, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """Make tensors like the results of `sync_batch_norm_train_backward`."""
    dx, dweight, dbias, _ = shapes.gradients(x, weight, False)
    return dx if rest[-1] else x.new_empty(0), dweight, dbias


def shape_of_total(local: torch.Tensor, group: str) -> torch.Tensor:
    """Make a tensor like the result of `sync_total`."""
    return torch.empty_like(local)


def _define() -> None:
    parts: dict[str, tuple[Callable[..., Any], ...]] = {
        "sync_batch_norm_train": (train, shapes.train, gradients_of_train, save_train),
        "sync_batch_norm_train_backward": (
            train_backward,
            shape_of_gradients,
            gradients_of_train_backward,
            save_train_backward,
        ),
        "sync_total": (total_of_all, shape_of_total, gradient_of_total, save_total),
    }
    for name, (kernel, shape, backward, setup) in parts.items():
        ops.library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        ops.library.impl(name, ops.guarded(kernel), "CPU")
        full = f"{ops.NAMESPACE}::{name}"
        torch.library.register_fake(full, shape, lib=ops.library)
        torch.library.register_autograd(full, backward, setup_context=setup, lib=ops.library)


_define()
train_op = torch.ops.bncore.sync_batch_norm_train.default
backward_op = torch.ops.bncore.sync_batch_norm_train_backward.default
total_op = torch.ops.bncore.sync_total.default
