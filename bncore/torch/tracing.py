"""The graph of a block's own forward, and what of the block that graph depends on.

`torch.fx` runs a forward on stand-ins for its inputs.  The modules inside the block are leaves, so
the graph has what the block itself does with them.  The forward may look at attributes of the block
(a flag, a module that is None): those that it has read are remembered with their values, because
the graph is that of other values no longer.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn import Module

PLAIN = (bool, int, float, str, type(None), torch.dtype)
MISSING = object()  # is no value of any attribute


class NotFusable(Exception):
    """A block cannot get a fused forward; the text says why."""


class Traced(NamedTuple):
    """What a trace has found.

    Attributes
    ----------
    graph : torch.fx.Graph
        One placeholder for each positional argument.
    read : dict
        Attributes that forward has read and that are plain values, by name.
    """

    graph: Graph
    read: dict[str, Any]


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class _Value(Proxy):
    """A stand-in whose ``+=`` and the like stay what they are; those of `Proxy` become ``+``."""

    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
        locals()[f"__i{_name}__"] = _in_place(getattr(operator, f"__i{_name}__"))


class _BlockTracer(Tracer):
    """A tracer with a given number of positional arguments, for which all modules are leaves."""

    proxy_buffer_attributes = True  # a decision that depends on a buffer is an error, then

    def __init__(self, count: int, read: dict[str, Any]) -> None:
        super().__init__(autowrap_modules=())
        self.count, self.read = count, read

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        given: list[Proxy] = [
            self.create_proxy("placeholder", f"given_{i}", (), {}) for i in range(self.count)
        ]
        self.read.clear()  # what follows is the forward itself
        return root_fn, [self.root, *given]


def trace(block: Module, training: bool) -> Traced:
    """Trace a block's forward in one of its modes; the block itself is not touched.

    Raises
    ------
    NotFusable
        If forward cannot be traced, or changes the block.
    """
    read: dict[str, Any] = {}
    shell = _shell(block, training, read)
    try:
        graph = _BlockTracer(positional(block), read).trace(shell)
    except NotFusable:
        raise
    except Exception as error:  # of somebody's forward
        text = str(error).strip().partition("\n")[0]
        raise NotFusable(f"its forward cannot be traced: {type(error).__name__}: {text}") from error
    read.pop("training", None)
    return Traced(graph, {name: copy.deepcopy(value) for name, value in read.items()})


def positional(block: Module) -> int:
    """Return how many arguments a block's forward needs."""
    parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise NotFusable("its forward has an argument that is a keyword")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    if not needed:
        raise NotFusable("its forward needs no argument")
    return len(needed)


def _shell(block: Module, training: bool, read: dict[str, Any]) -> Any:
    """Return a module with a block's attributes that remembers what is read, and cannot change."""
    kind = type(block)

    class Shell(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if not name.startswith("__") and is_plain(value):
                read[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            raise NotFusable(f"its forward sets {name}")

    try:
        shell = object.__new__(Shell)
    except TypeError as error:
        raise NotFusable(f"{kind.__name__} cannot have a subclass: {error}") from error
    shell.__dict__.update(block.__dict__)
    shell.__dict__["training"] = training
    return shell


def is_plain(value: Any) -> bool:
    """Tell whether a value is a plain one, or a container of such, which can be compared."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(one) for item in value.items() for one in item)
    return isinstance(value, PLAIN)


def unchanged(block: Module, read: dict[str, Any]) -> bool:
    """Tell whether attributes have the values with which a block was traced."""
    for name, value in read.items():
        now = getattr(block, name, MISSING)
        if now is not value and (type(now) is not type(value) or now != value):
            return False
    return True
