"""Checks of the arguments of the public functions."""

from __future__ import annotations

from typing import Any, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bncore.arguments import scalars
from bncore.arguments.arrays import MASK_HINT
from bncore.arguments.problem import ACTIVATIONS
from bncore.jax.handlers import Settings

Array: TypeAlias = jax.Array

# What bncore computes with: x, and also parameters and statistics without a conversion.
DTYPES = (jnp.float16, jnp.bfloat16, np.float32, np.float64)


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which x of this dtype is computed."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def array(name: str, value: object) -> Array:
    """Return `value` as a JAX array; refuse sequences, as JAX's own functions do."""
    if not isinstance(value, (jax.Array, np.ndarray)) and not hasattr(value, "__jax_array__"):
        raise TypeError(f"{name}: expected an array, got {scalars.shown(value)}")
    return jnp.asarray(value)


def data(name: str, value: object) -> Array:
    """Return an array with one of the dtypes that x may have."""
    given = array(name, value)
    if given.dtype not in DTYPES:
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected {expected}, got {given.dtype}")
    return given


def settings(
    x: Array, axis: object, eps: object, activation: object, negative_slope: object
) -> Settings:
    """Check the arguments that are not arrays, and return them."""
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {x.ndim}")
    largest = float(jnp.finfo(arithmetic(x.dtype)).max)
    return Settings(
        x.ndim,
        scalars.one_axis(axis, x.ndim),
        scalars.real("eps", eps, 0.0),
        scalars.option("activation", activation, ACTIVATIONS),
        scalars.real("negative_slope", negative_slope, 0.0, largest),
    )


def shaped(name: str, value: object, shape: tuple[int, ...], source: str = "") -> Array:
    """Return an array of a shape; in a message `source` says where the shape comes from."""
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a real floating dtype, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}{source}, got {given.shape}")
    return given


def computable(given: Array) -> Array:
    """Return a parameter with one of `DTYPES`.

    Shorter dtypes, such as those of 8 bits, become float32, which represents them exactly.
    """
    return given if given.dtype in DTYPES else given.astype(np.float32)


def parameters(x: Array, axis: SupportsIndex, **given: object) -> list[Array | None]:
    """Return per-channel arguments with one of `DTYPES`; each may be None."""
    size = x.shape[axis]
    source = f" ({size} channels along axis {axis})"
    return [
        None if value is None else computable(shaped(name, value, (size,), source))
        for name, value in given.items()
    ]


def residual(x: Array, value: object) -> Array | None:
    """Return the residual, which must have x's shape and dtype."""
    if value is None:
        return None
    given = array("residual", value)
    if given.dtype == bool:
        raise TypeError(f"residual: expected {x.dtype}, got bool ({MASK_HINT})")
    given = data("residual", given)
    if given.shape != x.shape:
        raise ValueError(f"residual: expected shape {x.shape}, got {given.shape}")
    if given.dtype != x.dtype:
        raise TypeError(f"residual: expected {x.dtype}, got {given.dtype}")
    return given
