"""Which class of bncore stands for which class of PyTorch, or of somebody else, and back.

A module is converted by its class alone: the object stays.  The class that it gets is one of
bncore's public classes, or for somebody's own subclass a subclass of that, in which only the
forward is bncore's.
"""

from __future__ import annotations

import copyreg
import sys
import types
import weakref
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from bncore.torch import families, modules, norm_families, norm_modules
from bncore.torch.modules import Computed, Fused, Normalizing
from bncore.torch.sync import SyncBatchNorm

PAIRS: dict[type[Module], type[Module]] = {
    torch.nn.BatchNorm1d: modules.BatchNorm1d,
    torch.nn.BatchNorm2d: modules.BatchNorm2d,
    torch.nn.BatchNorm3d: modules.BatchNorm3d,
    torch.nn.LazyBatchNorm1d: modules.LazyBatchNorm1d,
    torch.nn.LazyBatchNorm2d: modules.LazyBatchNorm2d,
    torch.nn.LazyBatchNorm3d: modules.LazyBatchNorm3d,
    torch.nn.SyncBatchNorm: SyncBatchNorm,
}
# Group, instance and layer norm, which are converted on request.
NORMS: dict[type[Module], type[Module]] = {
    torch.nn.GroupNorm: norm_modules.GroupNorm,
    torch.nn.InstanceNorm1d: norm_modules.InstanceNorm1d,
    torch.nn.InstanceNorm2d: norm_modules.InstanceNorm2d,
    torch.nn.InstanceNorm3d: norm_modules.InstanceNorm3d,
    torch.nn.LayerNorm: norm_modules.LayerNorm,
}
BACK = {own: theirs for theirs, own in (PAIRS | NORMS).items()}
ORIGIN = "_bncore_origin"  # of a class that is made here: the class that it stands for
MAKER = "_bncore_maker"  # of the same: what makes it again

_Key = tuple[type[Module], bool]
_made: weakref.WeakValueDictionary[_Key, type[Module]] = weakref.WeakValueDictionary()


class NotConvertible(Exception):
    """There is no class of bncore for a class; the text says why."""


def counterpart(kind: type[Module], sync: bool) -> type[Module]:
    """Return the class of bncore that stands for a class; a class of bncore stands for itself.

    Parameters
    ----------
    kind : type
        The class of any module.
    sync : bool
        Whether the result has to synchronize its statistics; those of a sample need not.

    Raises
    ------
    NotConvertible
        If there is none.
    """
    norm = _norm_of(kind)
    if norm is not None:
        return _of_samples(kind, norm)
    if issubclass(kind, Computed):
        if not sync or issubclass(kind, (SyncBatchNorm, families.Frozen)):
            return kind
        theirs = original(kind)
        if theirs is kind:
            raise NotConvertible(f"{kind.__name__} has no synchronized form")
        return counterpart(theirs, sync)
    templates = families.template(kind)
    if templates is not None:
        alone, together = templates
        return _subclass(kind, sync, together if sync and together else alone)
    if not issubclass(kind, _BatchNorm):
        raise NotConvertible(f"{kind.__name__} is no batch, group, instance or layer norm")
    if kind in PAIRS and not (sync and "cls_to_become" in vars(kind)):
        return SyncBatchNorm if sync else PAIRS[kind]
    if _is_made_by_torch(kind):
        return _rebuilt(kind, [counterpart(b, sync) if _normalizes(b) else b for b in _bases(kind)])
    synchronized = issubclass(kind, torch.nn.SyncBatchNorm)
    theirs = torch.nn.SyncBatchNorm if synchronized else _BatchNorm
    if kind.forward is not theirs.forward:
        raise NotConvertible(f"{kind.__name__} has a forward of its own")
    sync = sync or synchronized
    return _subclass(kind, sync, SyncBatchNorm if sync else Normalizing)


def _norm_of(kind: type[Module]) -> type[Module] | None:
    """Return the class of `NORMS` that a class is or is derived from."""
    return next((one for one in NORMS if issubclass(kind, one)), None)


def is_of_samples(kind: type[Module]) -> bool:
    """Tell whether a class is a group, instance or layer norm, of PyTorch or of bncore."""
    return _norm_of(kind) is not None


def _of_samples(kind: type[Module], norm: type[Module]) -> type[Module]:
    """Return the class of bncore for a group, instance or layer norm, or for a subclass of one."""
    if issubclass(kind, Computed):
        return kind
    if kind is norm:
        return NORMS[norm]
    template = norm_families.template(kind)
    if template is not None:
        return _subclass(kind, False, template)
    if kind.forward is not norm.forward:
        raise NotConvertible(f"{kind.__name__} has a forward of its own")
    if _is_made_by_torch(kind):
        return _rebuilt(kind, [NORMS.get(base, base) for base in _bases(kind)])
    own: Any = NORMS[norm]
    return _subclass(kind, False, own)


def original(kind: type[Module]) -> type[Module]:
    """Return the class that a class of bncore stands for, or the class itself if there is none."""
    if kind in BACK:
        return BACK[kind]
    if not issubclass(kind, (Computed, Fused)):
        return kind
    if ORIGIN in vars(kind) and not _is_changed(kind):
        found: type[Module] = vars(kind)[ORIGIN]
        return found
    if _is_made_by_torch(kind):
        bases = [original(b) for b in _bases(kind)]
        return kind if bases == _bases(kind) else _rebuilt(kind, bases)
    return kind


def _bases(kind: type[Module]) -> list[type[Module]]:
    return list(kind.__bases__)


def _normalizes(kind: type) -> bool:
    return issubclass(kind, (_BatchNorm, *NORMS))


# Subclasses of somebody else: Made -> base (Computed) -> theirs.


def _subclass(kind: type[Module], sync: bool, base: type[Computed]) -> type[Module]:
    """Make the subclass of a class in which the forward is that of a class of bncore."""
    if (kind, sync) in _made:
        return _made[kind, sync]

    body = {"_bncore_sync": sync, "_bncore_stock": modules.stock(kind.forward)}
    if becomes := getattr(kind, "cls_to_become", None):  # of a lazy class
        body["cls_to_become"] = counterpart(becomes, sync)
    _made[kind, sync] = result = made(kind, base, body, (counterpart, kind, sync))
    return result


def made(
    kind: type[Module], base: type[Module], body: dict[str, Any], maker: tuple[Any, ...]
) -> type[Module]:
    """Make a subclass of a class, with the same name, that has `base` before it.

    Parameters
    ----------
    kind, base : type
        The class that the new one stands for, and the one whose methods come first.
    body : dict
        Further attributes of the new class.
    maker : tuple
        A function, and its arguments, that return the new class again.

    Raises
    ------
    NotConvertible
        If the class takes no subclass.
    """

    def fill(place: dict[str, Any]) -> None:
        place.update(body)
        place.update(
            __module__=__name__,
            __qualname__=kind.__qualname__,
            __doc__=kind.__doc__,
            __reduce_ex__=_reduced,
        )
        place[ORIGIN], place[MAKER] = kind, maker

    try:
        return types.new_class(kind.__name__, (base, kind), {}, fill)
    except Exception as error:  # somebody's metaclass or __init_subclass__ may refuse anything
        raise NotConvertible(f"{kind.__name__} cannot have a subclass: {error}") from error


def _reduced(self: Any, protocol: Any) -> Any:
    """Pickle a module whose class nobody can import: by the class that it stands for."""
    kind: Any = next(k for k in type(self).__mro__ if vars(k).get("__reduce_ex__") is _reduced)
    make, arguments, *rest = super(kind, self).__reduce_ex__(protocol)
    if make is copyreg.__newobj__ and arguments[0] is kind:  # type: ignore[attr-defined]
        arguments = (vars(kind)[MAKER], *arguments[1:])
        make = _remade
    return make, arguments, *rest


def _remade(maker: tuple[Any, ...], *arguments: Any) -> Module:
    """Make an empty object of a class that was made here, for pickle and copy."""
    make, *given = maker
    cls = make(*given)
    found: Module = cls.__new__(cls, *arguments)
    return found


# Classes that PyTorch makes for single modules: parametrized and sharded ones.  PyTorch looks for
# the class of before in a certain place, so the class is made again with other bases.


def _is_made_by_torch(kind: type) -> bool:
    if not kind.__module__.startswith("torch."):
        return False
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind


def _rebuilt(kind: type[Module], bases: list[type[Module]]) -> type[Module]:
    body = _body(kind)
    meta: Any = type(kind)
    made: type[Module] = meta(kind.__name__, tuple(bases), body)
    setattr(made, ORIGIN, kind)
    return made


def _body(kind: type) -> dict[str, Any]:
    left_out = {"__dict__", "__weakref__", "__slotnames__", ORIGIN}  # the third is of copyreg
    return {name: value for name, value in vars(kind).items() if name not in left_out}


def _is_changed(kind: type) -> bool:
    """Tell whether PyTorch has put something into a class since it was made again."""
    return _is_made_by_torch(kind) and _body(kind) != _body(vars(kind)[ORIGIN])
