"""The public functions: batch norm of JAX arrays, with the checks when a call is traced."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, SupportsIndex, TypeAlias

import jax
import numpy as np

from bncore.arguments.parameters import variances
from bncore.arguments.weights import NanPolicy
from bncore.jax import checks, counting, devices, inference, ops
from bncore.jax.manual_axes import alike
from bncore.jax.statistics import Given, Moments, moments_of

# Jitted here, the functions take a fraction of the time if the caller does not jit them.
_train = jax.jit(ops.train, static_argnums=0, inline=True)
_infer = jax.jit(inference.infer, static_argnums=0, inline=True)

Array: TypeAlias = jax.Array


def batch_norm_train(
    x: Given,
    weight: Given | None = None,
    bias: Given | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: Given | None = None,
    where: Given | None = None,
    weights: Given | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
    axis_name: Hashable | Sequence[Hashable] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, Moments]:
    """Normalize every channel of a batch by the batch's own mean and variance.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the population
    variance; activation and residual are optional.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, of 2 or more dimensions
        C is its size along `axis`.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis: 1 for NCHW, -1 for NHWC.  It may be negative.
    eps : float, default 1e-5
        Added to the variance; >= 0, in x's unit squared.
    activation, negative_slope
        The fused activation, as in `bncore.batch_norm_train`.
    residual : array, optional
        An array of x's shape and dtype (it is not broadcast) that is added before the activation.
    where : array of bool, optional
        The values that count; it broadcasts against x, such as ``(N, 1, L)`` for padding.
    weights : array of real numbers, optional
        How often each value counts: finite, >= 0, and it broadcasts as `where` does.  Gradients do
        not flow to it.  Without ``jax_enable_x64`` it is float32.
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN of x does, as in `bncore.batch_norm_train`.  "raise" looks at x, so it cannot be
        traced.
    fill : float, optional
        What y is where the weight is 0; the gradient of x is 0 there.
    axis_name : hashable or sequence of them, optional
        The names of axes of `jax.shard_map`, `jax.pmap` or `jax.vmap` along which the batch is
        spread: the statistics are those of all its parts.
    axis_index_groups : sequence of groups of indices, optional
        Indices along `axis_name` that belong together; all groups have one size.

    Returns
    -------
    y : array
        An array of x's shape and dtype.
    moments : Moments
        For `update_running_stats`.

    Raises
    ------
    TypeError, ValueError
        As `bncore.batch_norm_train`, but when the call is traced.  The values of weights that are
        being traced are not known, so they are not checked.

    Notes
    -----
    The dtypes of x, weight and bias are independent of one another, and a gradient has the dtype of
    its argument.

    Gradients flow from y and from the moments to x, weight, bias and residual, in both modes and to
    any order.  Under `jax.vmap` every example is a batch of its own.

    With `axis_name` the devices gather the float64 moments of all, and merge them in one order, so
    that all have the same bits.  Masks and weights may differ.  Activation, residual and fill are
    operations of their own then.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1 and section 3.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0]])
    >>> y, moments = bncore.jax.batch_norm_train(x, eps=1e-12)
    >>> print(y)
    [[-1. -1.]
     [ 1.  1.]]
    >>> print(moments.count, moments.mean, moments.var)
    [2. 2.] [1. 3.] [1. 4.]

    A gradient, compiled:

    >>> def loss(weight):
    ...     return bncore.jax.batch_norm_train(x, weight, activation="relu")[0].sum()
    >>> print(jax.jit(jax.grad(loss))(jnp.ones(2)).round(3))
    [1. 1.]

    Two sequences of lengths 2 and 1, in one padded array:

    >>> x = jnp.array([[[1.0, 3.0]], [[5.0, jnp.nan]]])
    >>> where = jnp.array([[[True, True]], [[True, False]]])
    >>> y, moments = bncore.jax.batch_norm_train(x, where=where, fill=0.0)
    >>> print(moments.count, moments.mean, y[1])
    [3.] [3.] [[1.2247425 0.       ]]
    """
    x = checks.data("x", x)
    settings = checks.settings(x, axis, eps, activation, negative_slope)
    arguments = checks.parameters(x, axis, weight=weight, bias=bias)
    settings, counts = counting.checked(settings, x, where, weights, nan_policy, fill)
    settings = settings._replace(devices=devices.checked(axis_name, axis_index_groups))
    count = x.size // max(x.shape[settings.axis], 1) * devices.count(settings.devices)
    if count == 1 and counts is None and not settings.omit_nan:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    *given, added, counts = alike(x, *arguments, checks.residual(x, residual), counts)
    if settings.devices is None:
        y, mean, var, _, own = _train(settings, *given, added, counts)
    else:
        bare = settings._replace(activation=None, fill=None)
        z, mean, var, _, own = _train(bare, *given, None, counts)
        y = ops.finished(settings, z, given[0], added, counts)
    return y, moments_of(mean, var, count if own is None else own)


def batch_norm_infer(
    x: Given,
    mean: Given,
    var: Given,
    weight: Given | None = None,
    bias: Given | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: Given | None = None,
    where: Given | None = None,
    weights: Given | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> Array:
    """Normalize every channel by a given mean and variance, such as the running statistics.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``; activation and
    residual are optional.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, of 2 or more dimensions
        C is its size along `axis`.
    mean, var : (C,) array of float
        Statistics per channel; mean in x's unit, var in x's unit squared.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis, eps, activation, negative_slope, residual, where, weights, nan_policy, fill
        As in `batch_norm_train`; what counts matters here for `fill` alone.

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`, but one value per channel is allowed.  A negative variance is a
        ValueError, unless it is being traced: then y is NaN.

    Notes
    -----
    Gradients flow to every array, including mean and var, in both modes and to any order.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, step 11.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> x, mean, var = jnp.array([[1.0, 8.0]]), jnp.array([0.0, 4.0]), jnp.array([1.0, 4.0])
    >>> print(bncore.jax.batch_norm_infer(x, mean, var, eps=0.0))
    [[1. 2.]]
    """
    x = checks.data("x", x)
    settings = checks.settings(x, axis, eps, activation, negative_slope)
    for name, value in (("mean", mean), ("var", var)):
        if value is None:
            raise TypeError(f"{name}: expected an array, got None")
    arguments = checks.parameters(x, axis, mean=mean, var=var, weight=weight, bias=bias)
    if not counting.traced(arguments[1]):
        variances("var", np.asarray(arguments[1]), x.shape[settings.axis], axis)
    settings, counts = counting.checked(settings, x, where, weights, nan_policy, fill)
    return _infer(settings, *alike(x, *arguments, checks.residual(x, residual), counts))
