"""Replace PyTorch's batch norm by bncore's in a whole model, and back."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn import Module

from bncore.torch import blocks, classes, fusing, inverse, known, wrapped
from bncore.torch.modules import Computed, Normalizing
from bncore.torch.report import checked, report, target
from bncore.torch.sync import SyncBatchNorm

__all__ = ["convert", "revert"]

CAME_FROM = "_bncore_came_from"  # what a module that became a SyncBatchNorm was
GROUP = "process_group"


def convert(
    model: Module,
    *,
    sync: bool = False,
    process_group: Any = None,
    norms: bool = False,
    fuse: bool = False,
    example: Any = None,
    in_place: bool = False,
    verbose: bool = False,
) -> Module:
    """Let bncore compute a model's batch norm layers: PyTorch's modules and subclasses of them.

    The modules change in place, by their class alone.  So everything that refers to them still
    does, and parameters, buffers, hooks, modes, flags, wrapped forwards, compiled calls and the
    state dict stay.  A subclass that is not PyTorch's own becomes a subclass of itself with
    bncore's forward, if it has no forward of its own.  `report` says what was left alone and why.

    Parameters
    ----------
    model : Module
        Changed in place.
    sync : bool, default False
        Whether every batch norm becomes a `SyncBatchNorm`.
    process_group : optional
        The process group of the `SyncBatchNorm` modules; None for all processes.
    norms : bool, default False
        Whether to convert group, instance and layer norms, too.
    fuse : bool, default False
        Whether to make one operation of each batch norm and the addition, the ReLU or leaky ReLU,
        or both, that follow it in the forward of a module.  Such a module changes in place, too,
        by its class; `report` names the batch norms.  Modules whose forward `torch.fx` cannot trace
        are left alone.  A module that is changed later, or gets hooks where they would not be
        called, runs its own forward again.
    example : optional
        An input of the model, or a tuple of its positional arguments.  A copy of the model computes
        it, and a module is fused only if its outputs, gradients and statistics are the same, but
        for rounding, with what it gets there, in training and in evaluation.  Without an example,
        the graph of the forward decides alone.
    in_place : bool, default False
        Whether a batch norm of which leaky ReLU is part keeps its output for the gradient, and not
        its input, as `InPlaceBatchNorm` does, which says when and at what cost.
    verbose : bool, default False
        Whether to print the report.

    Returns
    -------
    Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a module, or cannot be copied with ``fuse=True``.
    ValueError
        If `fuse` and `sync` are both True, or there is an example without `fuse`.
    Exception
        What the model raises for `example`.  Nothing has been changed in these cases.

    Warns
    -----
    UserWarning
        If no layer of the model is bncore's afterwards.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> norm = model[1]
    >>> type(bncore.torch.convert(model)[1])
    <class 'bncore.torch.modules.BatchNorm2d'>
    >>> model[1] is norm
    True
    >>> type(bncore.torch.revert(model)[1])
    <class 'torch.nn.modules.batchnorm.BatchNorm2d'>

    >>> _ = model.append(torch.nn.ReLU())
    >>> _ = bncore.torch.convert(model, fuse=True, example=torch.ones(2, 3, 8, 8))
    >>> bncore.torch.report(model).fused
    (Fusion(name='1', block='', operations='relu'),)
    """
    checked(model)
    if sync and fuse:
        raise ValueError("fuse: expected False with sync=True, got True")
    if example is not None and not fuse:
        raise ValueError("example: expected None with fuse=False, got an example")
    fusions = _found(model, example) if fuse else None
    _convert_layers(model, sync, process_group, norms)
    if fusions is not None:
        _fuse(model, fusions)
    for module in model.modules():
        if in_place and isinstance(module, Normalizing):
            module.__dict__.setdefault(inverse.KEEPS_OUTPUT, inverse.ACTIVATED)
    if verbose or not any(isinstance(module, Computed) for module in model.modules()):
        found = report(model)
        if not found.converted:
            warnings.warn(f"nothing was converted: {found}", UserWarning, stacklevel=2)
        if verbose:
            print(found)
    return model


def _convert_layers(model: Module, sync: bool, process_group: Any, norms: bool) -> None:
    for module in model.modules():
        try:
            kind = target(module, sync=sync, norms=norms)
        except classes.NotConvertible:
            continue
        if kind is not type(module):
            _convert(module, kind, process_group)


def _found(model: Module, example: Any) -> fusing.Found:
    """Find what can be fused; everything is tried on a copy."""
    trial = fusing.duplicate(model)
    for module in trial.modules():
        blocks.undo(module)
    _convert_layers(trial, False, None, False)
    return fusing.find(trial, example)


def _fuse(model: Module, found: fusing.Found) -> None:
    for name, block in model.named_modules():
        blocks.undo(block)
        fusing.refused.pop(block, None)
        if name in found.plans:
            blocks.fuse(block, found.plans[name])
        elif name in found.refused:
            fusing.refused[block] = found.refused[name]


def revert(model: Module) -> Module:
    """Let PyTorch compute a model's normalizing layers again; this undoes `convert`.

    The modules get back their classes, and their forwards that were wrapped; nothing is fused any
    more.  `BatchNormReLU` and `BatchNormAddReLU` are kept, because PyTorch has no single module for
    them.

    Parameters
    ----------
    model : Module
        Changed in place.

    Returns
    -------
    Module
        `model`.

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
    for module in checked(model).modules():
        blocks.undo(module)
        _revert(module)
    return model


def _convert(module: Module, kind: type[Module], process_group: Any) -> None:
    """Give a module a class of bncore."""
    if isinstance(module, Computed):  # it has to become a synchronized one
        _revert(module)
    before = type(module)
    _become(module, kind)
    wrapped.exchange(module, before.forward, kind.forward)
    if issubclass(kind, SyncBatchNorm) and not issubclass(before, torch.nn.SyncBatchNorm):
        kept = {GROUP: module.__dict__[GROUP]} if GROUP in module.__dict__ else {}
        module.__dict__[CAME_FROM] = before, kept
        module.__dict__[GROUP] = process_group


def _revert(module: Module) -> None:
    """Give a module back the class that `convert` found, if it has one of bncore."""
    before = type(module)
    kind = classes.original(before)
    came_from = module.__dict__.get(CAME_FROM)
    if came_from is not None and before is SyncBatchNorm:
        kind = came_from[0]
        if issubclass(kind, torch.nn.modules.lazy.LazyModuleMixin):
            kind = kind.cls_to_become  # it has seen its first input since
    if kind is before:
        return
    _become(module, kind)
    module.__dict__.pop(inverse.KEEPS_OUTPUT, None)
    wrapped.restore(module, before.forward, kind.forward)
    if came_from is not None:
        del module.__dict__[CAME_FROM]
        if GROUP in came_from[1]:
            module.__dict__[GROUP] = came_from[1][GROUP]
        else:
            del module.__dict__[GROUP]


def _become(module: Module, kind: type[Module]) -> None:
    object.__setattr__(module, "__class__", kind)  # somebody's own __setattr__ may do other things
    (known.mark if issubclass(kind, Computed) else known.unmark)(module)


known.teach(classes.original)
