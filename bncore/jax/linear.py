"""Linear maps and their transposes, as one primitive of JAX.

A rule of differentiation gives tangents as a linear map of tangents.  Forward mode runs the map
itself, which is written in jax.numpy.  Reverse mode runs its transpose, which is a fast custom
call.  `jax.custom_vjp` would refuse forward mode, and JAX would transpose operations one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from bncore.jax.handlers import AnySettings
from bncore.jax.manual_axes import abstract, alike

Arrays: TypeAlias = tuple[Any, ...]


class Rule(NamedTuple):
    """A linear map of tangents, which depends on settings and on saved arrays.

    Attributes
    ----------
    tangent : (settings, saved, tangents) -> results
        A tangent that is None is 0.
    transposed : (settings, saved, tangents, cotangents) -> cotangents of the tangents
        A cotangent that is None is 0; of the tangents matters which are None.
    like : saved -> arrays that have the shapes and dtypes of the results
    samples : (saved, tangents) of bool, optional
        Which arrays have samples along axis 0, where the results have them, too: examples of
        `jax.vmap` are more samples if the other arrays are the same for all of them.
    """

    tangent: Callable[[Any, Any, Arrays], Arrays]
    transposed: Callable[[Any, Any, Arrays, Arrays], Arrays]
    like: Callable[[Any], Arrays]
    samples: tuple[Arrays, Arrays] | None = None


class Level(NamedTuple):
    """One `jax.vmap` around a map: the axis of each argument, the name and the size of the axis."""

    axes: tuple[int | None, ...]
    name: Any
    size: Any


class _Shape(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


def linear(rule: Rule, settings: AnySettings, saved: Any, tangents: Arrays) -> Arrays:
    """Apply a map; `saved` is a tuple of arrays, and None in it is nothing."""
    flat, tree = jax.tree.flatten((saved, tangents))
    return tuple(_linear.bind(*alike(*flat), rule=rule, settings=settings, tree=tree, levels=()))


def _run(
    *flat: Any, rule: Rule, settings: AnySettings, tree: Any, levels: tuple[Level, ...]
) -> Any:
    """Apply a map of flat arguments under every `jax.vmap`."""

    def map_(*flat: Any) -> list[Any]:
        return alike(flat[0], *rule.tangent(settings, *tree.unflatten(flat)))[1:]

    for level in levels:
        map_ = _mapped(map_, level, level.axes)
    return map_(*flat)


def _mapped(function: Any, level: Level, axes: Sequence[int | None]) -> Any:
    return jax.vmap(function, tuple(axes), axis_name=level.name, axis_size=level.size)


def _shapes(
    *flat: Any, rule: Rule, settings: AnySettings, tree: Any, levels: tuple[Level, ...]
) -> list[Any]:
    depth = [sum(level.axes[i] is not None for level in levels) for i in range(len(flat))]
    own = [_Shape(one.shape[d:], one.dtype) for one, d in zip(flat, depth, strict=True)]
    sizes = tuple(level.size for level in reversed(levels))
    saved, _ = jax.tree.unflatten(tree, own)
    return [abstract(sizes + one.shape, one.dtype, flat[0]) for one in rule.like(saved)]


def _derivative(primals: Arrays, tangents: Arrays, **parameters: Any) -> tuple[Any, Any]:
    """Differentiate by tangents, in which the map is linear, and by what was saved."""
    saved = parameters["tree"].children()[0].num_leaves
    results = _linear.bind(*primals, **parameters)
    parts = []
    moved = [i for i, one in enumerate(tangents) if not _nothing(one)]
    if any(i >= saved for i in moved):
        zeros = map(ad.instantiate_zeros, tangents[saved:])
        parts.append(_linear.bind(*alike(*primals[:saved], *zeros), **parameters))
    if by := [i for i in moved if i < saved]:

        def by_saved(*some: Any) -> Any:
            flat = list(primals)
            for i, one in zip(by, some, strict=True):
                flat[i] = one
            return _run(*flat, **parameters)

        given = alike(*(primals[i] for i in by)), alike(primals[0], *(tangents[i] for i in by))[1:]
        parts.append(jax.jvp(by_saved, *given)[1])
    if not parts:
        return results, [ad.Zero.from_primal_value(one) for one in results]
    return results, [sum(each[1:], each[0]) for each in zip(*parts, strict=True)]


def _nothing(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero) or tangent.dtype == jax.dtypes.float0


def _transpose(
    given: Sequence[Any],
    *flat: Any,
    rule: Rule,
    settings: AnySettings,
    tree: Any,
    levels: tuple[Level, ...],
) -> list[Any]:
    saved = [one for one in flat if not ad.is_undefined_primal(one)]
    asked = len(flat) - len(saved)
    there = [i for i, one in enumerate(given) if not isinstance(one, ad.Zero)]
    if tree.children()[0].num_leaves != len(saved):
        raise NotImplementedError("bncore.jax: a tangent that is a constant")

    def transposed(*known: Any) -> list[Any]:
        own, tangents = tree.unflatten((*known[: len(saved)], *range(asked)))
        cotangents: list[Any] = [None] * len(given)
        for i, one in zip(there, alike(known[0], *known[len(saved) :])[1:], strict=True):
            cotangents[i] = one
        found = rule.transposed(settings, own, tangents, tuple(cotangents))
        kept = [one for one, t in zip(found, tangents, strict=True) if t is not None]
        return alike(known[0], *kept)[1:]

    for level in levels:
        axes = (*level.axes[: len(saved)], *[0] * len(there))
        transposed = _summed(_mapped(transposed, level, axes), level.axes[len(saved) :])
    known = alike(*saved, *(given[i] for i in there))
    return [None] * len(saved) + transposed(*known)


def _summed(function: Any, axes: Sequence[int | None]) -> Any:
    """Sum the cotangents of arguments that are the same for all examples."""

    def summed(*known: Any) -> list[Any]:
        found = zip(function(*known), axes, strict=True)
        return [jnp.sum(one, 0) if axis is None else one for one, axis in found]

    return summed


def _batched(axis: Any, flat: Any, dimensions: Any, **parameters: Any) -> tuple[Any, list[Any]]:
    """Add a `jax.vmap`; a dimension is None where an argument is the same for all examples."""
    pairs = [
        (one, None if at is None else int(at)) for one, at in zip(flat, dimensions, strict=True)
    ]
    if all(at is None for _, at in pairs):
        devices = parameters["settings"].devices
        if devices is None or axis.name not in devices.names:
            results = _linear.bind(*flat, **parameters)
            return results, [None] * len(results)
        first = jnp.broadcast_to(flat[0], (axis.size, *flat[0].shape))
        pairs[0] = first, 0
    moved = [one if at is None else jnp.moveaxis(one, at, 0) for one, at in pairs]
    if _are_samples(pairs, **parameters):
        more = [
            one if at is None else one.reshape(-1, *one.shape[2:])
            for one, at in zip(moved, dimensions, strict=True)
        ]
        results = _linear.bind(*more, **parameters)
        return [one.reshape(axis.size, -1, *one.shape[1:]) for one in results], [0] * len(results)
    axes = tuple(None if at is None else 0 for _, at in pairs)
    parameters["levels"] += (Level(axes, axis.name, axis.size),)
    results = _linear.bind(*moved, **parameters)
    return results, [0] * len(results)


def _are_samples(
    pairs: Sequence[tuple[Any, int | None]], rule: Rule, tree: Any, levels: Any, **_: Any
) -> bool:
    """Tell whether the examples of a `jax.vmap` may be more samples."""
    if rule.samples is None or levels:
        return False
    saved, tangents = tree.unflatten([at is not None for _, at in pairs])
    given = zip((*saved, *tangents), (*rule.samples[0], *rule.samples[1]), strict=True)
    return all(own is None or own is expected for own, expected in given)


_linear = Primitive("bncore_linear")
_linear.multiple_results = True
_linear.def_impl(jax.jit(_run, static_argnames=("rule", "settings", "tree", "levels")))
_linear.def_abstract_eval(_shapes)
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
# The site is built with stand-ins for these dictionaries.
ad.primitive_jvps.update({_linear: _derivative})
ad.primitive_transposes.update({_linear: _transpose})
batching.fancy_primitive_batchers.update({_linear: _batched})
