"""Batch norm in jax.numpy's operations, from which JAX derives gradients of gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bncore.jax.handlers import Settings


def train(
    settings: Settings,
    negative: jax.Array | None,
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    """Return y of `bncore.jax.batch_norm_train`; `negative` is true where the activation acts."""
    axes = tuple(i for i in range(settings.ndim) if i != settings.axis)
    centered = x - jnp.mean(x, axes, keepdims=True)
    var = jnp.mean(centered * centered, axes, keepdims=True)
    return _finished(settings, negative, centered, var, weight, bias, residual)


def infer(
    settings: Settings,
    negative: jax.Array | None,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    """Return y of `bncore.jax.batch_norm_infer`; `negative` is true where the activation acts."""
    centered = x - along(settings, mean)
    return _finished(settings, negative, centered, along(settings, var), weight, bias, residual)


def along(settings: Settings, values: jax.Array) -> jax.Array:
    """Return (C,) values in a shape that broadcasts against x."""
    return values.reshape([-1 if i == settings.axis else 1 for i in range(settings.ndim)])


def _finished(
    settings: Settings,
    negative: jax.Array | None,
    centered: jax.Array,
    var: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    z = centered * jax.lax.rsqrt(var + settings.eps)
    if weight is not None:
        z = z * along(settings, weight)
    if bias is not None:
        z = z + along(settings, bias)
    if residual is not None:
        z = z + residual
    if negative is None:
        return z
    return jnp.where(negative, settings.slope * z if settings.activation != "relu" else 0.0, z)
