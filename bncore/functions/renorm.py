"""Batch renormalization: batch statistics, corrected towards the running statistics."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.problem import Problem
from bncore.arguments.weights import NanPolicy
from bncore.backends import current
from bncore.functions.train import batch_norm_train_backward
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import Moments, Stat, counts_of, trusted_moments

Array: TypeAlias = npt.NDArray[np.floating[Any]]


class Renorm(NamedTuple):
    """r and d of the correction ``xhat * r + d``, constants in backward; (C,) arrays of float64."""

    r: Stat
    d: Stat


def batch_renorm(
    x: npt.ArrayLike,
    running_mean: npt.ArrayLike,
    running_var: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Moments, Renorm]:
    """Normalize a batch by its own statistics, corrected towards the running statistics.

    ``y = weight * (xhat * r + d) + bias``, where ``r = std / running_std`` and
    ``d = (mean - running_mean) / running_std`` are clipped, and ``std = sqrt(var + eps)``.  Without
    clipping, y is what evaluation computes; with ``r_max=1, d_max=0`` it is what `batch_norm_train`
    computes.

    Parameters
    ----------
    running_mean, running_var : (C,) array_like of float
        The running statistics before this batch.  Call `update_running_stats` with the returned
        moments afterwards.
    r_max : float, default 3
        r is clipped to 1/r_max and r_max; >= 1.
    d_max : float, default 5
        d is clipped to -d_max and d_max; >= 0.
    x, weight, bias, axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    moments : Moments
        The moments of the batch.
    renorm : Renorm
        r and d, to be passed to `batch_renorm_backward`; 1 and 0 in a channel without a value.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if an argument is not as described above.

    References
    ----------
    S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", NIPS 2017, Algorithm 1; r_max and d_max as section 4 has them in the end.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[2.0], [6.0]])
    >>> y, moments, renorm = bncore.batch_renorm(x, [3.0], [1.0], eps=0.0)
    >>> y.ravel()
    array([-1.,  3.])
    >>> renorm
    Renorm(r=array([2.]), d=array([1.]))
    """
    kernels, threads = current().kernels, resolve(n_threads)
    p = Problem(x, axis)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    mean = p.parameter("running_mean", running_mean)
    var = p.variance("running_var", running_var)
    eps = scalars.real("eps", eps, 0.0)
    largest_r, largest_d = scalars.real("r_max", r_max, 1.0), scalars.real("d_max", d_max, 0.0)
    given = p.weights(where, weights, nan_policy, fill)
    if not given.weighs:
        p.require_batch()
    inputs = (gamma, beta, mean, var, *given.sources)
    y = p.output(out, parameters=inputs, allocate=buffer_pool.empty)
    batch_mean, m2, count = p.no_means(), p.zeros(), counts_of(p.count, p.channels)
    if not p.empty:
        kernels.moments(batch_mean, m2, p.x, threads, False, given.record(count))
    moments = trusted_moments(count, batch_mean, m2)
    if p.empty:
        return y.finish(), moments, Renorm(np.ones(p.channels), np.zeros(p.channels))
    with silent_arithmetic():
        std = np.sqrt(var.values + eps)
        r = np.clip(np.sqrt(moments.var() + eps) / std, 1.0 / largest_r, largest_r)
        d = np.clip((moments.mean - mean.values) / std, -largest_d, largest_d)
        r[count == 0.0], d[count == 0.0] = 1.0, 0.0
        scale = r if gamma.values is None else gamma.values * r
        shift = d if gamma.values is None else gamma.values * d
        shift = shift if beta.values is None else shift + beta.values
    kernels.normalize(
        y.values, p.x, moments.mean, moments.var(), scale, shift, eps, threads, None,
        given.filling(p.channels),
    )  # fmt: skip
    return y.finish(), moments, Renorm(r, d)


def batch_renorm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    renorm: tuple[npt.ArrayLike, npt.ArrayLike],
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `batch_renorm`, in which r and d are constants.

    Parameters
    ----------
    moments, renorm
        As `batch_renorm` returned them.
    dy, x, weight, axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `batch_norm_train_backward`.

    Returns
    -------
    dx, dweight, dbias : ndarray
        As `batch_norm_train_backward`.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train_backward`; and if `renorm` is not a pair of such arrays.

    References
    ----------
    S. Ioffe, "Batch Renormalization", NIPS 2017, the gradients after Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[2.0], [6.0]]), np.array([[1.0], [3.0]])
    >>> y, moments, renorm = bncore.batch_renorm(x, [3.0], [1.0], eps=0.0)
    >>> bncore.batch_renorm_backward(dy, x, moments, renorm, eps=0.0)
    (array([[0.],
           [0.]]), array([8.]), array([4.]))
    """
    p = Problem(x, axis)
    source = p.like_x("dy", dy)
    gamma = p.optional("weight", weight)
    if not isinstance(renorm, tuple) or len(renorm) != 2:
        raise TypeError(f"renorm: expected the pair (r, d), got {scalars.shown(renorm)}")
    r, d = (p.parameter(f"renorm {name}", value) for name, value in zip("rd", renorm, strict=True))
    if out is not None:
        p.require_output(out, source, (gamma, r, d))
    with silent_arithmetic():
        scale = r.values if gamma.values is None else gamma.values * r.values
    dx, sum_dy_xhat, sum_dy = batch_norm_train_backward(
        source, p.array, moments, scale, axis=axis, eps=eps, out=out, n_threads=n_threads,
        where=where, weights=weights, nan_policy=nan_policy, fill=fill,
    )  # fmt: skip
    with silent_arithmetic():
        dweight: Any = r.values * sum_dy_xhat + d.values * sum_dy
    dbias: Any = sum_dy
    return dx, p.parameter_gradient(dweight, gamma), p.parameter_gradient(dbias, gamma)
