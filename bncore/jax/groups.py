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
from bncore.jax.handlers import GroupSettings, Shape, call
from bncore.jax.linear import Rule, linear

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
    of_groups = Shape((x.shape[0], settings.groups, 2), np.uint32)
    results = (like(x), of_groups, of_groups)
    y, mean, var = call("group_norm", settings, results, (x, weight, bias))
    return y, mean, var


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
    results = [*map(like, (x, weight, bias))]
    dx, dweight, dbias = call("group_norm_backward", settings, results, (dy, x, mean, var, weight))
    return dx, dweight, dbias


@partial(group_norm_backward.defjvp, symbolic_zeros=True)
def _backward_derivative(settings: GroupSettings, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = group_norm_backward(settings, *primals)
    dy, x, _, _, weight, bias = primals
    moved = there((*tangents[:2], *tangents[4:]))
    forward = partial(formula.group_norm, settings)
    return results, gradients_moved(forward, [dy, x, weight, bias], moved, results)
