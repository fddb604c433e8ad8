"""Blocks of a model whose forward calls batch norm, addition and activation as one operation.

A block is fused in place, by its class and one attribute, the `Plan`.  The class is a subclass of
the block's own.  Its forward runs the program of the plan as long as everything that the program
was made for is as it was: no hooks on modules that it does not call, the same kinds of modules, the
same flags.  Otherwise it runs the block's own forward, which is always there.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.fx import Graph
from torch.nn import Identity, Module
from torch.nn.modules import module as hooks

from bncore.torch import classes, families, ops, patterns, reads, tracing
from bncore.torch.counting import ALL
from bncore.torch.inplace import InPlaceBatchNorm
from bncore.torch.modules import BatchNormAddReLU, Fused, Normalizing, compile_instead
from bncore.torch.patterns import Activation, Pattern
from bncore.torch.sync import SyncBatchNorm

PLAN = "_bncore_plan"  # the attribute of a fused block with its `Plan`
TAIL = "tail"


class Tail(NamedTuple):
    """What follows a batch norm: ``activation(y + residual)``, each of both optional.

    `in_place` says that it is ``y += residual``, which keeps the dtype of y.
    """

    residual: torch.Tensor | None
    in_place: bool
    activation: Activation | None


class Program:
    """A function made of a graph, which can be copied and pickled.

    Parameters
    ----------
    source : str
        The source of a function ``forward``.
    names : dict
        What the source refers to.
    """

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        self.source, self.names = source, names
        place = dict(names)
        exec(compile(source, "<bncore.torch.convert(fuse=True)>", "exec"), place)
        self.run: Callable[..., Any] = place["forward"]

    @classmethod
    def of(cls, graph: Graph) -> Program:
        """Make the program of a graph."""
        code = graph.python_code("self")
        return cls(code.src, code.globals)

    def __reduce__(self) -> Any:
        modules = {n: v.__name__ for n, v in self.names.items() if isinstance(v, types.ModuleType)}
        others = {name: value for name, value in self.names.items() if name not in modules}
        return _loaded, (self.source, modules, others)


def _loaded(source: str, modules: dict[str, str], others: dict[str, Any]) -> Program:
    names = {name: __import__(module, fromlist=["_"]) for name, module in modules.items()}
    return Program(source, names | others)


class Skipped(NamedTuple):
    """A module that is not called: Identity, or an activation that batch norm does."""

    path: tuple[str, ...]
    activation: Activation | None


class Norm(NamedTuple):
    """A batch norm, or a part that ends in one, and what the program has it do.

    Attributes
    ----------
    path : tuple of str
        Where it is in the block.
    does : str
        Such as "add, relu"; "" if the block returns what the batch norm gives.
    """

    path: tuple[str, ...]
    does: str


class Variant(NamedTuple):
    """The program of a block in one of its modes, and what that depends on."""

    program: Program
    norms: tuple[Norm, ...]
    skipped: tuple[Skipped, ...]
    read: tuple[reads.Read, ...]
    kinds: tuple[type, ...] | None  # of the arguments, where they matter
    is_open: bool  # whether the block returns what a batch norm gives

    def fits(self, block: Module) -> bool:
        """Tell whether the program is still that of a block."""
        return (
            all(ends_in_norm(reads.at(block, norm.path)) for norm in self.norms)
            and all(_does(reads.at(block, one.path), one.activation) for one in self.skipped)
            and reads.unchanged(block, self.read)
        )

    def takes(self, given: tuple[Any, ...]) -> bool:
        """Tell whether arguments are of the kinds for which the block was traced."""
        if self.kinds is not None and tuple(map(tracing.kind, given)) != self.kinds:
            return False
        return all(map(tracing.is_ordinary, given))


class Plan(NamedTuple):
    """How a fused block computes: in evaluation and in training, with so many arguments."""

    evaluation: Variant
    training: Variant
    arguments: int

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The batch norms of both variants."""
        return tuple(dict.fromkeys(self.evaluation.norms + self.training.norms))

    def variant(self, block: Module, given: tuple[Any, ...]) -> Variant | None:
        """Return the variant for a call, or None if the block's own forward has to run."""
        if len(given) != self.arguments or hooks._has_any_global_hook():
            return None
        found = self.training if block.training else self.evaluation
        return found if found.takes(given) and found.fits(block) else None


def plan_of(block: Module, kinds: tuple[type, ...] | None) -> Plan:
    """Return the plan of a block of which nothing has been fused yet.

    Parameters
    ----------
    block : Module
        A copy, as `tracing.trace` wants it.
    kinds : tuple of type, optional
        The types of its arguments.

    Raises
    ------
    NotFusable
        If its forward cannot be traced, or there is nothing to fuse.
    """
    if "forward" in block.__dict__:
        raise reads.NotFusable("it has a forward of its own")
    evaluation, training = (_variant(block, mode, kinds) for mode in (False, True))
    if not (evaluation.norms and training.norms):
        raise Nothing("nothing follows a batch norm that is fused with it")
    return Plan(evaluation, training, tracing.positional(block))


class Nothing(reads.NotFusable):
    """A block has nothing to fuse."""


def _variant(block: Module, training: bool, kinds: tuple[type, ...] | None) -> Variant:
    with tracing.mode(block, training):
        graph, read, kinds = tracing.trace(block, kinds)
    found = patterns.find(graph, lambda node: block.get_submodule(str(node.target)), ends_in_norm)
    norms, skipped = [], []
    tail = graph_tail(graph)
    made: dict[Any, Any] = {}
    for pattern in found:
        _replace(graph, pattern, tail, made)
        norms.append(Norm(_path(pattern.norm), _words(pattern)))
        for node in pattern.skipped:
            module = block.get_submodule(str(node.target))
            skipped.append(Skipped(_path(node), patterns.of_module(module)))
    return Variant(
        Program.of(graph),
        tuple(reversed(norms)),
        tuple(skipped),
        read,
        kinds,
        any(pattern.is_open for pattern in found),
    )


def graph_tail(graph: Graph) -> Any:
    """Give the graph of a block one more argument, what follows a batch norm that it returns."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        return graph.placeholder(TAIL)


def _replace(graph: Graph, pattern: Pattern, tail: Any, made: dict[Any, Any]) -> None:
    """Let the one call of `followed` do what the nodes of a pattern do.

    `made` has the nodes that have replaced others, which may have been residuals.
    """
    before = pattern.addition or pattern.norm
    with graph.inserting_after(before):
        module = graph.get_attr(str(pattern.norm.target))
    x = pattern.norm.args[0]
    with graph.inserting_after(module):
        if pattern.is_open:
            new = graph.call_function(followed, (module, x, tail))
            (old,) = pattern.last.all_input_nodes
        else:
            activation = tuple(pattern.activation) if pattern.activation else None
            in_place = pattern.addition is not None and pattern.addition.target in patterns.IN_PLACE
            residual = made.get(pattern.residual, pattern.residual)
            new = graph.call_function(fused, (module, x, residual, in_place, activation))
            old = pattern.last
    made[old] = new
    old.replace_all_uses_with(new)
    _erase(graph, old, new)


def _erase(graph: Graph, node: Any, new: Any) -> None:
    """Remove a node that is no longer used, and those of the pattern before it."""
    while node is not None and not node.users:
        inputs = [one for one in node.all_input_nodes if one.op.startswith("call")]
        graph.erase_node(node)
        kept = set(new.all_input_nodes)
        node = next((one for one in inputs if one not in kept and not one.users), None)


def _path(node: Any) -> tuple[str, ...]:
    return tuple(str(node.target).split("."))


def _words(pattern: Pattern) -> str:
    words = ["add"] if pattern.addition else []
    words += [pattern.activation.name] if pattern.activation else []
    return ", ".join(words)


# What a program calls


def fused(
    module: Module,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    in_place: bool,
    activation: tuple[str, float] | None,
) -> Any:
    """Call a module that ends in a batch norm, with what follows it."""
    return followed(module, x, Tail(residual, in_place, activation and Activation(*activation)))


def followed(module: Module, x: Any, tail: Tail | None) -> Any:
    """Call a module that ends in a batch norm, with what follows it, or nothing."""
    if tail is None:
        return module(x)
    if not isinstance(module, Normalizing):
        plan: Plan = module.__dict__[PLAN]
        variant = plan.training if module.training else plan.evaluation
        return variant.program.run(module, x, tail)
    residual, in_place, activation = tail
    if residual is not None and not _is_like(x, residual):  # it broadcasts, or has another dtype
        y = module(x)
        if in_place:
            y += residual
        else:
            y = y + residual
        return _activated(y, activation)
    return module._bncore_normalized(x, residual, ALL, activation)


def _is_like(x: Any, residual: Any) -> bool:
    if not (isinstance(x, torch.Tensor) and isinstance(residual, torch.Tensor)):
        return False
    if torch.compiler.is_dynamo_compiling():
        return x.shape == residual.shape and x.dtype is residual.dtype
    with ops.untraced():
        return x.shape == residual.shape and x.dtype is residual.dtype


def _activated(y: torch.Tensor, activation: Activation | None) -> torch.Tensor:
    if activation is None:
        return y
    if activation.name == "relu":
        return torch.relu(y)
    return torch.nn.functional.leaky_relu(y, activation.slope)


def fusions(block: Module, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each batch norm that a block fuses, the block's, and what follows."""
    plan: Plan | None = block.__dict__.get(PLAN)
    for norm in plan.norms if plan else ():
        if norm.does:
            yield ".".join(filter(None, (name, *norm.path, *_inside(block, norm)))), name, norm.does


def _inside(block: Module, norm: Norm) -> tuple[str, ...]:
    """Return the way from a part that ends in a batch norm to the batch norm."""
    part = reads.at(block, norm.path)
    if part is None or not isinstance(part, Fused):
        return ()
    (last,) = (one for one in part.__dict__[PLAN].norms if not one.does)
    return (*last.path, *_inside(part, last))


# What a program depends on


def ends_in_norm(module: Module | None) -> bool:
    """Tell whether what a module returns is that of a batch norm, which can do more."""
    if module is None or "forward" in module.__dict__ or families.hooked(module):
        return False
    if module.__dict__.get("_compiled_call_impl") is not None:
        return False
    if isinstance(module, Normalizing):
        if (
            isinstance(module, (SyncBatchNorm, BatchNormAddReLU, InPlaceBatchNorm))
            or module._bncore_activation
        ):
            return False
        return not isinstance(module, families.Activated) or families.alone(module)
    plan = module.__dict__.get(PLAN)
    if plan is None or plan.arguments != 1:
        return False
    variant: Variant = plan.training if module.training else plan.evaluation
    return variant.is_open and variant.fits(module)


def _does(module: Module | None, activation: Activation | None) -> bool:
    """Tell whether a module still does what it did when it was skipped, and nothing else."""
    if module is None or families.hooked(module) or "forward" in module.__dict__:
        return False
    if activation is None:
        return type(module) is Identity
    return patterns.of_module(module) == activation


# Classes

_made: weakref.WeakValueDictionary[type[Module], type[Module]] = weakref.WeakValueDictionary()


def fuse(block: Module, plan: Plan) -> None:
    """Let a block compute by a plan."""
    kind = class_of(type(block))
    block.__dict__[PLAN] = plan
    object.__setattr__(block, "__class__", kind)


def undo(block: Module) -> None:
    """Undo `fuse`."""
    if isinstance(block, Fused):
        object.__setattr__(block, "__class__", classes.original(type(block)))
        block.__dict__.pop(PLAN, None)


def class_of(kind: type[Module]) -> type[Module]:
    """Return the class of fused blocks that stands for a class.

    Raises
    ------
    NotFusable
        If the class takes no subclass.
    """
    if kind not in _made:
        made = classes.made(kind, Fused, {"forward": _forward(kind)}, (class_of, kind))
        _made[kind] = made
    return _made[kind]


def _forward(kind: type[Module]) -> Callable[..., Any]:
    def forward(self: Any, *given: Any, **named: Any) -> Any:
        plan = None if named else self.__dict__.get(PLAN)  # a slice of a Sequential has none
        variant = None if plan is None else plan.variant(self, given)
        if variant is None:
            return kind.forward(self, *given, **named)
        return variant.program.run(self, *given, None)

    compile_instead(forward, kind.forward)
    return forward
