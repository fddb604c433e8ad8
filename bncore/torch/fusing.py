"""Find the blocks of a model that can be fused, and try each of them on an example.

All of this happens on a copy of the model.  A block whose fused forward gives other results or
gradients than its own, by more than rounding, is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn import Module
from torch.utils._pytree import tree_leaves, tree_map

from bncore.torch import blocks, tracing
from bncore.torch.classes import NotConvertible
from bncore.torch.modules import Computed, Fused
from bncore.torch.reads import NotFusable

SEED = 0
# How far results may be apart, in the rounding errors of the largest value: what follows a batch
# norm is rounded once less often in 16 bits, and sums may have another order.
ROUNDINGS = 64

refused: WeakKeyDictionary[Module, str] = WeakKeyDictionary()  # why a block was not fused


def duplicate(model: Module) -> Module:
    """Copy a model.

    Raises
    ------
    TypeError
        If it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of somebody's class
        raise TypeError(
            "model: expected a module that copy.deepcopy can copy, because fuse=True tries it on "
            f"a copy, got {type(error).__name__}: {error}"
        ) from error


class Found(NamedTuple):
    """What can be fused in a model: the plans of blocks, and why others have none, by name."""

    plans: dict[str, blocks.Plan]
    refused: dict[str, str]


def find(trial: Module, example: Any) -> Found:
    """Find the blocks of a model that can be fused.

    Parameters
    ----------
    trial : Module
        A copy of the model, after `convert`; its blocks are fused here.
    example : Any
        An argument of the model, or a tuple of its arguments; None to try nothing.
    """
    names = {module: name for name, module in trial.named_modules() if _may_have_patterns(module)}
    seen = None if example is None else _inputs(trial, example, list(names))
    found = Found({}, {})
    for block, name in reversed(names.items()):  # parts before the whole
        try:
            plan = blocks.plan_of(block, None if seen is None else _kinds(seen.get(block)))
            kind = blocks.class_of(type(block))
            if seen is not None:
                _try(block, plan, seen.get(block))
        except blocks.Nothing:
            continue
        except (NotFusable, NotConvertible) as error:
            found.refused[name] = str(error)
            continue
        assert issubclass(kind, Fused)
        blocks.fuse(block, plan)
    needed: set[Module] = set()
    for block, name in names.items():
        if isinstance(block, Fused) and _is_needed(block, needed):
            found.plans[name] = block.__dict__[blocks.PLAN]
    return found


def _is_needed(block: Module, needed: set[Module]) -> bool:
    """Tell whether a block has something to fuse, or another one that has goes on with its norm."""
    plan: blocks.Plan = block.__dict__[blocks.PLAN]
    goes_on = block in needed
    norms = [norm for norm in plan.norms if norm.does or goes_on]
    needed.update(block.get_submodule(".".join(norm.path)) for norm in norms)
    return bool(norms)


def _may_have_patterns(module: Module) -> bool:
    """Tell whether a module calls modules, and one of them may end in a batch norm."""
    if isinstance(module, (Computed, Fused)) or not isinstance(module, Module):
        return False
    return any(isinstance(inner, Computed) for inner in module.modules())


# The example


def _inputs(trial: Module, example: Any, watched: list[Module]) -> dict[Module, Any]:
    """Run an example through a model, and return the first arguments of each of these modules."""
    seen: dict[Module, Any] = {}

    def note(module: Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module not in seen:
            seen[module] = tree_map(_copied, (given, named))

    handles = [one.register_forward_pre_hook(note, with_kwargs=True) for one in watched]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _try(block: Module, plan: blocks.Plan, seen: Any) -> None:
    """Raise NotFusable if a plan gives other results than a block's own forward."""
    if seen is None:
        raise NotFusable("the example did not reach it")
    given, named = seen
    if named or len(given) != plan.arguments:
        raise NotFusable(f"the model does not call it with {plan.arguments} positional arguments")
    for training in (True, False):
        variant = plan.training if training else plan.evaluation
        with tracing.mode(block, training):
            if not (variant.takes(given) and variant.fits(block)):
                raise NotFusable("the example gives it something else than tensors")
            own = _results(block, given, type(block).forward)
            got = _results(
                block, given, lambda self, *x, run=variant.program.run: run(self, *x, None)
            )
        _compare(own, got, "training" if training else "evaluation")


def _kinds(seen: Any) -> tuple[type, ...] | None:
    """Return the types of the arguments that a block got, or None if it got none."""
    return None if seen is None else tuple(map(tracing.kind, seen[0]))


def _results(block: Module, given: Any, forward: Callable[..., Any]) -> dict[str, list[Any]]:
    """Return results, gradients and the state afterwards; the state itself is set back."""
    before = {name: value.detach().clone() for name, value in block.named_buffers()}
    leaves = [one for one in tree_leaves(given) if _has_gradients(one)]
    inputs = [one.detach().requires_grad_() for one in leaves]
    wanted = inputs + [one for one in block.parameters() if one.requires_grad]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            # A forward may write into its arguments, but not into leaves.
            new = {id(old): one * 1 for old, one in zip(leaves, inputs, strict=True)}
            results = forward(block, *tree_map(lambda one: new.get(id(one), _copied(one)), given))
            outputs = [one for one in tree_leaves(results) if isinstance(one, torch.Tensor)]
            live = [one for one in outputs if one.requires_grad]
            directions = [torch.rand_like(one) - 0.5 for one in live]
            gradients = (
                torch.autograd.grad(live, wanted, directions, allow_unused=True) if live else ()
            )
        state = [value.detach().clone() for value in block.buffers()]
    except Exception as error:  # of somebody's forward
        raise NotFusable(f"it does not run alone: {type(error).__name__}: {error}") from error
    finally:
        with torch.no_grad():
            for name, value in block.named_buffers():
                value.copy_(before[name])
    return {"results": outputs, "gradients": list(gradients), "statistics": state}


def _has_gradients(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and bool(value.is_floating_point())


def _compare(own: dict[str, list[Any]], got: dict[str, list[Any]], mode: str) -> None:
    for what, expected in own.items():
        if len(expected) != len(got[what]) or not all(map(_close, expected, got[what])):
            raise NotFusable(f"its fused forward gives other {what} in {mode}")


def _close(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Tell whether two tensors differ by no more than rounding."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if torch.equal(a, b) or not a.is_floating_point():
        return bool(torch.equal(a, b))
    difference, size = (a.double() - b.double()).abs(), a.double().abs()
    allowed = ROUNDINGS * torch.finfo(a.dtype).eps * size.nan_to_num(0.0, 0.0, 0.0).max()
    same = (a == b) | (a.isnan() & b.isnan()) | (difference <= allowed)
    return bool(same.all())
