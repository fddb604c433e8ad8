"""The graph of a block's own forward.

`torch.fx` runs a forward on stand-ins for its inputs.  The modules inside the block are leaves, so
the graph has what the block itself does with them.  Whatever the forward decides while it is traced
is decided once and for all.  So what it reads from modules is remembered (`reads.py`), and a
forward is refused if it decides by what is not the block's: random numbers, or the modes of
gradients and autocast.  It is refused, too, if it changes these modes for a part of what it does,
because a graph does not have that.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn import Module

from bncore.torch import reads
from bncore.torch.reads import NotFusable, Read

NUMBERS = (int, float, torch.Size)  # of arguments


class Traced(NamedTuple):
    """What a trace has found.

    Attributes
    ----------
    graph : torch.fx.Graph
        One placeholder for each positional argument.
    read : tuple of Read
        What forward has read from the modules of the block.
    kinds : tuple of type, or None
        The types of the arguments, if forward has asked for one.
    """

    graph: Graph
    read: tuple[Read, ...]
    kinds: tuple[type, ...] | None


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class _Value(Proxy):
    """A stand-in whose ``+=`` and the like stay what they are; those of `Proxy` become ``+``."""

    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
        locals()[f"__i{_name}__"] = _in_place(getattr(operator, f"__i{_name}__"))

    def _seen_by_isinstance(self) -> Any:
        asking = str(sys._getframe(1).f_globals.get("__name__"))
        if asking.startswith("torch.fx") or asking == "torch.nn.parameter":
            return type(self)
        return self.tracer.kind_of(self.node)

    __class__: Any = property(_seen_by_isinstance)


class _BlockTracer(Tracer):
    """A tracer with given positional arguments, for which all modules are leaves."""

    proxy_buffer_attributes = True  # a decision that depends on a buffer is an error, then

    def __init__(self, count: int, kinds: tuple[type, ...] | None, read: reads.Reads) -> None:
        super().__init__(autowrap_modules=())
        self.count, self.kinds, self.read = count, kinds, read
        self.given: list[Node] = []
        self.modes = _modes()
        self.asked = False

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)

    def kind_of(self, node: Node) -> type:
        """Return the type of a value that forward asks for."""
        if node not in self.given:
            raise NotFusable("its forward asks for the type of a value")
        if self.kinds is None:
            raise NotFusable("its forward asks for the type of an argument, and got no example")
        self.asked = True
        return self.kinds[self.given.index(node)]

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True

    def create_proxy(self, *given: Any, **named: Any) -> Proxy:
        if _modes() != self.modes:
            raise NotFusable("its forward runs a part with other modes of autograd or autocast")
        return super().create_proxy(*given, **named)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        given = [self.create_proxy("placeholder", f"given_{i}", (), {}) for i in range(self.count)]
        self.given = [one.node for one in given]
        self.read.clear()  # what follows is the forward itself
        return root_fn, [self.root, *given]


def trace(block: Module, kinds: tuple[type, ...] | None) -> Traced:
    """Trace a block's forward in the mode that it has.

    Parameters
    ----------
    block : Module
        A module that may be thrown away: a forward may change what no module has.
    kinds : tuple of type, optional
        The types of its arguments.

    Raises
    ------
    NotFusable
        If forward cannot be traced, changes the block, or does what a graph does not have.
    """
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        found = _traced(block, kinds)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = _traced(block, kinds)
    if found.graph.python_code("self").src != again.graph.python_code("self").src:
        raise NotFusable("its forward asks whether gradients or autocast are on")
    return found


def _traced(block: Module, kinds: tuple[type, ...] | None) -> Traced:
    read = reads.Reads(block)
    try:
        tracer = _BlockTracer(positional(block), kinds, read)
        with _same_random_numbers(), read:
            graph = tracer.trace(block)
    except NotFusable:
        raise
    except Exception as error:  # of somebody's forward
        text = str(error).strip().partition("\n")[0]
        raise NotFusable(f"its forward cannot be traced: {type(error).__name__}: {text}") from error
    found = read.found()
    if not reads.unchanged(block, found):
        raise NotFusable("its forward changes attributes")
    return Traced(graph, found, tracer.kinds if tracer.asked else None)


def _modes() -> tuple[object, ...]:
    """Return the modes that change what an operation does, and that no graph has."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        torch.get_autocast_dtype("cpu"),
        torch._C._autograd._top_saved_tensors_default_hooks(True),  # of checkpoints
    )


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Refuse a forward that draws numbers for itself, which would be the same ones at each call."""
    own, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
        same = torch.equal(own, torch.get_rng_state()) and python == random.getstate()
        if not (same and all(map(np.array_equal, numpy, np.random.get_state()))):
            raise NotFusable("its forward draws random numbers that torch.fx does not see")
    finally:
        torch.set_rng_state(own)
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def mode(block: Module, training: bool) -> Iterator[None]:
    """Let a block have a mode; what its `train` leaves alone stays."""
    before = {module: module.training for module in block.modules()}
    try:
        block.train(training)
        yield
    finally:
        for module, flag in before.items():
            module.__dict__["training"] = flag


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


def is_ordinary(value: object) -> bool:
    """Tell whether a stand-in may be traced for an argument; it is neither None nor True."""
    if isinstance(value, torch.Tensor):
        return True
    if type(value) in (list, tuple):
        return all(isinstance(one, torch.Tensor) for one in value)  # type: ignore[attr-defined]
    return type(value) in NUMBERS


def kind(value: object) -> type:
    """Return what `isinstance` may see of an argument."""
    return torch.Tensor if isinstance(value, torch.Tensor) else type(value)
