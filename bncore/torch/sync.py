"""Batch norm over the batches of all processes, by merging their moments; it works on the CPU.

Each process gathers the moments of all processes and merges them in the order of their ranks, so
that all processes get the same bits.  Batches may differ in size and may be empty, and each process
has its own mask and weights.  The gradient sums are gathered and added in the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

import bncore
from bncore.statistics import GradSums, Moments
from bncore.torch import counting, dtypes, eager, ops
from bncore.torch.counting import Counted, Counting, total
from bncore.torch.functional import check
from bncore.torch.gradients import Given, along_channels, second_gradients, wide
from bncore.torch.memory import Array, array, in_order_of, optional, output, rounded
from bncore.torch.modules import AnyDimension

__all__ = ["SyncBatchNorm"]


def gathered(values: Array, group: Any) -> list[Array]:
    """Return the float64 vectors of all processes of a group, by rank; all have the same size."""
    mine = torch.from_numpy(values)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    return [array(part) for part in parts]


def merged_moments(local: Moments, weighs: bool, group: Any) -> tuple[Moments, bool]:
    """Return the moments of all processes together, and whether values have weights in any."""
    packed = np.concatenate(([float(weighs)], local.count, local.mean, local.m2))
    parts = gathered(packed, group)
    merged: Moments | None = None
    for part in parts:
        moments = Moments(*part[1:].reshape(3, -1))
        merged = moments if merged is None else merged.merge(moments)
    assert merged is not None
    return merged, any(part[0] for part in parts)


def arguments(counted: Counted) -> dict[str, Any]:
    """Return what counts as arguments of bncore's functions."""
    where, weights, nan_policy, fill = counted
    return {
        "where": optional(where),
        "weights": optional(weights),
        "nan_policy": nan_policy,
        "fill": fill,
    }


def added_sums(local: GradSums, group: Any) -> GradSums:
    """Return the gradient sums over the batches of all processes."""
    total: GradSums | None = None
    for part in gathered(np.concatenate((local.sum_dy, local.sum_dy_xhat)), group):
        sums = GradSums(*part.reshape(2, -1))
        total = sums if total is None else total + sums
    assert total is not None
    return total


class _Synchronized(torch.autograd.Function):
    """Training on one process's part of the batch; x is (N, C, ...)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        group: Any,
        counted: Counted,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        threads = torch.get_num_threads()
        values = array(x)
        given = arguments(counted)
        fill = given.pop("fill")
        local = bncore.moments(values, n_threads=threads, **given)
        moments, weighs = merged_moments(local, counted.weighs, group)
        if not weighs and (moments.count == 1.0).any():
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )
        y = output(x)
        if weighs or moments.count.any():
            bncore.normalize(
                values,
                moments,
                optional(weight),
                optional(bias),
                eps=eps,
                out=array(y),
                n_threads=threads,
                fill=fill,
                **given,
            )
        ctx.moments, ctx.eps, ctx.group = moments, eps, group
        ctx.settings = counted[2:]
        ctx.save_for_backward(x, weight, *counted[:2])
        merged = ops.as_tensor(moments)
        ctx.mark_non_differentiable(merged)
        return y, merged

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, *_: object) -> tuple[Any, ...]:
        x, weight, *counts = ctx.saved_tensors
        shared = Shared(ctx.moments, ctx.eps, ctx.group, Counted(*counts, *ctx.settings))
        gradients = _SynchronizedBackward.apply(dy, x, weight, shared, ctx.needs_input_grad[:3])
        return *gradients, None, None, None


class Shared(NamedTuple):
    """What the gradients of a synchronized call need beside tensors with gradients.

    Attributes
    ----------
    moments : of the batches of all processes
    eps, group, counted : as in the call
    """

    moments: Moments
    eps: float
    group: Any
    counted: Counted

    def counting(self, x: torch.Tensor) -> Counting:
        """Return the weights of x's values in formulas whose sums are over all processes."""
        own = Counting.of(x, *self.counted)
        count = self.moments.count
        number = torch.from_numpy(np.where(count > 0.0, count, 1.0))
        return own._replace(
            number=along_channels(x, number),
            total=lambda values: _Total.apply(total(values), self.group),
        )


class _SynchronizedBackward(torch.autograd.Function):
    """The gradients of `_Synchronized`: of x from the sums of all processes, of parameters its own.

    Its own gradients come from the formulas of `gradients.second_gradients`, with sums over all
    processes, which can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        shared: Shared,
        needed: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor | None, ...]:
        common = arguments(shared.counted)
        common |= {"eps": shared.eps, "n_threads": torch.get_num_threads()}
        given = array(in_order_of(x, dy)), array(x), shared.moments
        local = bncore.grad_sums(*given, **common)
        dx = None
        if needed[0]:
            dx = output(x)
            total = added_sums(local, shared.group)
            bncore.grad_input(*given, total, optional(weight), out=array(dx), **common)
        dtype = dtypes.gradient_dtype(x, weight)
        ctx.shared = shared
        ctx.save_for_backward(dy, x, weight)
        return dx, *(
            rounded(values, dtype) if wanted else None
            for values, wanted in zip((local.sum_dy_xhat, local.sum_dy), needed[1:], strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        dy, x, weight = ctx.saved_tensors
        counting = ctx.shared.counting(wide(x))
        given = Given.of((*grads, None), False, counting)
        return *second_gradients(given, dy, x, weight, ctx.shared.eps, counting), None, None


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes, added in the order of their ranks."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        parts = gathered(local.detach().double().flatten().numpy(), group)
        summed = np.add.reduce(parts, axis=0)
        return torch.from_numpy(summed).to(local.dtype).reshape(local.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Total.apply(gradient, ctx.group), None


class SyncBatchNorm(AnyDimension):
    """Batch norm with the statistics of the batches of all processes, on the CPU (gloo).

    Input is (N, C, ...); N may differ from process to process, and may be 0.  In evaluation, and if
    `torch.distributed` is not initialized or there is only one process, it is ordinary batch norm.
    The gradients of weight and bias are those of the process's own batch, as in
    `torch.nn.SyncBatchNorm`, so that ``DistributedDataParallel`` can average them.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype, bias
        As in `torch.nn.SyncBatchNorm`.

    Notes
    -----
    As with every collective operation, every process must call forward, and every process must call
    backward if one of them does, and so it is with backwards of gradients.  Gradients of any order
    exist, if the same arguments need gradients in every process.  `torch.compile` computes a layer
    outside of its graph.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.SyncBatchNorm(2)  # alone here
    >>> layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).round(decimals=2)
    tensor([[-1., -1.],
            [ 1.,  1.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group

    def _bncore_scripted(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("SyncBatchNorm: after torch.jit.script, it can only evaluate")
        return self._bncore_stock(input)

    def _bncore_compute(
        self,
        input: torch.Tensor,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        batch: bool,
        momentum: float,
        residual: torch.Tensor | None,
        batches: torch.Tensor | None,
        counted: Counted,
    ) -> torch.Tensor:
        together = dist.is_available() and dist.is_initialized() and self.training
        if not together or dist.get_world_size(self.process_group) == 1:
            return super()._bncore_compute(
                input, mean, var, weight, bias, batch, momentum, residual, batches, counted
            )
        check(input, mean, var, weight, bias, residual, True, self.eps, alone=False)
        counted = counting.checked(input, counted)
        given = (one if one is None else one.resolve_neg() for one in (input, weight, bias))
        y, moments = synchronized(*given, self.eps, self.process_group, counted)
        eager.track(ops.update_op, mean, var, moments, momentum, batches)
        return y


@torch.compiler.disable  # type: ignore[untyped-decorator]
def synchronized(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the merged moments; a compiled graph has a break here."""
    result: tuple[torch.Tensor, torch.Tensor] = _Synchronized.apply(*arguments)
    return result
