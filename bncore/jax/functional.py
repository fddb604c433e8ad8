"""The public functions: batch norm of JAX arrays, with the checks when a call is traced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import export

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import variances
from bncore.arguments.weights import NanPolicy
from bncore.jax import checks, counting, ops
from bncore.jax.manual_axes import alike
from bncore.statistics import shown_count

# Jitted here, the functions take a fraction of the time if the caller does not jit them.
_train = jax.jit(ops.train, static_argnums=0, inline=True)
_infer = jax.jit(ops.infer, static_argnums=0, inline=True)

Array: TypeAlias = jax.Array
Given: TypeAlias = jax.Array | npt.NDArray[Any]


@partial(jax.tree_util.register_dataclass, data_fields=["count", "mean", "var"], meta_fields=[])
@dataclass(frozen=True)
class Moments:
    """The statistics of a batch, which `batch_norm_train` returns; a pytree.

    Attributes
    ----------
    count : (C,) array
        The number of values of every channel, or the sum of their weights; float64 if JAX allows it
        (``jax_enable_x64``), otherwise float32.  Without weights, `batch_norm_train` knows it when
        it is traced and returns a NumPy array.
    mean : (C,) array
        The mean in x's unit, of the same dtype; NaN where count is 0.
    var : (C,) array
        The population variance, in x's unit squared, of the same dtype; NaN where count is 0.
    """

    count: Given
    mean: Array
    var: Array


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

    Gradients flow from y and from the moments to x, weight, bias and residual, in reverse mode and
    to any order.  Under `jax.vmap` every example is a batch of its own.

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
    channels = x.shape[settings.axis]
    count = x.size // max(channels, 1)
    settings, counts = counting.checked(settings, x, where, weights, nan_policy, fill)
    if count == 1 and counts is None and not settings.omit_nan:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    given = alike(x, *arguments, checks.residual(x, residual), counts)
    y, mean, var, _, own = _train(settings, *given)
    if own is not None:
        return y, Moments(own, mean, var)
    dtype = ops.statistics_dtype()
    if export.is_symbolic_dim(count):  # known only when an exported function is called
        return y, Moments(jnp.full(channels, jnp.asarray(count, dtype)), mean, var)
    return y, Moments(np.full(channels, count, dtype), mean, var)


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
    Gradients flow to every array, including mean and var, in reverse mode and to any order.

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


def update_running_stats(
    running_mean: Given,
    running_var: Given,
    moments: Moments,
    *,
    momentum: float = 0.1,
    correction: float = 1,
) -> tuple[Array, Array]:
    """Return running statistics, updated with those of a batch.

    ``running = (1 - momentum) * running + momentum * batch``.

    Parameters
    ----------
    running_mean, running_var : (C,) array of float
        The running statistics before this batch.
    moments : Moments
        The moments of the batch.  A channel whose count is 0 keeps its running statistics.
    momentum : float, default 0.1
        The weight of the *new* batch, from 0 to 1, as in PyTorch.  In Flax it is the weight of the
        old value.
    correction : float, default 1
        The batch variance is m2 / (count - correction).  PyTorch uses 1; Flax uses 0.

    Returns
    -------
    running_mean, running_var : (C,) array
        New arrays, each with its old dtype; they are computed in the dtype of the moments.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described above, or a count that is not 0 is not above
        `correction`.  While a call is traced, the counts of moments that are its arguments are not
        known: then the running variance of such a channel becomes NaN or infinite.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3.1 (moving averages), Algorithm 2, step 10 (the
    unbiased variance).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> _, moments = bncore.jax.batch_norm_train(jnp.array([[3.0], [5.0], [4.0]]))
    >>> mean, var = jnp.zeros(1), jnp.ones(1)
    >>> mean, var = bncore.jax.update_running_stats(mean, var, moments, momentum=0.5)
    >>> print(mean, var)
    [2.] [1.]
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: expected Moments, got {scalars.shown(moments)}")
    given = {"running_mean": running_mean, "running_var": running_var}
    old = [checks.vector(name, v, moments.mean.shape[0]) for name, v in given.items()]
    momentum = scalars.real("momentum", momentum, 0.0, 1.0)
    correction = scalars.real("correction", correction)
    empty, factor = _correction(moments, correction)
    batch = moments.mean, moments.var * factor
    new = [
        ((1.0 - momentum) * a.astype(b.dtype) + momentum * b).astype(a.dtype)
        for a, b in zip(old, batch, strict=True)
    ]
    if isinstance(empty, jax.Array) or empty.any():
        new = [jnp.where(empty, a, b) for a, b in zip(old, new, strict=True)]
    return new[0], new[1]


def _correction(moments: Moments, correction: float) -> tuple[Given, Given]:
    """Return which channels have no value, and count / (count - correction).

    They are NumPy arrays, and the counts are checked, unless they are being traced.
    """
    dtype = moments.mean.dtype
    if isinstance(moments.count, jax.core.Tracer):
        count = moments.count
        return count == 0.0, (count / jnp.maximum(count - correction, 0.0)).astype(dtype)
    count = np.broadcast_to(np.asarray(moments.count, np.float64), moments.mean.shape)
    some = count > 0.0
    low = some & (count <= correction)
    if low.any():
        at = int(np.argmax(low))
        raise ValueError(
            f"moments: expected count > correction = {correction:g}, "
            f"got {shown_count(count, at)} for channel {at}"
        )
    with silent_arithmetic():
        return ~some, (count / (count - correction)).astype(dtype)
