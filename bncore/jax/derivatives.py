"""What the rules of differentiation in `ops.py` and `inference.py` share."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from bncore.jax.handlers import Settings, Shape

Array: TypeAlias = jax.Array
Optional: TypeAlias = jax.Array | None


def like(array: Optional) -> Shape | None:
    """Return the shape and dtype of an array; None for None."""
    return None if array is None else Shape(array.shape, array.dtype)


def there(tangents: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return tangents with None in the place of zeros."""
    return tuple(None if isinstance(one, SymbolicZero) else one for one in tangents)


def pushed(function: Any, primals: Any, tangents: tuple[Any, ...]) -> Any:
    """Return the tangent of a function's result; a tangent that is None is 0."""
    moved = [i for i, one in enumerate(tangents) if one is not None]

    def by_some(*some: Any) -> Any:
        full = list(primals)
        for i, one in zip(moved, some, strict=True):
            full[i] = one
        return function(*full)

    some = [primals[i] for i in moved]
    return jax.jvp(by_some, some, [tangents[i] for i in moved])[1]


def kept(settings: Settings, residual: Optional) -> Optional:
    """Return the residual if a derivative depends on it."""
    return residual if settings.changes_residual else None


def negative(
    backward: Any, settings: Settings, x: Array, statistics: tuple[Array, ...], *rest: Optional
) -> Optional:
    """Return where the activation acted, by the kernel's own arithmetic.

    y does not tell: a small positive z becomes 0 where y is rounded to 16 bits.  But relu gives a
    gradient of 1 the value 0 where z <= 0, and the kernel returns that as the residual's gradient.
    """
    if settings.activation is None:
        return None
    operands = jax.lax.stop_gradient((jnp.ones_like(x), x, *statistics, *rest))
    relu = settings._replace(activation="relu", fill=None)
    passed: Array = backward(relu, True, *operands)[-1]
    return passed == 0


def gradients_moved(forward: Any, given: list[Optional], moved: Any, results: Any) -> Any:
    """Return the tangents of the gradients of `forward`; `given` are dy and its arguments."""

    def gradients(dy: Array, *arguments: Optional) -> Any:
        found = jax.vjp(forward, *arguments)[1](dy)
        return [a for a, b in zip(found, results, strict=True) if b is not None]

    if all(one is None for one in moved):
        return jax.tree.map(jnp.zeros_like, results)
    found = iter(pushed(gradients, given, moved))
    return tuple(None if one is None else next(found) for one in results)
