"""Group and layer norms of timm and torchvision that have a forward of their own.

As in `families.py` the forwards are known by where they were written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from bncore.torch.families import followed
from bncore.torch.modules import Computed, compile_instead, scripted
from bncore.torch.norms import group_norm, layer_norm


class Groups(Computed):
    """Group norm."""

    _bncore_then = False  # whether the modules ``drop`` and ``act`` follow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize groups of channels of every sample."""
        y = group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return followed(self, y) if self._bncore_then else y


class Rows(Computed):
    """Layer norm over the last axes."""

    _bncore_then = False
    _bncore_wide = False  # whether it is computed in float32, whatever the dtypes are

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize over the last axes."""
        y = self._bncore_normalized(x)
        return followed(self, y) if self._bncore_then else y

    def _bncore_normalized(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, shape = self.weight, self.bias, self.normalized_shape
        if not self._bncore_wide:
            return layer_norm(x, shape, weight, bias, self.eps)
        weight, bias = (None if one is None else one.float() for one in (weight, bias))
        return layer_norm(x.float(), shape, weight, bias, self.eps).to(x.dtype)


class Channels(Rows):
    """Layer norm over the channels of (N, C, H, W) input; y is channels last in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize over the channels, which are axis 1."""
        y = self._bncore_normalized(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return followed(self, y) if self._bncore_then else y


class GroupsAct(Groups):
    """Group norm, then the modules ``drop`` and ``act``."""

    _bncore_then = True


class RowsAct(Rows):
    """Layer norm, then the modules ``drop`` and ``act``."""

    _bncore_then = True


class ChannelsAct(Channels):
    """Layer norm over channels, then the modules ``drop`` and ``act``."""

    _bncore_then = True


class WideRows(Rows):
    """Layer norm in float32."""

    _bncore_wide = True


class WideRowsAct(RowsAct):
    """Layer norm in float32, then the modules ``drop`` and ``act``."""

    _bncore_wide = True


class WideChannels(Channels):
    """Layer norm over channels in float32."""

    _bncore_wide = True


class WideChannelsAct(ChannelsAct):
    """Layer norm over channels in float32, then the modules ``drop`` and ``act``."""

    _bncore_wide = True


for _kind in (Groups, Rows, Channels):
    compile_instead(_kind.forward, scripted)

FORWARDS: dict[tuple[str, str], type[Computed]] = {
    ("timm.layers.norm", "GroupNorm.forward"): Groups,
    ("timm.layers.norm", "GroupNorm1.forward"): Groups,
    ("timm.layers.norm", "LayerNorm.forward"): Rows,
    ("timm.layers.norm", "LayerNormFp32.forward"): WideRows,
    ("timm.layers.norm", "LayerNorm2d.forward"): Channels,
    ("timm.layers.norm", "LayerNorm2dFp32.forward"): WideChannels,
    ("timm.layers.norm", "LayerNormExp2d.forward"): Channels,
    ("timm.layers.norm_act", "GroupNormAct.forward"): GroupsAct,
    ("timm.layers.norm_act", "GroupNorm1Act.forward"): GroupsAct,
    ("timm.layers.norm_act", "LayerNormAct.forward"): RowsAct,
    ("timm.layers.norm_act", "LayerNormActFp32.forward"): WideRowsAct,
    ("timm.layers.norm_act", "LayerNormAct2d.forward"): ChannelsAct,
    ("timm.layers.norm_act", "LayerNormAct2dFp32.forward"): WideChannelsAct,
    ("torchvision.models.convnext", "LayerNorm2d.forward"): Channels,
}


def template(kind: type[Module]) -> type[Computed] | None:
    """Return the template for a class whose forward is known, or None."""
    forward: Any = kind.forward
    name = getattr(forward, "__module__", ""), getattr(forward, "__qualname__", "")
    return FORWARDS.get(name)


def refusal(module: Module) -> str | None:
    """Say why a module is not as its class, which has a template, has it; None if it is."""
    if template(type(module)) is not None and getattr(module, "_fast_norm", False):
        return "timm's fast norm is set, which computes in the dtype of autocast"
    return None
