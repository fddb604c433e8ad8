"""Replace PyTorch's batch norm by bncore's in a whole model, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from bncore.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, of_same_state
from bncore.torch.sync import SyncBatchNorm

__all__ = ["convert", "revert"]

PAIRS: dict[type[Module], type[Module]] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
    torch.nn.SyncBatchNorm: SyncBatchNorm,
}
BACK = {own: theirs for theirs, own in PAIRS.items()}
CAME_FROM = "_bncore_came_from"  # the class that became a SyncBatchNorm


def convert(model: Module, *, sync: bool = False, process_group: Any = None) -> Module:
    """Replace PyTorch's batch norm modules by bncore's, in the model itself.

    Parameters and buffers stay the same tensors, so optimizers keep working.  Hooks, modes and the
    state dict do not change.  Subclasses of PyTorch's modules that are not PyTorch's own are not
    replaced, because they may compute something else.

    Parameters
    ----------
    model : Module
        Changed in place, unless it is a batch norm itself.
    sync : bool, default False
        Whether every batch norm becomes a `SyncBatchNorm`.
    process_group : optional
        The process group of the `SyncBatchNorm` modules; None for all processes.

    Returns
    -------
    Module
        `model`, or what takes its place.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> type(bncore.torch.convert(model)[1])
    <class 'bncore.torch.modules.BatchNorm2d'>
    >>> type(bncore.torch.revert(model)[1])
    <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """

    def replaced(module: Module) -> Module:
        kind = type(module)
        if sync and (kind in PAIRS or kind in BACK) and kind is not SyncBatchNorm:
            new = of_same_state(SyncBatchNorm, module)
            if kind is not torch.nn.SyncBatchNorm:
                setattr(new, CAME_FROM, BACK.get(kind, kind))
                new.process_group = process_group
            return new
        return of_same_state(PAIRS[kind], module) if kind in PAIRS else module

    return _everywhere(model, replaced)


def revert(model: Module) -> Module:
    """Replace bncore's modules by PyTorch's batch norm; this undoes `convert`.

    `BatchNormReLU` and `BatchNormAddReLU` are kept, because PyTorch has no single module for them.

    Parameters
    ----------
    model : Module
        Changed in place, unless it is a batch norm itself.

    Returns
    -------
    Module
        `model`, or what takes its place.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.revert(bncore.torch.BatchNorm1d(2, eps=1e-3))
    BatchNorm1d(2, eps=0.001, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    def replaced(module: Module) -> Module:
        kind = type(module)
        if kind not in BACK:
            return module
        theirs = module.__dict__.get(CAME_FROM, BACK[kind])
        new = of_same_state(theirs, module)
        if new.__dict__.pop(CAME_FROM, None) is not None:
            del new.process_group
        return new

    return _everywhere(model, replaced)


def _everywhere(model: object, replaced: Any) -> Module:
    """Replace modules in a model; a module in several places gets one common replacement."""
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    new: dict[Module, Module] = {module: replaced(module) for module in model.modules()}
    for parent in new:
        for name, child in parent._modules.items():
            if child is not None and new[child] is not child:
                parent._modules[name] = new[child]
    return new[model]
