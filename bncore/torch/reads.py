"""What a forward reads from the modules of a block while it is traced.

A forward may look at attributes of the block and of the modules inside: a flag, a rate, a module
that is None, how many modules a list has.  What is read is remembered with its value, because the
graph is that of other values no longer.
"""

from __future__ import annotations

import copy
import enum
import functools
import sys
import types
from typing import Any, NamedTuple, Self

import torch
from torch.nn import Module

PLAIN = (
    *(bool, int, float, complex, str, bytes, types.NoneType, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
MISSING = "missing"
INSIDE = "_modules"
OWN = frozenset(vars(Module())) - {"training", INSIDE}  # what every module has, besides


class NotFusable(Exception):
    """A block cannot get a fused forward; the text says why."""


class Value(NamedTuple):
    """What is remembered of an attribute.

    Attributes
    ----------
    what : str
        "plain", "code", "module", "tensor", or what `INSIDE` and `MISSING` are.
    value : Any
        A copy of a plain value, the function itself, or the name of a module's class.
    """

    what: str
    value: Any = None


class Read(NamedTuple):
    """An attribute that was read, of the module at a path in the block."""

    path: tuple[str, ...]
    name: str
    value: Value


class Reads:
    """Remembers reads of the modules of a block, and refuses writes, inside a ``with`` block."""

    def __init__(self, block: Module) -> None:
        self._paths = {
            id(module): tuple(name.split(".")) if name else ()
            for name, module in block.named_modules()
        }
        self._seen: dict[tuple[tuple[str, ...], str], Value] = {}

    def clear(self) -> None:
        """Forget all."""
        self._seen.clear()

    def found(self) -> tuple[Read, ...]:
        """Return what was read."""
        return tuple(Read(*place, value) for place, value in self._seen.items())

    def __enter__(self) -> Self:
        own = {name: vars(Module).get(name) for name in ("__getattribute__", "__setattr__")}
        self._own, own_put = own, Module.__setattr__

        def get(module: Module, name: str) -> Any:
            asking = str(sys._getframe(1).f_globals.get("__name__"))
            if not (name.startswith("__") or name in OWN or asking.startswith("torch.fx")):
                self._note(module, name)
            return object.__getattribute__(module, name)

        def put(module: Module, name: str, value: Any) -> None:
            if id(module) in self._paths:
                raise NotFusable(f"its forward sets {name}")
            own_put(module, name, value)

        for name, function in (("__getattribute__", get), ("__setattr__", put)):
            setattr(Module, name, function)
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._own.items():
            if function is None:
                delattr(Module, name)
            else:
                setattr(Module, name, function)

    def _note(self, module: Module, name: str) -> None:
        path = self._paths.get(id(module))
        if path is not None and (path, name) not in self._seen:
            value = read(module, name)
            if value is not None:
                self._seen[path, name] = value


def read(module: Module, name: str) -> Value | None:
    """Return what is to be remembered of an attribute of a module; None for its methods.

    Raises
    ------
    NotFusable
        If it is something that may change unseen.
    """
    own = object.__getattribute__(module, "__dict__")
    if name == INSIDE:
        return Value(INSIDE, _inside(own[INSIDE]))
    try:
        value = object.__getattribute__(module, name)
    except AttributeError:
        places = (own[place] for place in (INSIDE, "_parameters", "_buffers"))
        value = next((place[name] for place in places if name in place), MISSING)
        if value is MISSING:
            return Value(MISSING)
    if isinstance(value, Module):
        return Value("module", type(value).__qualname__)
    if isinstance(value, torch.Tensor):
        return Value("tensor")
    if is_plain(value):
        return Value("plain", copy.deepcopy(value))
    if isinstance(value, types.MethodType) and name not in own:
        return None
    if isinstance(value, (*CODE, functools.partial)):
        return Value("code", value)
    raise NotFusable(f"its forward reads {name}, a {type(value).__name__} that may change unseen")


def _inside(modules: dict[str, Module | None]) -> list[tuple[str, bool]]:
    return [(name, module is None) for name, module in modules.items()]


def is_plain(value: Any) -> bool:
    """Tell whether a value is a plain one, or a container of such, which can be compared."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(one) for item in value.items() for one in item)
    return isinstance(value, PLAIN)


def unchanged(block: Module, found: tuple[Read, ...]) -> bool:
    """Tell whether attributes are as they were when a block was traced."""
    for path, name, (what, value) in found:
        module = at(block, path)
        if module is None or not _same(module, name, what, value):
            return False
    return True


def _same(module: Module, name: str, what: str, value: Any) -> bool:
    if what == INSIDE:
        return bool(_inside(module._modules) == value)
    if what == MISSING:
        return not hasattr(module, name)
    now = getattr(module, name, None)
    if what == "tensor":
        return isinstance(now, torch.Tensor)
    if what == "module":
        return isinstance(now, Module) and type(now).__qualname__ == value
    return now is value or bool(type(now) is type(value) and now == value)


def at(block: Module, path: tuple[str, ...]) -> Module | None:
    """Return the module at a path in a block, or None."""
    found: Module | None = block
    for name in path:
        found = None if found is None else found._modules.get(name)
    return found
