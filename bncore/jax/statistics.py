"""Statistics: the moments of a batch, merging them, and running statistics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import export

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.weights import NanPolicy
from bncore.jax import checks, counting, devices, ops
from bncore.jax.manual_axes import alike
from bncore.statistics import divisor, require_divisors

Array: TypeAlias = jax.Array
Given: TypeAlias = jax.Array | npt.NDArray[Any]

_moments = jax.jit(ops.moments, static_argnums=0, inline=True)


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


def moments_of(mean: Array, var: Array, count: Any) -> Moments:
    """Make moments of statistics and of the counts, or of one number for all channels."""
    if isinstance(count, jax.Array):
        return Moments(count, mean, var)
    if export.is_symbolic_dim(count):  # known only when an exported function is called
        return Moments(jnp.full(mean.shape, jnp.asarray(count, mean.dtype)), mean, var)
    return Moments(np.full(mean.shape, count, mean.dtype), mean, var)


def moments(
    x: Given,
    *,
    axis: SupportsIndex = 1,
    where: Given | None = None,
    weights: Given | None = None,
    nan_policy: NanPolicy = "propagate",
    axis_name: Hashable | Sequence[Hashable] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Compute count, mean and variance of every channel, in one pass over memory.

    Parameters
    ----------
    x, axis, where, weights, nan_policy, axis_name, axis_index_groups
        As in `bncore.jax.batch_norm_train`; a channel may have any number of values.

    Returns
    -------
    Moments
        For `merge` and `update_running_stats`; its mean and var are also arguments of
        `bncore.jax.batch_norm_infer`.

    Raises
    ------
    TypeError, ValueError
        As `bncore.jax.batch_norm_train`.

    Notes
    -----
    Gradients flow to x, in both modes and to any order.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax
    >>> print(bncore.jax.moments(jnp.array([[0.0, 1.0], [2.0, 5.0]])).var)
    [1. 4.]
    """
    x = checks.data("x", x)
    settings = checks.settings(x, axis, 0.0, None, 0.0)
    settings, counts = counting.checked(settings, x, where, weights, nan_policy, None)
    settings = settings._replace(devices=devices.checked(axis_name, axis_index_groups))
    mean, var, _, own = _moments(settings, *alike(x, counts))
    count = x.size // max(x.shape[settings.axis], 1) * devices.count(settings.devices)
    return moments_of(mean, var, count if own is None else own)


def merge(first: Moments, *others: Moments) -> Moments:
    """Merge the moments of parts into those of all parts together.

    Parameters
    ----------
    first, *others : Moments
        The moments of the same channels in different parts of a batch.

    Returns
    -------
    Moments
        A channel without a value in one part has the moments of the others.

    Raises
    ------
    TypeError, ValueError
        If an argument is no Moments, or has another number of channels than the first.

    Notes
    -----
    It computes in the dtype of the moments, float32 without ``jax_enable_x64``, and in jax.numpy,
    so that it can be differentiated.  `batch_norm_train` and `moments` with `axis_name` merge in
    float64.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance: Analysis
    and Recommendations", The American Statistician 37 (1983) 242-247, equation 2.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bncore.jax import merge, moments
    >>> parts = jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])
    >>> merged = merge(*map(moments, parts))
    >>> print(merged.count, merged.mean, merged.var)
    [4.] [3.] [5.]
    """
    for i, one in enumerate((first, *others)):
        name = "first" if i == 0 else f"others[{i - 1}]"
        if not isinstance(one, Moments):
            raise TypeError(f"{name}: expected Moments, got {scalars.shown(one)}")
        if one.mean.shape != first.mean.shape:
            raise ValueError(f"{name}: expected shape {first.mean.shape}, got {one.mean.shape}")
    merged = first
    for other in others:
        merged = _merged(merged, other)
    return merged


def _merged(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    share = jnp.where(b.count == 0.0, 0.0, b.count / jnp.where(count == 0.0, 1.0, count))
    (mean_a, var_a), (mean_b, var_b) = _without_holes(a, b), _without_holes(b, a)
    delta = mean_b - mean_a
    mean = mean_a + share * delta
    var = var_a + share * (var_b - var_a) + delta * delta * (share * (1.0 - share))
    dtype = a.mean.dtype
    mean, var = (jnp.where(count == 0.0, jnp.nan, one).astype(dtype) for one in (mean, var))
    return Moments(count, mean, var)


def _without_holes(a: Moments, b: Moments) -> list[Array]:
    """Return mean and var of a, or of b where a has no value, or 0; a NaN reaches no gradient."""
    pairs = (a.mean, b.mean), (a.var, b.var)
    return [
        jnp.where(a.count == 0.0, jnp.where(b.count == 0.0, 0.0, other), own)
        for own, other in pairs
    ]


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
    old = [checks.shaped(name, v, moments.mean.shape) for name, v in given.items()]
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
        return count == 0.0, (count / divisor(count, correction, jnp)).astype(dtype)
    count = np.broadcast_to(np.asarray(moments.count, np.float64), moments.mean.shape)
    require_divisors(count, correction)
    with silent_arithmetic():
        return count == 0.0, (count / divisor(count, correction)).astype(dtype)
