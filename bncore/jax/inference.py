"""The operation in inference and its derivatives, of the kind of those in `ops.py`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bncore.jax import formula
from bncore.jax.counting import clean
from bncore.jax.derivatives import gradients_moved, kept, like, negative, pushed, there
from bncore.jax.devices import summed, wider
from bncore.jax.handlers import Devices, Settings, call
from bncore.jax.linear import Rule, linear
from bncore.jax.sharding import Division, Results, divided

Array: TypeAlias = jax.Array
Optional: TypeAlias = jax.Array | None


class SavedInference(NamedTuple):
    """What the derivatives of `infer` need."""

    x: Array
    mean: Array
    var: Array
    weight: Optional
    bias: Optional
    residual: Optional
    weights: Optional


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def infer(
    settings: Settings,
    x: Array,
    mean: Array,
    var: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> Array:
    """Return y."""
    y: Array = divided(_INFER, settings, x, mean, var, weight, bias, residual, weights)[0]
    return y


def _infer(settings: Settings, x: Array, *rest: Optional) -> Results:
    return tuple(call("infer", settings, (like(x),), (x, *rest)))


def _infer_part(settings: Settings, _: Devices, *operands: Any) -> Results:
    return _infer(settings, *operands)


_INFER = Division("xccccxw", "x", False, _infer, _infer_part)


@partial(infer.defjvp, symbolic_zeros=True)
def _infer_derivative(settings: Settings, primals: Any, tangents: Any) -> tuple[Array, Array]:
    saved = SavedInference(*primals)
    saved = saved._replace(residual=kept(settings, saved.residual))
    (moved,) = linear(INFER, settings, saved, there(tangents[:6]))
    return infer(settings, *primals), moved


def _infer_tangent(settings: Settings, saved: SavedInference, tangents: Any) -> tuple[Array]:
    *most, residual, weights = saved
    if residual is None and tangents[5] is not None:
        residual = jnp.zeros_like(tangents[5])
    given = *most, residual
    x, mean, var, *rest = given
    acts = negative(infer_backward, settings, x, (mean, var), *rest, weights)
    return (pushed(partial(formula.infer, settings, acts, weights), given, tangents),)


def _infer_transposed(
    settings: Settings, saved: SavedInference, tangents: Any, given: Any
) -> tuple[Any, ...]:
    (dy,) = given
    if dy is None:
        return tuple(None if one is None else jnp.zeros_like(one) for one in saved[:6])
    through = tangents[5] is not None and settings.changes_residual
    *gradients, dresidual = infer_backward(settings, through, dy, *saved)
    return *gradients, dresidual if through else dy


INFER = Rule(_infer_tangent, _infer_transposed, lambda saved: (saved.x,))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def infer_backward(
    settings: Settings,
    through: bool,
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Array, Array, Optional, Optional, Optional]:
    """Return the gradients of x, the statistics and parameters, and `through` the residual."""
    operands = (dy, x, mean, var, weight, bias, residual, weights)
    dx, dmean, dvar, *rest = divided(_BACKWARD[through], settings, *operands)
    return dx, dmean, dvar, *rest


def _backward(through: bool, settings: Settings, *operands: Any) -> Results:
    results = [*map(like, operands[1:6]), like(operands[1]) if through else None]
    return tuple(call("infer_backward", settings, results, operands))


def _backward_parts(through: bool, settings: Settings, parts: Devices, *operands: Any) -> Results:
    x, *given = operands[1:6]
    results = [like(x), *map(wider, given), like(x) if through else None]
    dx, *sums, dresidual = call("infer_backward", settings, results, operands)
    return dx, *summed(parts, sums, given), dresidual


_BACKWARD = {
    through: Division(
        "xxccccxw", "xccccx", False, partial(_backward, through), partial(_backward_parts, through)
    )
    for through in (False, True)
}


@partial(infer_backward.defjvp, symbolic_zeros=True)
def _infer_backward_derivative(
    settings: Settings, through: bool, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    results = infer_backward(settings, through, *primals)
    dy, x, mean, var, *rest, weights = primals
    acts = negative(infer_backward, settings, x, (mean, var), *rest, weights)
    forward = partial(formula.infer, settings, acts, weights)
    given = [dy, clean(settings, x, weights, dy), mean, var, *rest]
    return results, gradients_moved(forward, given, there(tangents[:7]), results)
