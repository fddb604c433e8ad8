"""The operations and their gradients.

Each is a `jax.custom_vjp` around one custom call.  Their gradients are fast operations of the same
kind.  Gradients of gradients, to any order, are JAX's own gradients of the formula in `formula.py`.
A forward rule calls the operation itself and not the handler, so that it can be differentiated too.

``bits`` are the moments in float64.  JAX has no float64 unless the user enables it, so the moments
are passed from forward to backward as uint32 of shape (3, C, 2).

``weights``, the last argument of each, is what counts (`counting.py`); it has no gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bncore.jax import formula
from bncore.jax.checks import arithmetic
from bncore.jax.counting import Counting, clean
from bncore.jax.handlers import Settings, Shape, call
from bncore.jax.manual_axes import alike

Array: TypeAlias = jax.Array
Optional: TypeAlias = jax.Array | None


def statistics_dtype() -> np.dtype[Any]:
    """Return the dtype of returned statistics: float64 if JAX allows it."""
    dtype: np.dtype[Any] = jax.dtypes.canonicalize_dtype(np.float64)
    return dtype


def _like(array: Array) -> Shape:
    return Shape(array.shape, array.dtype)


def _like_optional(array: Optional) -> Shape | None:
    return None if array is None else _like(array)


def _values(given: tuple[Any, ...]) -> list[Any]:
    """Return the values of the arguments of a forward rule."""
    return [None if one is None else one.value for one in given]


def _dense(gradient: Any) -> Any:
    """Return a gradient as an array; JAX may pass a symbolic zero."""
    if isinstance(gradient, SymbolicZero):
        return jnp.zeros(gradient.shape, gradient.dtype)
    return gradient


# Without activation and fill no gradient depends on the residual, and its own gradient is dy.
# The structure of the values that a forward rule keeps must not depend on which argument is
# differentiated, because JAX reuses a rule that it traced for one gradient for another one.
UNREAD = ()


def _kept(settings: Settings, residual: Any) -> Any:
    """Return what backward needs to know about the residual."""
    return UNREAD if residual is not None and not settings.changes_residual else residual


def _read(kept: Any) -> Optional:
    """Return the residual if backward reads it, otherwise None."""
    return None if isinstance(kept, tuple) else kept


# Training


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def train(
    settings: Settings,
    x: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Array, Array, Array, Optional]:
    """Return y, mean, var, bits, and the counts if values have weights."""
    channels = x.shape[settings.axis]
    statistic = Shape((channels,), statistics_dtype())
    bits = Shape((3, channels, 2), np.uint32)
    counted = weights is not None or settings.omit_nan
    results = (_like(x), statistic, statistic, bits, statistic if counted else None)
    operands = (x, weight, bias, residual, weights)
    y, mean, var, moments, count = call("train", settings, results, operands)
    return y, mean, var, moments, count


def _train_forward(settings: Settings, *given: Any) -> tuple[Any, Any]:
    x, weight, bias, residual, weights = _values(given)
    y, mean, var, bits, count = train(settings, x, weight, bias, residual, weights)
    kept = _kept(settings, residual)
    return (y, mean, var, bits, count), (x, mean, bits, weight, bias, kept, weights)


def _train_backward(settings: Settings, saved: Any, given: Any) -> tuple[Any, ...]:
    x, mean, bits, weight, bias, kept, weights = saved
    dy, dmean, dvar, *_ = given
    dy, _ = alike(_dense(dy), x)
    dx, dweight, dbias, dresidual = train_backward(
        settings, dy, x, bits, weight, bias, _read(kept), weights
    )
    dtype = arithmetic(x.dtype)
    counting = Counting.of(settings, x.astype(dtype), weights)
    extra = []
    if not isinstance(dvar, SymbolicZero):
        centered = counting.counted(x.astype(dtype) - formula.along(settings, mean.astype(dtype)))
        extra.append(
            counting.spread(centered * formula.along(settings, (2.0 * dvar).astype(dtype)))
        )
    if not isinstance(dmean, SymbolicZero):
        extra.append(counting.spread(formula.along(settings, dmean.astype(dtype))))
    if extra:
        dx = sum(extra, dx.astype(dtype)).astype(x.dtype)
    return dx, dweight, dbias, dy if isinstance(kept, tuple) else dresidual, None


train.defvjp(_train_forward, _train_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def train_backward(
    settings: Settings,
    dy: Array,
    x: Array,
    bits: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Optional, Optional, Optional]:
    """Return the gradients of x, weight, bias and residual, if they were given."""
    operands = (dy, x, bits, weight, bias, residual, weights)
    results = [_like(x), *map(_like_optional, (weight, bias, residual))]
    dx, dweight, dbias, dresidual = call("train_backward", settings, results, operands)
    return dx, dweight, dbias, dresidual


def _train_backward_forward(
    settings: Settings, dy: Array, x: Array, bits: Array, *rest: Optional
) -> tuple[Any, Any]:
    return train_backward(settings, dy, x, bits, *rest), (dy, x, bits, *rest)


def _train_backward_backward(settings: Settings, saved: Any, given: Any) -> tuple[Any, ...]:
    dy, x, bits, *rest, weights = saved
    negative = _negative(train_backward, settings, x, (bits,), *rest, weights)
    forward = partial(formula.train, settings, negative, weights)
    x = clean(settings, x, weights, dy)
    to_dy, to_x, *rest = _again(forward, dy, [x, *rest], given)
    return to_dy, to_x, None, *rest, None


train_backward.defvjp(_train_backward_forward, _train_backward_backward)


# Gradients of gradients


def _negative(
    backward: Any, settings: Settings, x: Array, statistics: tuple[Array, ...], *rest: Optional
) -> Optional:
    """Return where the activation acted, by the kernel's own arithmetic.

    y does not tell: a small positive z becomes 0 where y is rounded to 16 bits.  But relu gives a
    gradient of 1 the value 0 where z <= 0, and the kernel returns that as the residual's gradient.
    """
    if settings.activation is None:
        return None
    *parameters, residual, weights = rest
    residual = jnp.zeros_like(x) if residual is None else residual
    given = x, *statistics, *parameters, residual
    operands = jax.lax.stop_gradient((jnp.ones_like(x), *given))
    relu = settings._replace(activation="relu", fill=None)
    passed: Array = backward(relu, *operands, weights)[-1]
    return passed == 0


def _again(forward: Any, dy: Array, arguments: list[Optional], given: Any) -> tuple[Any, ...]:
    """Differentiate the gradients of `forward`; `given` are the gradients with respect to them."""

    def gradients(dy: Array, *arguments: Optional) -> Any:
        return jax.vjp(forward, *arguments)[1](dy)

    result: tuple[Any, ...] = jax.vjp(gradients, dy, *arguments)[1](tuple(given))
    return result


# Inference


@partial(jax.custom_vjp, nondiff_argnums=(0,))
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
    operands = (x, mean, var, weight, bias, residual, weights)
    y: Array = call("infer", settings, (_like(x),), operands)[0]
    return y


def _infer_forward(settings: Settings, *given: Any) -> tuple[Any, Any]:
    *most, residual, weights = _values(given)
    y = infer(settings, *most, residual, weights)
    return y, (*most, _kept(settings, residual), weights)


def _infer_backward(settings: Settings, saved: Any, dy: Any) -> tuple[Any, ...]:
    *most, kept, weights = saved
    dy, _ = alike(_dense(dy), most[0])
    *gradients, dresidual = infer_backward(settings, dy, *most, _read(kept), weights)
    return *gradients, dy if isinstance(kept, tuple) else dresidual, None


infer.defvjp(_infer_forward, _infer_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def infer_backward(
    settings: Settings,
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Array, Array, Optional, Optional, Optional]:
    """Return the gradients of all arguments of `infer` that were given."""
    arguments = (x, mean, var, weight, bias, residual)
    results = list(map(_like_optional, arguments))
    operands = (dy, *arguments, weights)
    dx, dmean, dvar, *rest = call("infer_backward", settings, results, operands)
    return dx, dmean, dvar, *rest


def _infer_backward_forward(settings: Settings, *arguments: Optional) -> tuple[Any, Any]:
    return infer_backward(settings, *arguments), arguments


def _infer_backward_backward(settings: Settings, saved: Any, given: Any) -> tuple[Any, ...]:
    dy, x, mean, var, *rest, weights = saved
    negative = _negative(infer_backward, settings, x, (mean, var), *rest, weights)
    forward = partial(formula.infer, settings, negative, weights)
    arguments = [clean(settings, x, weights, dy), mean, var, *rest]
    return *_again(forward, dy, arguments, given), None


infer_backward.defvjp(_infer_backward_forward, _infer_backward_backward)
