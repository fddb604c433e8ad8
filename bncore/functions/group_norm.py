"""Instance norm and group norm: the kernels of batch norm, with statistics per sample and group.

Statistics are those of a batch norm over groups, y and dx those of one over channels whose
statistics repeat within a group: `bncore.functions.sample_groups` gives both views of the same
memory.
"""

from __future__ import annotations

from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.backends import current
from bncore.functions.sample_groups import SampleGroups
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import Moments, Stat, checked_moments, trusted_moments, variance

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# Below this share of the largest weight a channel's gradient is computed from weight * dy, in a
# pass of its own: the kernel takes sums divided by the weight as float32, whose range they would
# leave.  The share itself is a choice: sums may be as large as 2**107, and a smaller share would
# allow less, for fewer temporaries.
LEAST_WEIGHT = 2.0**-20


def group_norm(
    x: npt.ArrayLike,
    groups: SupportsIndex,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, Moments]:
    """Normalize every group of channels of every sample by its own mean and variance.

    Parameters
    ----------
    x : array_like of float32 or float64, of 2 or more dimensions
        Samples along axis 0.  No copy where a sample is one contiguous block in any memory order,
        and samples follow one another; else one.
    groups : int
        A divisor of the number of channels.  1 is layer norm over channels and positions with a
        weight per channel; the number of channels is `instance_norm`.
    weight, bias : (C,) array_like of float, optional
        gamma and beta of every channel.
    axis : int, default 1
        The channel axis; not 0.
    eps, out, n_threads
        As in `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape and dtype, in x's memory order; but where samples lie
        between each other in x, one after another, each in its own memory order.
    moments : Moments
        Of samples * groups values, sample by sample: what `group_norm_backward` takes.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if `groups` does not divide the channels, or a group of a sample
        has one value.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", ECCV 2018, equations 1, 2, 3 and 7.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[0.0, 2.0, 5.0, 9.0]])
    >>> y, moments = bncore.group_norm(x, 2, [1.0, 1.0, 1.0, 2.0], eps=0.0)
    >>> y
    array([[-1.,  1., -1.,  2.]])
    >>> moments.mean
    array([1., 7.])
    """
    groups = scalars.integer_at_least("groups", groups, 1)
    return _forward(x, groups, weight, bias, axis, eps, out, n_threads)


def _forward(
    x: object,
    groups: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    n_threads: SupportsIndex | None,
) -> tuple[Array, Moments]:
    """Do `group_norm`; groups of one channel where `groups` is None."""
    kernels, threads = current().kernels, resolve(n_threads)
    g = SampleGroups(x, axis, groups)
    p = g.problem
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = scalars.real("eps", eps, 0.0)
    g.require_batch()
    y = p.output(out, parameters=(gamma, beta), allocate=buffer_pool.empty)
    means, m2s = np.zeros((2, g.samples * g.groups))
    for chunk in () if p.empty else g:
        given, result = chunk.by_channel(p.x), chunk.by_channel(y.values)
        mean, m2 = means[chunk.groups], m2s[chunk.groups]
        affine = chunk.tiled(gamma.values), chunk.tiled(beta.values)
        if g.wide == 1:
            kernels.train(result, mean, m2, given, *affine, eps, threads)
            continue
        kernels.moments(mean, m2, chunk.by_group(p.x), threads)
        statistics = chunk.repeated(mean), chunk.repeated(variance(g.count, m2, 0))
        kernels.normalize(result, given, *statistics, *affine, eps, threads)
    return y.finish(), trusted_moments(g.count, means.copy(), m2s.copy())


def group_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    groups: SupportsIndex,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `group_norm`.

    ``dx = invstd * (weight * dy - (a + xhat * b) / n)``, where a and b are the sums of
    ``weight * dy`` and of ``weight * dy * xhat`` over the n values of the group.

    Parameters
    ----------
    dy, x, weight, axis, eps, out, n_threads
        As in `batch_norm_train_backward`.
    moments, groups
        As `group_norm` returned and took them.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape and dtype, in x's memory order; but where samples lie
        between each other in x, one after another, each in its own memory order.
    dweight, dbias : (C,) ndarray
        Summed over samples in float64, in weight's dtype, or in x's where there is no weight.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`; and if `moments` are not those of x.

    Notes
    -----
    Where a weight is 0, or below 2**-20 of the largest, weight * dy is written to a temporary of
    x's size first: the kernel divides by the weight otherwise.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", ECCV 2018, equations 1, 2, 3 and 7, differentiated.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[0.0, 2.0]]), np.array([[1.0, 3.0]])
    >>> y, moments = bncore.group_norm(x, 1, eps=0.0)
    >>> dx, dweight, dbias = bncore.group_norm_backward(dy, x, moments, 1, eps=0.0)
    >>> dweight, dbias
    (array([-1.,  3.]), array([1., 3.]))
    """
    groups = scalars.integer_at_least("groups", groups, 1)
    return _backward(dy, x, moments, groups, weight, axis, eps, out, n_threads)


def _backward(
    dy: object,
    x: object,
    moments: object,
    groups: object,
    weight: object,
    axis: object,
    eps: object,
    out: object,
    n_threads: SupportsIndex | None,
) -> tuple[Array, Array, Array]:
    """Do `group_norm_backward`; groups of one channel where `groups` is None."""
    kernels, threads = current().kernels, resolve(n_threads)
    g = SampleGroups(x, axis, groups)
    p = g.problem
    gradient, source = p.gradient(dy)
    found = checked_moments("moments", moments, g.samples * g.groups)
    if found.count != g.count:
        raise ValueError(
            f"moments: expected count {g.count}, the values per group of x, got {found.count}"
        )
    gamma = p.optional("weight", weight)
    eps = scalars.real("eps", eps, 0.0)
    dx = p.output(out, source, (gamma,), allocate=buffer_pool.empty)
    dbias, dweight = p.zeros(), p.zeros()
    means, variances = found.mean, found.var()
    for chunk in () if p.empty else g:
        given, slope, result = map(chunk.by_channel, (p.x, gradient, dx.values))
        statistics = chunk.repeated(means[chunk.groups]), chunk.repeated(variances[chunk.groups])
        row = chunk.tiled(gamma.values)
        sum_dy, sum_dy_xhat = sums = np.zeros((2, given.shape[1]))
        if g.wide == 1:
            kernels.train_backward(
                result, sum_dy, sum_dy_xhat, slope, given, *statistics, row, eps, threads
            )
        else:
            kernels.grad_sums(sum_dy, sum_dy_xhat, slope, given, *statistics, eps, threads)
            row, slope, shared = _weighted(row, slope, sums, g.wide)
            kernels.grad_input(
                result,
                slope,
                given,
                *statistics,
                shared[0],
                shared[1],
                float(g.count),
                row,
                eps,
                threads,
            )
        with np.errstate(all="ignore"):
            dbias += sums[0].reshape(-1, g.channels).sum(axis=0)
            dweight += sums[1].reshape(-1, g.channels).sum(axis=0)
    return dx.finish(), p.parameter_gradient(dweight, gamma), p.parameter_gradient(dbias, gamma)


def _weighted(
    row: Stat | None, dy: Array, sums: Stat, wide: int
) -> tuple[Stat | None, Array, Stat]:
    """Return weights per channel of a call, dy, and sums that give the gradient of the group.

    The kernel computes ``weight * (dy - (sum_dy + xhat * sum_dy_xhat) / n)``: the sums of a group,
    which have the weights in them, are divided by the channel's own.
    """
    with np.errstate(all="ignore"):
        weighted = sums if row is None else sums * row
        shared = weighted.reshape(2, -1, wide).sum(axis=2).repeat(wide, axis=1)
        if row is None:
            return None, dy, shared
        sizes = np.abs(row)
        if sizes.min() >= LEAST_WEIGHT * sizes.max() and sizes.min() > 0.0:
            return row, dy, shared / row
        return None, (dy * row[:, None]).astype(dy.dtype), shared


def instance_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, Moments]:
    """Normalize every channel of every sample by its own mean and variance.

    `group_norm` with as many groups as channels; see there for results and errors.

    Parameters
    ----------
    x, weight, bias, axis, eps, out, n_threads
        As in `group_norm`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022 (2016), equation 6.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> y, moments = bncore.instance_norm(np.array([[[0.0, 2.0], [5.0, 9.0]]]), eps=0.0)
    >>> y
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    return _forward(x, None, weight, bias, axis, eps, out, n_threads)


def instance_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `instance_norm`.

    `group_norm_backward` with as many groups as channels; see there for results and errors.

    Parameters
    ----------
    dy, x, moments, weight, axis, eps, out, n_threads
        As in `group_norm_backward`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, arXiv:1607.08022 (2016), equation 6, differentiated.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[[0.0, 2.0]]]), np.array([[[1.0, 3.0]]])
    >>> y, moments = bncore.instance_norm(x, eps=0.0)
    >>> bncore.instance_norm_backward(dy, x, moments, eps=0.0)[1:]
    (array([2.]), array([4.]))
    """
    return _backward(dy, x, moments, None, weight, axis, eps, out, n_threads)
