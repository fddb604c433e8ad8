"""Group norm: one kernel call; with masks or weights, the kernels of batch norm.

With masks or weights, the groups of all samples are the channels of a batch norm that computes the
statistics.  To compute y and dx, every channel of every sample is a channel of a batch norm, and
the channels of a group share one mean and variance.  `bncore.functions.sample_groups` gives both
views of the same memory.
"""

from __future__ import annotations

from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.weights import NanPolicy
from bncore.backends import current
from bncore.functions.sample_groups import SampleGroups
from bncore.functions.sixteen_bits import in_float32, store
from bncore.functions.train import require_own_counts
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import (
    Moments,
    Stat,
    checked_moments,
    counts_of,
    trusted_moments,
    variance,
)

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# If a channel's weight is below this share of the largest weight, its gradient is computed from
# weight * dy in a separate pass.  Otherwise the kernel takes the sums divided by the weight as
# float32, and dividing by a very small weight would leave float32's range.  With this share the
# sums may be as large as 2**107.  A smaller share would need fewer temporaries, but would allow
# only smaller sums.
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
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Moments]:
    """Normalize every group of channels of every sample by its own mean and variance.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        Samples lie along axis 0.  x is not copied if every sample is one contiguous block in any
        memory order and the samples follow one another; otherwise it is copied once.
    groups : int
        The number of groups, a divisor of the number of channels.  With 1, this is layer norm over
        channels and positions with a weight per channel; with the number of channels, it is
        `instance_norm`.
    weight, bias : (C,) array_like of float, optional
        gamma and beta of every channel.
    axis : int, default 1
        The channel axis; it must not be 0.
    eps, out, n_threads, where, weights, nan_policy, fill
        As in `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape and dtype, in x's memory order.  If samples are
        interleaved in x's memory, the new array holds one sample after another.
    moments : Moments
        Moments with samples * groups entries, sample by sample.  Pass them to
        `group_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if `groups` does not divide the number of channels, or a group of
        a sample has only one value.

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
    counted = where, weights, nan_policy, fill
    return forward(x, groups, weight, bias, axis, eps, out, n_threads, counted)


def forward(
    x: object,
    groups: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    n_threads: SupportsIndex | None,
    counted: tuple[object, object, object, object],
) -> tuple[Array, Moments]:
    """Compute `group_norm`; if `groups` is None, every channel is a group.

    `counted` is `where`, `weights`, `nan_policy` and `fill`.
    """
    kernels, threads = current().kernels, resolve(n_threads)
    g = SampleGroups(x, axis, groups)
    p = g.problem
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = scalars.real("eps", eps, 0.0)
    g.weigh(*counted)
    g.require_batch()
    inputs = (gamma, beta, *g.weights.sources)
    y = p.output(out, parameters=inputs, allocate=buffer_pool.empty)
    number = g.samples * g.groups
    means, m2s, counts = np.full(number, np.nan), np.zeros(number), counts_of(g.count, number)
    if not (p.empty or g.weights.weighs):
        out, given = (values.reshape(g.shape) for values in (y.values, p.x))
        affine = gamma.values, beta.values
        kernels.group_norm(out, means, m2s, given, *affine, g.groups, eps, threads)
        return y.finish(), trusted_moments(counts, means, m2s)
    for chunk in () if p.empty else g:
        given, result = chunk.by_channel(p.x), chunk.by_channel(y.values)
        mean, m2, count = (values[chunk.groups] for values in (means, m2s, counts))
        affine = chunk.tiled(gamma.values), chunk.tiled(beta.values)
        if g.wide == 1:
            own = chunk.weights_by_channel(count)
            kernels.train(result, mean, m2, given, *affine, eps, threads, None, own)
            continue
        own = chunk.weights_by_group(count)
        kernels.moments(mean, m2, chunk.by_group(p.x), threads, False, own)
        statistics = chunk.repeated(mean), chunk.repeated(variance(count, m2, 0))
        filled = None if g.weights.fill is None else chunk.weights_by_channel(chunk.repeated(count))
        kernels.normalize(result, given, *statistics, *affine, eps, threads, None, filled)
    return y.finish(), trusted_moments(counts, means, m2s)


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
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `group_norm`.

    ``dx = invstd * (weight * dy - (a + xhat * b) / n)``, where a and b are the sums of
    ``weight * dy`` and of ``weight * dy * xhat`` over the n values of the group.

    Parameters
    ----------
    dy, x, weight, axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `batch_norm_train_backward`.
    moments, groups
        The moments that `group_norm` returned, and the groups that it was given.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape and dtype, in x's memory order.  If samples are
        interleaved in x's memory, the new array holds one sample after another.
    dweight, dbias : (C,) ndarray
        Summed over samples in float64, in weight's dtype.  Without a weight they have x's dtype, or
        float32 if that has 16 bits.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`; and if `moments` are not those of x.

    Notes
    -----
    With masks or weights, the kernel divides by the weight.  If one is 0 or below 2**-20 of the
    largest, the function therefore writes weight * dy to a temporary array first: of a sample's
    size, and in float32 if x has 16 bits.

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
    counted = where, weights, nan_policy, fill
    return backward(dy, x, moments, groups, weight, axis, eps, out, n_threads, counted)


def backward(
    dy: object,
    x: object,
    moments: object,
    groups: object,
    weight: object,
    axis: object,
    eps: object,
    out: object,
    n_threads: SupportsIndex | None,
    counted: tuple[object, object, object, object],
) -> tuple[Array, Array, Array]:
    """Compute `group_norm_backward`; the arguments are those of `forward`."""
    kernels, threads = current().kernels, resolve(n_threads)
    g = SampleGroups(x, axis, groups)
    p = g.problem
    gradient, source = p.gradient(dy)
    found = checked_moments("moments", moments, g.samples * g.groups)
    g.weigh(*counted)
    whole = f"count {g.count}, the values per group of x"
    require_own_counts(found, g.count, g.weights, whole, "group")
    gamma = p.optional("weight", weight)
    eps = scalars.real("eps", eps, 0.0)
    dx = p.output(out, source, (gamma, *g.weights.sources), allocate=buffer_pool.empty)
    dbias, dweight = p.zeros(), p.zeros()
    means, variances, counts = found.mean, found.var(), found.count
    if not (p.empty or g.weights.weighs):
        arrays = (values.reshape(g.shape) for values in (gradient, p.x))
        outputs = dx.values.reshape(g.shape), dbias, dweight
        rest = gamma.values, g.groups, eps, threads
        kernels.group_norm_backward(*outputs, *arrays, means, variances, *rest)
    for chunk in g if g.weights.weighs and not p.empty else ():
        given, slope, result = map(chunk.by_channel, (p.x, gradient, dx.values))
        statistics = chunk.repeated(means[chunk.groups]), chunk.repeated(variances[chunk.groups])
        row = chunk.tiled(gamma.values)
        count = chunk.repeated(counts[chunk.groups])
        own = chunk.weights_by_channel(count)
        sum_dy, sum_dy_xhat = sums = np.zeros((2, given.shape[1]))
        if g.wide == 1:
            kernels.train_backward(
                result, sum_dy, sum_dy_xhat, slope, given, *statistics, row, eps, threads, None, own
            )
        else:
            kernels.grad_sums(sum_dy, sum_dy_xhat, slope, given, *statistics, eps, threads, own)
            row, weighted, shared = _weighted(row, slope, sums, g.wide)
            target = result
            if weighted.dtype != slope.dtype:  # it was computed in float32, and so is dx
                given, result = in_float32(given), np.empty_like(weighted)
            kernels.grad_input(
                result, weighted, given, *statistics, shared[0], shared[1], count, row, eps,
                threads, own,
            )  # fmt: skip
            store(target, result)
        with silent_arithmetic():
            dbias += sums[0].reshape(-1, g.channels).sum(axis=0)
            dweight += sums[1].reshape(-1, g.channels).sum(axis=0)
    return dx.finish(), p.parameter_gradient(dweight, gamma), p.parameter_gradient(dbias, gamma)


def _weighted(
    row: Stat | None, dy: Array, sums: Stat, wide: int
) -> tuple[Stat | None, Array, Stat]:
    """Return the weight of each channel, dy, and the sums for which the kernel gives dx.

    The kernel computes ``weight * (dy - (sum_dy + xhat * sum_dy_xhat) / n)``.  The sums of a group
    already contain the weights, so this function divides them by the channel's own weight.
    """
    with silent_arithmetic():
        weighted = sums if row is None else sums * row
        shared = weighted.reshape(2, -1, wide).sum(axis=2).repeat(wide, axis=1)
        if row is None:
            return None, dy, shared
        sizes = np.abs(row)
        if sizes.min() >= LEAST_WEIGHT * sizes.max() and sizes.min() > 0.0:
            return row, dy, shared / row
        slope = in_float32(dy)
        return None, (slope * row[:, None]).astype(slope.dtype), shared
