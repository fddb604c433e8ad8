"""The operations in training, and their derivatives.

Each is a `jax.custom_jvp` around custom calls.  The tangents of `train` and `infer` are linear maps
(`linear.py`), whose transposes are the backward operations.  The tangents of those, and so all
derivatives of higher order, are JAX's own derivatives of the formula in `formula.py`.

``bits`` are the moments in float64.  JAX has no float64 unless the user enables it, so the moments
are passed on as uint32 of shape (3, C, 2).

``weights``, the last argument of each, is what counts (`counting.py`); it has no gradient.

If the settings name devices, a batch is spread over them.  Then the operations are made of steps,
between which the devices exchange moments or gradient sums, and fuse nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bncore.jax import devices, formula
from bncore.jax.checks import arithmetic
from bncore.jax.counting import Counting, clean
from bncore.jax.derivatives import gradients_moved, kept, like, negative, pushed, there
from bncore.jax.handlers import Devices, Settings, Shape, call
from bncore.jax.linear import Rule, linear
from bncore.jax.sharding import Division, Results, divided

Array: TypeAlias = jax.Array
Optional: TypeAlias = jax.Array | None


def statistics_dtype() -> np.dtype[Any]:
    """Return the dtype of returned statistics: float64 if JAX allows it."""
    dtype: np.dtype[Any] = jax.dtypes.canonicalize_dtype(np.float64)
    return dtype


# Training


class Saved(NamedTuple):
    """What the derivatives of `train` need."""

    x: Array
    mean: Array
    bits: Array
    weight: Optional
    bias: Optional
    residual: Optional
    weights: Optional


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def train(
    settings: Settings,
    x: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Array, Array, Array, Optional]:
    """Return y, mean, var, bits, and the counts if values have weights."""
    if settings.devices is None:
        operands = (x, weight, bias, residual, weights)
        y, mean, var, bits, count = divided(_TRAIN, settings, *operands)
        return y, mean, var, bits, count
    mean, var, bits, count = moments_of_all(settings, x, weights)
    z: Array = call("normalize", settings, (like(x),), (x, bits, weight, bias, weights))[0]
    return z, mean, var, bits, count


def _train(settings: Settings, x: Array, *rest: Optional) -> Results:
    results = (like(x), *_statistics(settings, x, rest[-1]))
    return tuple(call("train", settings, results, (x, *rest)))


def _train_parts(
    settings: Settings,
    parts: Devices,
    x: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> Results:
    bare = settings._replace(activation=None, fill=None, devices=parts)
    z, *statistics = train(bare, x, weight, bias, None, weights)
    return finished(settings, z, x, residual, weights), *statistics


_TRAIN = Division("xccxw", "xccbc", False, _train, _train_parts)


def finished(
    settings: Settings, z: Array, x: Array, residual: Optional, weights: Optional
) -> Array:
    """Return y from the normalized x, in operations that XLA may fuse."""
    if residual is not None:
        z = z + residual
    if settings.activation is not None:
        slope = 0.0 if settings.activation == "relu" else settings.slope
        z = jnp.where(z <= 0, jnp.asarray(slope, z.dtype) * jnp.where(z <= 0, z, 0), z)
    wide = x.astype(arithmetic(x.dtype))
    return Counting.of(settings, wide, weights).filled(z)


def _statistics(settings: Settings, x: Array, weights: Optional) -> tuple[Shape | None, ...]:
    """Return the shapes of mean, var, bits, and of the counts if values have weights."""
    channels = x.shape[settings.axis]
    one = Shape((channels,), statistics_dtype())
    counted = weights is not None or settings.omit_nan
    return one, one, Shape((3, channels, 2), np.uint32), one if counted else None


def moments_of_all(
    settings: Settings, x: Array, weights: Optional
) -> tuple[Array, Array, Array, Optional]:
    """Return mean, var, bits and counts as `train`, merged in the order of the devices."""
    if settings.devices is None:
        mean, var, bits, count = divided(_MOMENTS, settings, x, weights)
        return mean, var, bits, count
    mean, var, bits, count = _statistics(settings, x, weights)
    local = call("moments", settings, (bits, None, None, None), (x, weights))[0]
    parts = devices.gathered(settings.devices, local)
    found = call("merge", settings, (bits, mean, var, count), (parts,))
    return found[1], found[2], found[0], found[3]


def _moments(settings: Settings, x: Array, weights: Optional) -> Results:
    mean, var, bits, count = _statistics(settings, x, weights)
    found = call("moments", settings, (bits, mean, var, count), (x, weights))
    return found[1], found[2], found[0], found[3]


def _moments_parts(settings: Settings, parts: Devices, x: Array, weights: Optional) -> Results:
    return moments_of_all(settings._replace(devices=parts), x, weights)


_MOMENTS = Division("xw", "ccbc", False, _moments, _moments_parts)


@partial(train.defjvp, symbolic_zeros=True)
def _train_derivative(settings: Settings, primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, weight, bias, residual, weights = primals
    y, mean, var, bits, count = train(settings, *primals)
    saved = Saved(x, mean, bits, weight, bias, kept(settings, residual), weights)
    moved, *statistics = linear(TRAIN, settings, saved, there(tangents[:4]))
    results = y, mean, var, bits, count
    return results, (moved, *_moved_statistics(settings, statistics, bits, count))


def _moved_statistics(
    settings: Settings, parts: list[Array], bits: Array, count: Optional
) -> tuple[Any, ...]:
    """Return the tangents of mean, var, bits and counts from what each device adds to them."""
    mean, var = (devices.total(settings.devices, part) for part in parts)
    return mean, var, _zero(bits), None if count is None else _zero(count)


def _zero(array: Array) -> SymbolicZero:
    """Return the tangent of an array that depends on nothing."""
    return SymbolicZero(jax.typeof(array).to_tangent_aval())


def _train_tangent(settings: Settings, saved: Saved, tangents: Any) -> tuple[Array, Array, Array]:
    """Return the tangent of y, and what this device adds to those of mean and var."""
    x, mean, bits, weight, bias, residual, weights = saved
    if residual is None and tangents[3] is not None:
        residual = jnp.zeros_like(tangents[3])  # y does not matter
    given = x, weight, bias, residual
    acts = negative(train_backward, settings, x, (bits,), *given[1:], weights)
    moved = pushed(partial(formula.train, settings, acts, weights), given, tangents)
    return moved, *_parts(settings, x, mean, weights, tangents[0])


def _parts(
    settings: Settings, x: Array, mean: Array, weights: Optional, moved: Optional
) -> tuple[Array, Array]:
    """Return what this device adds to the tangents of mean and var."""
    if moved is None:
        return jnp.zeros_like(mean), jnp.zeros_like(mean)
    wide, moved = (one.astype(arithmetic(x.dtype)) for one in (x, moved))
    counting = Counting.of(settings, wide, weights)
    centered = wide - formula.along(settings, mean.astype(wide.dtype))
    parts = counting.part(moved), counting.part(2.0 * centered * moved)
    return parts[0].astype(mean.dtype), parts[1].astype(mean.dtype)


def _train_transposed(
    settings: Settings, saved: Saved, tangents: Any, given: Any
) -> tuple[Any, ...]:
    x, mean, bits, weight, bias, residual, weights = saved
    dy, dmean, dvar = given
    gradients: tuple[Any, ...]
    if dy is None:
        gradients = (None, *(None if one is None else jnp.zeros_like(one) for one in saved[3:6]))
        dresidual = gradients[3]
    else:
        through = tangents[3] is not None and settings.changes_residual
        rest = x, bits, weight, bias, residual, weights
        gradients = train_backward(settings, through, dy, *rest)
        dresidual = gradients[3] if through else dy
    dx = _to_x(settings, saved.x, mean, weights, gradients[0], dmean, dvar)
    if dresidual is None and tangents[3] is not None:
        dresidual = jnp.zeros_like(x)
    return dx, *gradients[1:3], dresidual


def _to_x(
    settings: Settings,
    x: Array,
    mean: Array,
    weights: Optional,
    dx: Optional,
    dmean: Optional,
    dvar: Optional,
) -> Array:
    """Add to dx what comes from the statistics, or return that alone."""
    if dmean is None and dvar is None:
        return jnp.zeros_like(x) if dx is None else dx
    wide = x.astype(arithmetic(x.dtype))
    counting = Counting.of(settings, wide, weights)
    extra = [] if dx is None else [dx.astype(wide.dtype)]
    if dvar is not None:
        centered = counting.counted(wide - formula.along(settings, mean.astype(wide.dtype)))
        slope = formula.along(settings, (2.0 * dvar).astype(wide.dtype))
        extra.append(counting.spread(centered * slope))
    if dmean is not None:
        extra.append(counting.spread(formula.along(settings, dmean.astype(wide.dtype))))
    return jnp.broadcast_to(sum(extra[1:], extra[0]), x.shape).astype(x.dtype)


TRAIN = Rule(_train_tangent, _train_transposed, lambda saved: (saved.x, saved.mean, saved.mean))


# Moments alone


class SavedMoments(NamedTuple):
    """What the derivatives of `moments` need."""

    x: Array
    mean: Array
    weights: Optional


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def moments(
    settings: Settings, x: Array, weights: Optional
) -> tuple[Array, Array, Array, Optional]:
    """Return mean, var, bits and counts as `train`, merged in the order of the devices."""
    return moments_of_all(settings, x, weights)


@partial(moments.defjvp, symbolic_zeros=True)
def _moments_derivative(settings: Settings, primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, weights = primals
    mean, var, bits, count = moments(settings, x, weights)
    saved = SavedMoments(x, mean, weights)
    parts = list(linear(MOMENTS, settings, saved, there(tangents[:1])))
    return (mean, var, bits, count), _moved_statistics(settings, parts, bits, count)


def _moments_tangent(settings: Settings, saved: SavedMoments, tangents: Any) -> tuple[Array, Array]:
    return _parts(settings, *saved, tangents[0])


def _moments_transposed(
    settings: Settings, saved: SavedMoments, _: Any, given: Any
) -> tuple[Array]:
    return (_to_x(settings, *saved, None, *given),)


MOMENTS = Rule(_moments_tangent, _moments_transposed, lambda saved: (saved.mean, saved.mean))


# Gradients of training


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def train_backward(
    settings: Settings,
    through: bool,
    dy: Array,
    x: Array,
    bits: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> tuple[Array, Optional, Optional, Optional]:
    """Return the gradients of x, of weight and bias if given, and `through` the residual."""
    if settings.devices is None:
        operands = (dy, x, bits, weight, bias, residual, weights)
        dx, dweight, dbias, dresidual = divided(_BACKWARD[through], settings, *operands)
        return dx, dweight, dbias, dresidual
    sums, dweight, dbias = _sums(settings, dy, x, bits, weights, like(weight), like(bias))
    given = (dy, x, bits, sums, weight, weights)
    return call("grad_input", settings, (like(x), None, None), given)[0], dweight, dbias, None


def _sums(
    settings: Settings, dy: Array, x: Array, bits: Array, weights: Optional, *asked: Shape | None
) -> list[Any]:
    """Return the gradient sums of all devices, and this device's gradients of parameters."""
    assert settings.devices is not None
    results = [Shape((2, *bits.shape[1:]), np.uint32), *asked]
    local, *gradients = call("grad_sums", settings, results, (dy, x, bits, weights))
    return [devices.gathered(settings.devices, local), *gradients]


def _backward(through: bool, settings: Settings, *operands: Any) -> Results:
    _, x, _, weight, bias, *_ = operands
    results = [*map(like, (x, weight, bias)), like(x) if through else None]
    return tuple(call("train_backward", settings, results, operands))


def _backward_parts(
    through: bool,
    settings: Settings,
    parts: Devices,
    dy: Array,
    x: Array,
    bits: Array,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    weights: Optional,
) -> Results:
    bare = settings._replace(activation=None, fill=None, devices=parts)
    if settings.activation is not None:
        wide = x.astype(arithmetic(x.dtype))
        z = call("normalize", bare, (like(wide),), (wide, bits, weight, bias, weights))[0]
        z = z if residual is None else z + residual.astype(wide.dtype)
        slope = 0.0 if settings.activation == "relu" else settings.slope
        dy = jnp.where(z <= 0, jnp.asarray(slope, dy.dtype) * dy, dy)
    dy = Counting.of(settings, x.astype(arithmetic(x.dtype)), weights).filled(dy, 0.0)
    (sums,) = _sums(bare, dy, x, bits, weights, None, None)[:1]
    results = [like(x), like(weight), like(bias)]
    found = call("grad_input", bare, results, (dy, x, bits, sums, weight, weights))
    return *found, dy if through else None


_BACKWARD = {
    through: Division(
        "xxbccxw", "xccx", False, partial(_backward, through), partial(_backward_parts, through)
    )
    for through in (False, True)
}


@partial(train_backward.defjvp, symbolic_zeros=True)
def _train_backward_derivative(
    settings: Settings, through: bool, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    results = train_backward(settings, through, *primals)
    dy, x, bits, *rest, weights = primals
    acts = negative(train_backward, settings, x, (bits,), *rest, weights)
    forward = partial(formula.train, settings, acts, weights)
    given = [dy, clean(settings, x, weights, dy), *rest]
    moved = there((*tangents[:2], *tangents[3:6]))
    return results, gradients_moved(forward, given, moved, results)
