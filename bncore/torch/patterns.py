"""Batch norm, then an addition or an activation or both, in the graph of a block.

The addition may be ``+``, ``+=``, `torch.add` or a method; the activation ReLU or leaky ReLU, as a
module, function or method.  Modules that give back their input may stand between.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.nn import Identity, LeakyReLU, Linear, Module, ReLU, functional
from torch.nn.modules.conv import _ConvNd

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
IN_PLACE = {operator.iadd, "add_"}
RELUS = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}
LEAKY_RELUS = {functional.leaky_relu, functional.leaky_relu_}


class Activation(NamedTuple):
    """What follows batch norm: an activation that bncore has, and its slope."""

    name: str
    slope: float


class Pattern(NamedTuple):
    """Nodes of a graph that become one.

    Attributes
    ----------
    norm : Node
        The call of a module that ends in a batch norm.
    skipped : tuple of Node
        The calls of modules after it that are no longer made.
    addition, residual : Node or None
        The node that adds, and what it adds.
    activation : Activation or None
        What comes after that.
    last : Node
        The last of these nodes, or the output of the graph.
    """

    norm: Node
    skipped: tuple[Node, ...]
    addition: Node | None
    residual: Node | None
    activation: Activation | None
    last: Node

    @property
    def is_open(self) -> bool:
        """Whether the block returns what the batch norm gives."""
        return bool(self.last.op == "output")


def find(
    graph: Graph, called: Callable[[Node], Module], ends: Callable[[Module], bool]
) -> list[Pattern]:
    """Return the patterns of a graph, the last first.

    Parameters
    ----------
    graph : Graph
        The graph of a block.
    called : callable
        Returns the module that a node of kind ``call_module`` calls.
    ends : callable
        Tells whether a module ends in a batch norm that can be fused.
    """
    found: list[Pattern] = []
    taken: set[Node] = set()
    calls = [node for node in graph.nodes if node.op == "call_module"]
    for norm in reversed(calls):
        once = sum(other.target == norm.target for other in calls) == 1
        if not (once and ends(called(norm)) and _has_one_input(norm)):
            continue
        pattern = _follow(norm, called)
        if pattern is not None and pattern.addition not in taken:
            found.append(pattern)
            if pattern.addition is not None:
                taken.add(pattern.addition)
    return found


def _has_one_input(node: Node) -> bool:
    return len(node.args) == 1 and isinstance(node.args[0], Node) and not node.kwargs


def _follow(norm: Node, called: Callable[[Node], Module]) -> Pattern | None:
    """Go from a batch norm to what follows it, as far as bncore can do it."""
    skipped: list[Node] = []
    addition = residual = None
    node, user = norm, _pass_by(norm, called, skipped)
    if user is not None and user.op == "output" and user.args[0] is _before(user):
        return Pattern(norm, tuple(skipped), None, None, None, user)
    if user is not None and (other := _added(user, _last(norm, skipped))) is not None:
        if not (_can_wait(norm, user, called) and _is_kept(other, user, called)):
            return None
        node, addition, residual = user, user, other
        user = _pass_by(addition, called, skipped)
    node = _last(node, skipped)
    activation = None if user is None else activation_of(user, node, called)
    if activation is not None:
        assert user is not None
        if user.op == "call_module":
            skipped.append(user)
        node = user
    if addition is None and activation is None:
        return None
    return Pattern(norm, tuple(skipped), addition, residual, activation, node)


def _pass_by(node: Node, called: Callable[[Node], Module], skipped: list[Node]) -> Node | None:
    """Return the only node that uses a node's value, past modules that do nothing."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_module" or type(called(user)) is not Identity:
            return user
        skipped.append(user)
        node = user
    return None


def _before(output: Node) -> object:
    return output.all_input_nodes[0] if len(output.all_input_nodes) == 1 else None


def _last(node: Node, skipped: list[Node]) -> Node:
    """Return the last of the modules that were passed by after a node, or the node itself."""
    while skipped and (follower := next(iter(node.users))) in skipped:
        node = follower
    return node


def _added(node: Node, value: Node) -> Node | None:
    """Return what a node adds to a value, if that is all that it does."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if first is second:
        return None
    if first is value and isinstance(second, Node):
        return second
    if second is value and isinstance(first, Node) and node.target not in IN_PLACE:
        return first
    return None


def _can_wait(norm: Node, addition: Node, called: Callable[[Node], Module]) -> bool:
    """Tell whether a batch norm may be called where the addition is.

    Nothing between them may write into its input, or call it, too.
    """
    between: list[Node] = []
    node = norm.next
    while node is not addition:
        between.append(node)
        node = node.next
    if any(norm.args[0] in node.all_input_nodes or _writes(node) for node in between):
        return False
    modules = [called(node) for node in between if node.op == "call_module"]
    if any(called(norm) in module.modules() for module in modules):
        return False
    return _is_new(norm.args[0], called) or not any(map(_may_write, modules))


def _is_kept(residual: Node, addition: Node, called: Callable[[Node], Module]) -> bool:
    """Tell whether nothing writes into a residual later: the gradient of an activation reads it."""
    node = addition.next
    while node.op != "output":
        writes = _may_write(called(node)) if node.op == "call_module" else _writes(node)
        if writes and residual in node.all_input_nodes:
            return False
        node = node.next
    return True


def _writes(node: Node) -> bool:
    """Tell whether a function or a method writes into its argument, by its name and arguments."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_function" and node.target is getattr(operator, name, None):
        return name.startswith("i")
    flags = (*node.args, node.kwargs.get("inplace"))  # functions take `inplace` at many places
    return name.endswith("_") or node.kwargs.get("out") is not None or any(f is True for f in flags)


def _is_new(value: Any, called: Callable[[Node], Module]) -> bool:
    """Tell whether nobody but its one user can have a value: it is no view of anything."""
    if value.op != "call_module" or len(value.users) != 1:
        return False
    return isinstance(called(value), (_ConvNd, Linear))


def _may_write(module: Module) -> bool:
    """Tell whether a module may write into its arguments: in place, or in somebody's forward."""
    for inner in module.modules():
        known = inner.__module__.startswith("torch.nn.") and "forward" not in inner.__dict__
        if not known or getattr(inner, "inplace", False):
            return True
    return False


def activation_of(node: Node, value: Node, called: Callable[[Node], Module]) -> Activation | None:
    """Return the activation that a node applies to a value, or None if it does something else."""
    if not node.args or node.args[0] is not value:
        return None
    if node.op == "call_module":
        return of_module(called(node)) if len(node.args) == 1 and not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in RELUS:
        return Activation("relu", 0.0)
    if node.target in LEAKY_RELUS:
        slope: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return _leaky(slope)
    return None


def of_module(module: Module | None) -> Activation | None:
    """Return the activation that a module is, or None if it is another or has hooks."""
    if type(module) is ReLU:
        return Activation("relu", 0.0)
    return _leaky(getattr(module, "negative_slope", None)) if type(module) is LeakyReLU else None


def _leaky(slope: Any) -> Activation | None:
    return (
        Activation("leaky_relu", float(slope))
        if type(slope) in (int, float) and slope >= 0
        else None
    )
