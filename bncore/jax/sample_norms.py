"""Group, instance and layer norm of JAX arrays: the statistics are those of each sample."""

from __future__ import annotations

import math
from typing import SupportsIndex, TypeAlias

import jax

from bncore.arguments import scalars
from bncore.functions.sample_groups import divisor
from bncore.jax import checks
from bncore.jax import groups as operation
from bncore.jax.handlers import GroupSettings
from bncore.jax.manual_axes import alike
from bncore.jax.statistics import Given

# Jitted here, the functions take a fraction of the time if the caller does not jit them.
_group_norm = jax.jit(operation.group_norm, static_argnums=0, inline=True)

Array: TypeAlias = jax.Array


def group_norm(
    x: Given,
    groups: SupportsIndex,
    weight: Given | None = None,
    bias: Given | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
) -> Array:
    """Normalize every group of channels of every sample by its own mean and variance.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, of 2 or more dimensions
        Samples lie along axis 0.
    groups : int
        The number of groups, a divisor of the number of channels C.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis: 1 for NCHW, -1 for NHWC.  It must not be 0.
    eps : float, default 1e-5
        Added to the variance; >= 0, in x's unit squared.

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `bncore.group_norm`, but when the call is traced.

    Notes
    -----
    Gradients flow to x, weight and bias, in both modes and to any order.  Under `jax.vmap` the
    examples are more samples.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", ECCV 2018, equations 1, 2, 3 and 7.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> x = jnp.array([[0.0, 2.0, 5.0, 9.0]])
    >>> print(bncore.jax.group_norm(x, 2, jnp.array([1.0, 1.0, 1.0, 2.0]), eps=0.0))
    [[-1.  1. -1.  2.]]
    """
    x = checks.data("x", x)
    number = scalars.integer_at_least("groups", groups, 1)
    at = _channel_axis(x, axis)
    divisor(number, x.shape[at])
    return _by_groups(x, number, weight, bias, at, eps)


def instance_norm(
    x: Given,
    weight: Given | None = None,
    bias: Given | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
) -> Array:
    """Normalize every channel of every sample by its own mean and variance.

    `group_norm` with as many groups as channels.

    Parameters
    ----------
    x, weight, bias, axis, eps
        As in `group_norm`.

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `bncore.instance_norm`, but when the call is traced.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022 (2016), equation 6.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> print(bncore.jax.instance_norm(jnp.array([[[0.0, 2.0], [5.0, 9.0]]]), eps=0.0))
    [[[-1.  1.]
      [-1.  1.]]]
    """
    x = checks.data("x", x)
    at = _channel_axis(x, axis)
    return _by_groups(x, x.shape[at], weight, bias, at, eps)


def layer_norm(
    x: Given,
    weight: Given | None = None,
    bias: Given | None = None,
    *,
    axis: SupportsIndex = -1,
    eps: float = 1e-5,
) -> Array:
    """Normalize over the last axes, with one weight per normalized element.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, of 1 or more dimensions
    weight, bias : array of float, of shape ``x.shape[axis:]``, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default -1
        This axis and all after it are normalized together.  Unlike in `bncore.layer_norm` it may be
        0, since an example of `jax.vmap` has no batch axis.
    eps : float, default 1e-5
        Added to the variance; >= 0, in x's unit squared.

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `bncore.layer_norm`, but when the call is traced.

    Notes
    -----
    As in `group_norm`.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450 (2016), equations 3
    and 4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> print(bncore.jax.layer_norm(jnp.array([[0.0, 2.0], [5.0, 9.0]]), eps=0.0))
    [[-1.  1.]
     [-1.  1.]]
    """
    x = checks.data("x", x)
    if x.ndim < 1:
        raise ValueError("x: expected at least 1 dimension, got 0")
    first = scalars.one_axis(axis, x.ndim)
    eps = scalars.real("eps", eps, 0.0)
    shape = x.shape[first:]
    flat = [
        None if value is None else checks.computable(checks.shaped(name, value, shape)).reshape(-1)
        for name, value in (("weight", weight), ("bias", bias))
    ]
    width = math.prod(shape)
    if width == 1:
        raise ValueError(f"Expected more than 1 value per row, got input size {x.shape}")
    if 0 in x.shape:
        return x
    rows = x.reshape(-1, width)
    y = _group_norm(GroupSettings(2, 1, 1, eps), *alike(rows, *flat))[0]
    return y.reshape(x.shape)


def _channel_axis(x: Array, axis: SupportsIndex) -> int:
    """Return the channel axis, counted from 0."""
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {x.ndim}")
    at = scalars.one_axis(axis, x.ndim)
    if at == 0:
        raise ValueError("axis: expected an axis other than 0, the batch axis, got 0")
    return at


def _by_groups(
    x: Array, groups: int, weight: Given | None, bias: Given | None, axis: int, eps: float
) -> Array:
    eps = scalars.real("eps", eps, 0.0)
    given = checks.parameters(x, axis, weight=weight, bias=bias)
    if 0 in x.shape:
        return x
    if x.size // x.shape[0] == groups:
        raise ValueError(f"Expected more than 1 value per group, got input size {x.shape}")
    return _group_norm(GroupSettings(x.ndim, axis, groups, eps), *alike(x, *given))[0]
