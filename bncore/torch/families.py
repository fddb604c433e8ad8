"""Batch norms of timm and torchvision that have a forward of their own, computed by bncore.

`classes.py` puts these before the class of somebody's module if its forward is one of `FORWARDS`.
The forwards are known by where they were written, so neither library has to be installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Identity, Module

from bncore.torch.functional import normalized
from bncore.torch.modules import Computed, Normalizing, compile_instead, scripted
from bncore.torch.patterns import Activation, of_module
from bncore.torch.sync import SyncBatchNorm


class Activated(Normalizing):
    """Batch norm, then the modules ``drop`` and ``act``; a plain activation is part of it."""

    def _bncore_compute(self, *given: Any) -> torch.Tensor:
        then = activation_alone(self)
        y: torch.Tensor = self._bncore_apply(*given, then)  # type: ignore[call-arg]
        return y if then else followed(self, y)


class ActivatedSync(SyncBatchNorm):
    """Synchronized batch norm, then the modules ``drop`` and ``act`` where there are any."""

    def _bncore_compute(self, *given: Any) -> torch.Tensor:
        return followed(self, super()._bncore_compute(*given))


class Frozen(Computed):
    """Batch norm whose statistics and parameters are buffers, in training, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W) input by the given statistics."""
        kind = torch.promote_types(x.dtype, self.weight.dtype)
        then: tuple[Any, float] | None = activation_alone(self)
        activation, slope = then or (None, 0.0)
        y = normalized(
            x if x.dtype is kind else x.to(kind), self.running_mean, self.running_var,
            self.weight, self.bias, False, 0.0, self.eps, activation, slope, None, None,
        )  # fmt: skip
        return y if then else followed(self, y)

    def __repr__(self) -> str:
        return f"bncore.torch.{super().__repr__()}"


compile_instead(Frozen.forward, scripted)


def activation_alone(module: Module) -> Activation | None:
    """Return what a module's own modules do, if it is an activation of bncore's and no hooks."""
    drop, act = getattr(module, "drop", None), getattr(module, "act", None)
    if not (drop is None or type(drop) is Identity) or any(map(hooked, (drop, act))):
        return None
    return of_module(act)


def alone(module: Module) -> bool:
    """Tell whether the modules that a module has after batch norm do nothing at all."""
    after = (getattr(module, "drop", None), getattr(module, "act", None))
    return all(one is None or (type(one) is Identity and not hooked(one)) for one in after)


def hooked(module: Module | None) -> bool:
    """Tell whether a module has hooks that its call would run."""
    if module is None:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def followed(module: Module, y: torch.Tensor) -> torch.Tensor:
    """Apply the modules that a module of timm has after batch norm."""
    for name in ("drop", "act"):
        after = getattr(module, name, None)
        if after is not None:
            y = after(y)
    return y


Template = tuple[type[Computed], type[Computed] | None]

# The templates of a forward: as it is, and synchronized.
FORWARDS: dict[tuple[str, str], Template] = {
    ("timm.layers.norm_act", "BatchNormAct2d.forward"): (Activated, ActivatedSync),
    ("timm.layers.norm_act", "SyncBatchNormAct.forward"): (ActivatedSync, ActivatedSync),
    ("timm.layers.norm_act", "FrozenBatchNormAct2d.forward"): (Frozen, None),
    ("torchvision.ops.misc", "FrozenBatchNorm2d.forward"): (Frozen, None),
}


def template(kind: type[Module]) -> Template | None:
    """Return the templates for a class whose forward is known, or None."""
    forward = kind.forward
    name = getattr(forward, "__module__", ""), getattr(forward, "__qualname__", "")
    return FORWARDS.get(name)
