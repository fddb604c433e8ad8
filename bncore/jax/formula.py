"""Batch norm in jax.numpy's operations, from which JAX derives gradients of gradients.

Like the kernels, the formula computes with float32 where x has 16 bits, and rounds y once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bncore.jax.handlers import Settings


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which x of this dtype is computed."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


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
    wide = x.astype(arithmetic(x.dtype))
    centered = wide - jnp.mean(wide, axes, keepdims=True)
    var = jnp.mean(centered * centered, axes, keepdims=True)
    return _finished(settings, negative, centered, var, weight, bias, residual).astype(x.dtype)


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
    dtype = arithmetic(x.dtype)
    centered = x.astype(dtype) - along(settings, mean.astype(dtype))
    var = along(settings, var.astype(dtype))
    return _finished(settings, negative, centered, var, weight, bias, residual).astype(x.dtype)


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
    dtype = centered.dtype
    z = centered * jax.lax.rsqrt(var + settings.eps)
    if weight is not None:
        z = z * along(settings, weight.astype(dtype))
    if bias is not None:
        z = z + along(settings, bias.astype(dtype))
    if residual is not None:
        z = z + residual.astype(dtype)
    if negative is None:
        return z
    return jnp.where(negative, settings.slope * z if settings.activation != "relu" else 0.0, z)
