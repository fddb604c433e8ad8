"""The operation of group norm and its derivatives, of the kind of those in `ops.py`.

Instance norm is group norm with as many groups as channels, and layer norm is group norm of one
group of rows.  Mean and variance of the groups are float64, passed on as uint32 of shape
(samples, groups, 2).  An example of `jax.vmap` is more samples, unless it has parameters of its
own.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bncore.jax import formula
from bncore.jax.derivatives import gradients_moved, like, pushed, there
from bncore.jax.devices import summed, wider
from bncore.jax.handlers import Devices, GroupSettings, Shape, call
from bncore.jax.linear import Rule, linear
from bncore.jax.sharding import Division, Results, divided

Array: TypeAlias = jax.Array
Optional: TypeAlias = jax.Array | None


class SavedGroups(NamedTuple):
    """What the derivatives of `group_norm` need."""

    x: Array
    mean: Array
    var: Array
    weight: Optional
    bias: Optional


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def group_norm(
    settings: GroupSettings, x: Array, weight: Optional, bias: Optional
) -> tuple[Array, Array, Array]:
    """Return y, and mean and var of every group."""
    y, mean, var = divided(_FORWARD, settings, x, weight, bias)
    return y, mean, var


def _forward(settings: GroupSettings, x: Array, *rest: Optional) -> Results:
    of_groups = Shape((x.shape[0], settings.groups, 2), np.uint32)
    return tuple(call("group_norm", settings, (like(x), of_groups, of_groups), (x, *rest)))


def _forward_part(settings: GroupSettings, _: Devices, *operands: Any) -> Results:
    return _forward(settings, *operands)


_FORWARD = Division("xcc", "xgg", True, _forward, _forward_part)


@partial(group_norm.defjvp, symbolic_zeros=True)
def _derivative(settings: GroupSettings, primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, weight, bias = primals
    y, mean, var = group_norm(settings, *primals)
    saved = SavedGroups(x, mean, var, weight, bias)
    (moved,) = linear(GROUPS, settings, saved, there(tangents))
    nothing = SymbolicZero(jax.typeof(mean).to_tangent_aval())
    return (y, mean, var), (moved, nothing, nothing)


def _tangent(settings: GroupSettings, saved: SavedGroups, tangents: Any) -> tuple[Array]:
    given = saved.x, saved.weight, saved.bias
    return (pushed(partial(formula.group_norm, settings), given, tangents),)


def _transposed(
    settings: GroupSettings, saved: SavedGroups, tangents: Any, given: Any
) -> tuple[Any, ...]:
    (dy,) = given
    if dy is None:
        return tuple(
            None if one is None else jnp.zeros_like(one)
            for one in (saved.x, saved.weight, saved.bias)
        )
    dx, dweight, dbias = group_norm_backward(settings, dy, *saved)
    return dx, dweight, dbias


# The bias is the same for all examples where the weight is, or there is none.
GROUPS = Rule(
    _tangent,
    _transposed,
    lambda saved: (saved.x,),
    ((True, True, True, False, False), (True, False, False)),
)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def group_norm_backward(
    settings: GroupSettings,
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Optional,
    bias: Optional,
) -> tuple[Array, Optional, Optional]:
    """Return the gradients of x, and of weight and bias if given."""
    operands = (dy, x, mean, var, weight, bias)
    dx, dweight, dbias = divided(_BACKWARD, settings, *operands)
    return dx, dweight, dbias


def _backward(settings: GroupSettings, *operands: Any) -> Results:
    *given, bias = operands
    results = [*map(like, (given[1], given[4], bias))]
    return tuple(call("group_norm_backward", settings, results, given))


def _backward_parts(settings: GroupSettings, parts: Devices, *operands: Any) -> Results:
    *given, bias = operands
    results = [like(given[1]), *map(wider, (given[4], bias))]
    dx, *sums = call("group_norm_backward", settings, results, given)
    return dx, *summed(parts, sums, [given[4], bias])


_BACKWARD = Division("xxggcc", "xcc", True, _backward, _backward_parts)


@partial(group_norm_backward.defjvp, symbolic_zeros=True)
def _backward_derivative(settings: GroupSettings, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = group_norm_backward(settings, *primals)
    dy, x, _, _, weight, bias = primals
    moved = there((*tangents[:2], *tangents[4:]))
    forward = partial(formula.group_norm, settings)
    return results, gradients_moved(forward, [dy, x, weight, bias], moved, results)
