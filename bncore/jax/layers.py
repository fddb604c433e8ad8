"""What the layers for Flax and Equinox share: dtypes, statistics, and batches of one value."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bncore.arguments import scalars
from bncore.jax import devices
from bncore.jax.functional import batch_norm_infer, batch_norm_train
from bncore.jax.statistics import Moments, moments

Array: TypeAlias = jax.Array


def feature_axis(x: Array, axis: Any) -> int:
    """Return the one axis of the features, counted from 0."""
    if isinstance(axis, (tuple, list)):
        if len(axis) != 1:
            raise ValueError(f"axis: expected one axis, got {tuple(axis)}")
        (axis,) = axis
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {x.ndim}")
    return scalars.one_axis(axis, x.ndim)


def computed(
    x: Array,
    statistics: tuple[Array, Array] | None,
    weight: Array | None,
    bias: Array | None,
    dtype: Any,
    *,
    axis: int,
    axis_name: Any,
    axis_index_groups: Any,
    where: Any,
    residual: Any,
    **options: Any,
) -> tuple[Array, Moments | None]:
    """Normalize by running statistics, or by those of the batch and return them.

    x is not rounded before it is normalized, so statistics have the digits of x.  A batch of one
    value per channel is normalized, too, as Flax does when it initializes a model.
    """
    if jnp.iscomplexobj(x):
        raise TypeError(f"x: expected real numbers, got {x.dtype}")
    x = x.astype(jnp.promote_types(x.dtype, dtype))
    options |= {"axis": axis}
    if residual is not None:
        options["residual"] = jnp.asarray(residual, x.dtype)
    if statistics is not None:
        return batch_norm_infer(x, *statistics, weight, bias, **options).astype(dtype), None
    if where is not None:
        where = jnp.asarray(where, bool)
    spread = {"axis_name": axis_name, "axis_index_groups": axis_index_groups, "where": where}
    parts = devices.count(devices.checked(axis_name, axis_index_groups))
    if where is None and x.size // max(x.shape[axis], 1) * parts == 1:
        found = moments(x, axis=axis, **spread)
        y = batch_norm_infer(x, found.mean, found.var, weight, bias, **options)
    else:
        y, found = batch_norm_train(x, weight, bias, **options, **spread)
    return y.astype(dtype), found


def running(mean: Any, var: Any, batch: Moments, momentum: Any, dtype: Any) -> tuple[Array, Array]:
    """Return new running statistics; `momentum` is the weight of the old ones.

    A channel without a value keeps its own.  `dtype` is that in which the framework has the
    statistics of a batch.
    """
    new = []
    for old, one in ((mean, batch.mean), (var, batch.var)):
        moved = momentum * old + (1 - momentum) * one
        kept = jnp.where(batch.count == 0.0, old, moved)
        new.append(kept.astype(jnp.promote_types(old.dtype, dtype)))
    return new[0], new[1]
