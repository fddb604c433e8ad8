"""Modules in place of ``torch.nn.GroupNorm``, ``LayerNorm`` and ``InstanceNorm*d``.

Constructors, state and results are PyTorch's; only forward is bncore's.
"""

from __future__ import annotations

from typing import Any

import torch

from bncore.torch.modules import Computed, compile_instead, scripted, stock
from bncore.torch.norms import group_norm, instance_norm, layer_norm

__all__ = [
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
]


class GroupNorm(Computed, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by bncore: (N, C, ...) input, channels-last or not.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.GroupNorm(2, 4)
    >>> layer
    bncore.torch.GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    >>> layer(torch.ones(1, 4, 3)).shape
    torch.Size([1, 4, 3])
    """

    _bncore_stock: Any = stock(torch.nn.GroupNorm.forward)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize groups of channels of every sample."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(Computed, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by bncore.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.LayerNorm(2, eps=1e-12)
    >>> layer(torch.tensor([[0.0, 2.0], [5.0, 9.0]])).detach()
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """

    _bncore_stock: Any = stock(torch.nn.LayerNorm.forward)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize over the last axes."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class _InstanceNorm(Computed, torch.nn.modules.instancenorm._InstanceNorm):
    _bncore_stock: Any = stock(torch.nn.modules.instancenorm._InstanceNorm.forward)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize every channel of every sample."""
        self._check_input_dim(input)
        alone = input.dim() == self._get_no_batch_dim()
        batch = input.unsqueeze(0) if alone else input
        if batch.shape[1] != self.num_features:  # PyTorch warns, or refuses it
            other: torch.Tensor = self._bncore_stock(input)
            return other
        by_sample = self.training or not self.track_running_stats
        momentum = self.momentum if self.momentum is not None else 0.0
        given = self.running_mean, self.running_var, self.weight, self.bias
        y = instance_norm(batch, *given, by_sample, momentum, self.eps)
        return y.squeeze(0) if alone else y


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, computed by bncore: (N, C, L) or (C, L) input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.InstanceNorm1d(1, eps=1e-12)(torch.tensor([[[0.0, 2.0]]]))
    tensor([[[-1.,  1.]]])
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, computed by bncore: (N, C, H, W) or (C, H, W) input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.InstanceNorm2d(2)(torch.ones(1, 2, 3, 4)).shape
    torch.Size([1, 2, 3, 4])
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, computed by bncore: (N, C, D, H, W) or (C, D, H, W) input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.InstanceNorm3d(2)(torch.ones(1, 2, 3, 4, 5)).shape
    torch.Size([1, 2, 3, 4, 5])
    """


for _kind in (GroupNorm, LayerNorm, _InstanceNorm):
    compile_instead(_kind.forward, scripted)
