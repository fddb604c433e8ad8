"""What the layers for Flax and Equinox share: dtypes, statistics, and batches of one value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bncore.arguments import scalars
from bncore.jax import devices
from bncore.jax.functional import batch_norm_infer, batch_norm_train
from bncore.jax.sample_norms import group_norm, layer_norm
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


# Group, instance and layer norm: a framework's layer computes what bncore has no call for.

Norm: TypeAlias = Callable[..., Array]  # of x, weight and bias, with eps


def by_groups(x: Array, groups: Any, axis: int = -1) -> Norm | None:
    """Return the call for group norm of channels along an axis, or None if there is none."""
    if not isinstance(groups, int) or x.ndim < 2 or not _is_real(x) or 0 in x.shape:
        return None
    if groups < 1 or x.shape[axis] % groups or x.size // x.shape[0] == groups:
        return None
    return partial(group_norm, groups=groups, axis=axis)


def by_rows(x: Array, reduced: Any, features: Any) -> Norm | None:
    """Return the call for layer norm over axes with a weight for each feature, or None."""
    reduced, features = _axes(reduced, x.ndim), _axes(features, x.ndim)
    if reduced == tuple(range(1, x.ndim)) and _is_one(features, x.ndim):
        return by_groups(x, 1, *features)
    first = min(reduced, default=x.ndim)
    if not reduced == features == tuple(range(first, x.ndim)) or not _is_real(x):
        return None
    if 0 in x.shape or all(size == 1 for size in x.shape[first:]):
        return None
    return partial(layer_norm, axis=first)


def by_channels(x: Array, features: Any) -> Norm | None:
    """Return the call for instance norm with a weight for each feature, or None."""
    features = _axes(features, x.ndim)
    if not _is_one(features, x.ndim):
        return None
    return by_groups(x, x.shape[features[0]], *features)


def _is_one(features: tuple[int, ...], ndim: int) -> bool:
    """Tell whether the features have one axis, which is not that of the samples."""
    return len(features) == 1 and 0 < features[0] < ndim


def sizes(x: Array, features: Any) -> tuple[int, ...]:
    """Return the shape of a parameter with a value for each feature."""
    return tuple(x.shape[axis] for axis in _axes(features, x.ndim))


def _axes(given: Any, ndim: int) -> tuple[int, ...]:
    """Return axes, counted from 0 and in order."""
    axes = given if isinstance(given, (tuple, list)) else (given,)
    return tuple(sorted(axis % ndim if -ndim <= axis < ndim else axis for axis in axes))


def _is_real(x: Array) -> bool:
    return not jnp.iscomplexobj(x)


def normalized(
    norm: Norm, x: Array, weight: Array | None, bias: Array | None, dtype: Any, eps: float
) -> Array:
    """Normalize x, which is not rounded before, and return y of a dtype."""
    x = x.astype(jnp.promote_types(x.dtype, dtype))
    return norm(x, weight=weight, bias=bias, eps=eps).astype(dtype)
