"""Batch norm in jax.numpy's operations, from which JAX derives gradients of gradients.

Like the kernels, the formula computes with float32 where x has 16 bits, and rounds y once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bncore.jax.checks import arithmetic
from bncore.jax.counting import Counting
from bncore.jax.handlers import AnySettings, GroupSettings, Settings


def train(
    settings: Settings,
    negative: jax.Array | None,
    weights: jax.Array | None,
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    """Return y of `bncore.jax.batch_norm_train`; `negative` is true where the activation acts."""
    wide = x.astype(arithmetic(x.dtype))
    counting = Counting.of(settings, wide, weights)
    centered = wide - counting.average(wide)
    centered = centered - counting.average(centered)  # what rounding left of a large mean
    var = counting.average(centered * centered)
    y = _finished(settings, negative, centered, var, weight, bias, residual)
    return counting.filled(y).astype(x.dtype)


def infer(
    settings: Settings,
    negative: jax.Array | None,
    weights: jax.Array | None,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    """Return y of `bncore.jax.batch_norm_infer`; `negative` is true where the activation acts."""
    wide = x.astype(arithmetic(x.dtype))
    centered = wide - along(settings, mean.astype(wide.dtype))
    var = along(settings, var.astype(wide.dtype))
    y = _finished(settings, negative, centered, var, weight, bias, residual)
    return Counting.of(settings, wide, weights).filled(y).astype(x.dtype)


def group_norm(
    settings: GroupSettings, x: jax.Array, weight: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Return y of `bncore.jax.group_norm`."""
    wide = x.astype(arithmetic(x.dtype))
    sizes = list(x.shape)
    sizes[settings.axis : settings.axis + 1] = (
        settings.groups,
        x.shape[settings.axis] // settings.groups,
    )
    parts = wide.reshape(sizes)
    axes = tuple(i for i in range(1, parts.ndim) if i != settings.axis)
    centered = parts - jnp.mean(parts, axes, keepdims=True)
    centered = centered - jnp.mean(centered, axes, keepdims=True)
    var = jnp.mean(centered * centered, axes, keepdims=True)
    z = (centered * jax.lax.rsqrt(var + settings.eps)).reshape(x.shape)
    return _affine(settings, z, weight, bias).astype(x.dtype)


def along(settings: AnySettings, values: jax.Array) -> jax.Array:
    """Return (C,) values in a shape that broadcasts against x."""
    return values.reshape([-1 if i == settings.axis else 1 for i in range(settings.ndim)])


def _affine(
    settings: AnySettings,
    z: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    if weight is not None:
        z = z * along(settings, weight.astype(z.dtype))
    return z if bias is None else z + along(settings, bias.astype(z.dtype))


def _finished(
    settings: Settings,
    negative: jax.Array | None,
    centered: jax.Array,
    var: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    z = _affine(settings, centered * jax.lax.rsqrt(var + settings.eps), weight, bias)
    if residual is not None:
        z = z + residual.astype(z.dtype)
    if negative is None:
        return z
    return jnp.where(negative, settings.slope * z if settings.activation != "relu" else 0.0, z)
