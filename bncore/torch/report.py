"""What `convert` has converted in a model, and what it leaves alone and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

from bncore.torch import blocks, classes, fusing, norm_families, wrapped
from bncore.torch.modules import Computed, Fused

__all__ = ["Layer", "Report", "report"]


class Layer(NamedTuple):
    """A normalizing layer of a model.

    Attributes
    ----------
    name : str
        Its name in ``model.named_modules()``; the model itself has the name "".
    kind : str
        The name of its class.
    reason : str or None
        Why `convert` leaves it alone; None if it is bncore's.
    """

    name: str
    kind: str
    reason: str | None


class Fusion(NamedTuple):
    """A batch norm of which a block makes one operation with what follows.

    Attributes
    ----------
    name : str
        The name of the batch norm.
    block : str
        The name of the module whose forward does so.
    operations : str
        What follows: "relu", "add, relu", "leaky_relu", "add, leaky_relu" or "add".
    """

    name: str
    block: str
    operations: str


class Report(NamedTuple):
    """What `report` has found.

    Attributes
    ----------
    converted, left : tuple of Layer
        The layers that bncore computes, and those that it does not.
    fused : tuple of Fusion
        The batch norms that ``convert(fuse=True)`` has fused with what follows them.
    unfused : tuple of Layer
        The modules in which it could not look for that, or found that it changes results.
    """

    converted: tuple[Layer, ...]
    left: tuple[Layer, ...]
    fused: tuple[Fusion, ...] = ()
    unfused: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        count = len(self.converted) + len(self.left)
        lines = [f"bncore.torch computes {len(self.converted)} of {count} normalizing layers"]
        lines += [f"  {layer.name or '(the model)'}: {layer.kind}" for layer in self.converted]
        lines += [
            f"  {layer.name or '(the model)'}: left alone, because {layer.reason}"
            for layer in self.left
        ]
        lines += [f"  {one.name}: fused with {one.operations}" for one in self.fused]
        lines += [
            f"  {layer.name or '(the model)'}: nothing is fused there, because {layer.reason}"
            for layer in self.unfused
        ]
        return "\n".join(lines)


def report(model: Module) -> Report:
    """Say which normalizing layers of a model bncore computes, and why it leaves others alone.

    A layer that normalizes is a batch norm of PyTorch, a subclass of one, or a module whose class
    has "Norm" in its name, unless it contains such layers.

    Parameters
    ----------
    model : Module
        A model, before or after `convert`; nothing in it changes.

    Returns
    -------
    Report
        Lists of layers; ``print`` shows them.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.LayerNorm(8))
    >>> print(bncore.torch.report(bncore.torch.convert(model)))
    bncore.torch computes 1 of 2 normalizing layers
      0: bncore.torch.BatchNorm1d
      1: left alone, because LayerNorm is converted with norms=True alone
    """
    converted, left, fused, unfused = [], [], [], []
    for name, module in checked(model).named_modules():
        if isinstance(module, Fused):
            fused += [Fusion(*given) for given in blocks.fusions(module, name)]
        elif module in fusing.refused:
            unfused.append(Layer(name, _name(module), fusing.refused[module]))
        if isinstance(module, Computed):
            converted.append(Layer(name, module._get_name(), None))
        elif _seems_to_normalize(module) and not any(map(_seems_to_normalize, _inside(module))):
            left.append(Layer(name, _name(module), reason(module)))
    return Report(tuple(converted), tuple(left), tuple(fused), tuple(unfused))


def checked(model: object) -> Module:
    """Return a model, or raise TypeError if it is something else."""
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def reason(module: Module) -> str:
    """Say why `convert` leaves a module alone."""
    try:
        target(module, sync=False, norms=False)
    except classes.NotConvertible as error:
        return str(error)
    return "convert has not seen it"


def target(module: Module, *, sync: bool, norms: bool) -> type[Module]:
    """Return the class that `convert` gives to a module.

    `norms` tells whether group, instance and layer norms are converted.

    Raises
    ------
    NotConvertible
        If it gives it none.
    """
    kind = type(module)
    found = classes.counterpart(kind, sync)
    refusal = norm_families.refusal(module)
    if refusal is not None:
        raise classes.NotConvertible(refusal)
    if found is not kind and classes.is_of_samples(kind) and not norms:
        raise classes.NotConvertible(f"{kind.__name__} is converted with norms=True alone")
    if found is not kind and wrapped.leads_elsewhere(module, kind.forward):
        raise classes.NotConvertible(
            f"this {kind.__name__} has a forward of its own, which does not seem to call "
            "that of its class"
        )
    return found


def _seems_to_normalize(module: Module) -> bool:
    if isinstance(module, (Computed, _NormBase)) or classes.is_of_samples(type(module)):
        return True
    return "norm" in _name(module).lower()


def _inside(module: Module) -> Iterator[Module]:
    return (inner for inner in module.modules() if inner is not module)


def _name(module: Module) -> str:
    """Return the name of a module's class; that of a scripted one before it was scripted."""
    name: str = getattr(module, "original_name", type(module).__name__)
    return name
