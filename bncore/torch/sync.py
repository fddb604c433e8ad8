"""The module for batch norm over the batches of all processes; it works on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from bncore.torch import counting, eager, ops, sync_ops
from bncore.torch.counting import Counted
from bncore.torch.functional import check
from bncore.torch.modules import AnyDimension

__all__ = ["SyncBatchNorm"]


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
    If the batch of a process is refused, for NaN with ``nan_policy="raise"``, its mask or weights,
    or a shape or dtype, all processes raise its error, which names the rank.

    As with every collective operation, every process must call forward, and every process must call
    backward if one of them does, and so it is with backwards of gradients.  Gradients of any order
    exist, if the same arguments need gradients in every process.  `torch.compile` keeps a layer in
    its graph; every process must compile the same function.

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

    def _bncore_group(self) -> str | None:
        """Return the name of the group of processes that train together, or None if it is alone."""
        together = dist.is_available() and dist.is_initialized() and self.training
        if not together or dist.get_world_size(self.process_group) == 1:
            return None
        return sync_ops.group_name(self.process_group)

    def _bncore_check(self, input: torch.Tensor) -> None:
        if self._bncore_group() is None:  # otherwise all processes have to hear of it
            super()._bncore_check(input)

    def _bncore_check_channels(self, input: torch.Tensor) -> None:
        """Refuse other channels than the other processes have, which no parameter may show."""
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"input: expected {self.num_features} channels, got {tuple(input.shape)}"
            )

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
        group = self._bncore_group()
        if group is None:
            return super()._bncore_compute(
                input, mean, var, weight, bias, batch, momentum, residual, batches, counted
            )
        try:
            self._check_input_dim(input)
            check(input, mean, var, weight, bias, residual, True, self.eps, alone=False)
            self._bncore_check_channels(input)
            where, weights, nan_policy, fill = counting.checked(input, counted)
        except Exception as error:  # the other processes must not wait for this one
            sync_ops.refuse(error, self.num_features, group)
        y, moments = sync_ops.train_op(
            input, weight, bias, where, weights, self.eps, nan_policy, fill, group
        )
        eager.track(ops.update_op, mean, var, moments, momentum, batches)
        return y
