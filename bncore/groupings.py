"""Instance norm and group norm: the kernels of batch norm, with a statistic per sample and group.

A sample lies in memory as (outer, channels, inner), outer being 1 where channels come first.  Its
groups are (outer, groups, channels / groups * inner), the same memory with other sizes: so
statistics are those of a batch norm over groups, and y and dx those of one over channels whose
statistics repeat within a group.  Where outer is 1, all samples are one such problem, of
samples * groups and samples * channels; else one call per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore import problem, scalars
from bncore.backends import current
from bncore.problem import Problem
from bncore.statistics import Moments, Stat, checked_moments, trusted_moments, variance
from bncore.threads import resolve

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# Below this share of the largest weight a channel's gradient is computed from weight * dy, in a
# pass of its own: dividing by the weight would leave float32's range.
LEAST_WEIGHT = 2.0**-20

PART_BYTES = 1 << 20  # about the second-level cache of a core


class Grouping:
    """x with a batch axis, as problems of groups and of channels over the same memory.

    Attributes
    ----------
    problem : Problem
        Of x, in which samples are slowest in memory.
    samples, groups, channels, count : numbers of them, and of values per group
    wide : channels of a group
    """

    def __init__(self, x: object, axis: object, groups: object) -> None:
        array = problem.data_array("x", x)
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        channel_axis = scalars.one_axis(axis, array.ndim)
        if channel_axis == 0:
            raise ValueError("axis: expected another axis than 0, the batch's, got 0")
        order = problem.memory_order(array)
        faster = tuple(i for i in order if i != 0)
        if array.shape[0] > 1 and order[0] != 0:
            # Samples lie between each other: one copy brings them apart.
            order = (0, *faster)
            inverse = sorted(range(array.ndim), key=order.__getitem__)
            array = problem.block(array, order).transpose(inverse)
        at = faster.index(channel_axis)
        self.problem = Problem(array, channel_axis)
        self.samples, self.channels = array.shape[0], array.shape[channel_axis]
        self.groups = self.channels if groups is None else _divisor(groups, self.channels)
        self.wide = self.channels // max(self.groups, 1)
        self._outer = math.prod(array.shape[i] for i in faster[:at])
        self._inner = math.prod(array.shape[i] for i in faster[at + 1 :])
        self.count = self._outer * self._inner * self.wide

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts that one call each works on: what the second read finds in cache."""
        each = 1
        if self._outer == 1:
            size = self.problem.x.nbytes // self.samples
            each = self.samples if self.wide == 1 else max(PART_BYTES // size, 1)
        for start in range(0, self.samples, each):
            yield Part(self, start, min(start + each, self.samples))

    def require_batch(self) -> None:
        """Refuse one value per group: its variance says nothing."""
        if self.count == 1 and not self.problem.empty:
            raise ValueError(
                f"Expected more than 1 value per group, got input size {self.problem.shape}"
            )


class Part:
    """Some samples, whose groups (or channels) are the channels of one call."""

    def __init__(self, whole: Grouping, start: int, stop: int) -> None:
        self._whole, self._samples = whole, slice(start, stop)
        self._number = stop - start
        self.groups = slice(start * whole.groups, stop * whole.groups)

    def by_channel(self, values: Array) -> Array:
        """Return these samples of an array of x's size, a channel of the call for every channel."""
        return self._sized(values, self._whole.channels, 1)

    def by_group(self, values: Array) -> Array:
        """Return these samples of an array of x's size, a channel of the call for every group."""
        return self._sized(values, self._whole.groups, self._whole.wide)

    def _sized(self, values: Array, rows: int, wide: int) -> Array:
        g = self._whole
        mine = values.reshape(g.samples, -1)[self._samples]
        return mine.reshape(g._outer, self._number * rows, wide * g._inner)

    def repeated(self, values: Stat) -> Stat:
        """Return values per group once for every channel of it."""
        return values.repeat(self._whole.wide)

    def tiled(self, values: Stat | None) -> Stat | None:
        """Return values per channel once for every sample."""
        return None if values is None else np.tile(values, self._number)


def _divisor(groups: object, channels: int) -> int:
    number = scalars.integer_at_least("groups", groups, 1)
    if channels % number:
        raise ValueError(f"groups: expected a divisor of {channels} channels, got {number}")
    return number


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
        `out`, or a new array of x's shape and dtype, in x's memory order.
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
    return _forward(x, groups, weight, bias, axis, eps, out, n_threads)


def _forward(
    x: object,
    groups: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    n_threads: object,
) -> tuple[Array, Moments]:
    """Do `group_norm`; groups of one channel where `groups` is None."""
    kernels, threads = current().kernels, resolve(n_threads)
    g = Grouping(x, axis, groups)
    p = g.problem
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = scalars.real("eps", eps, 0.0)
    g.require_batch()
    y = p.output(out, parameters=(gamma, beta))
    means, m2s = np.zeros((2, g.samples * g.groups))
    for part in () if p.empty else g:
        given, result = part.by_channel(p.x), part.by_channel(y.values)
        mean, m2 = means[part.groups], m2s[part.groups]
        affine = part.tiled(gamma.values), part.tiled(beta.values)
        if g.wide == 1:
            kernels.train(result, mean, m2, given, *affine, eps, threads)
            continue
        kernels.moments(mean, m2, part.by_group(p.x), threads)
        statistics = part.repeated(mean), part.repeated(variance(g.count, m2, 0))
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
        `out`, or a new array of x's shape and dtype, in x's memory order.
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
    n_threads: object,
) -> tuple[Array, Array, Array]:
    """Do `group_norm_backward`; groups of one channel where `groups` is None."""
    kernels, threads = current().kernels, resolve(n_threads)
    g = Grouping(x, axis, groups)
    p = g.problem
    gradient, source = p.gradient(dy)
    found = checked_moments("moments", moments, g.samples * g.groups)
    if found.count != g.count:
        raise ValueError(
            f"moments: expected count {g.count}, the values per group of x, got {found.count}"
        )
    gamma = p.optional("weight", weight)
    eps = scalars.real("eps", eps, 0.0)
    dx = p.output(out, source, (gamma,))
    dbias, dweight = p.zeros(), p.zeros()
    means, variances = found.mean, found.var()
    for part in () if p.empty else g:
        given, slope, result = map(part.by_channel, (p.x, gradient, dx.values))
        statistics = part.repeated(means[part.groups]), part.repeated(variances[part.groups])
        row = part.tiled(gamma.values)
        sums = np.zeros((2, given.shape[1]))
        if g.wide == 1:
            kernels.train_backward(result, *sums, slope, given, *statistics, row, eps, threads)
        else:
            kernels.grad_sums(*sums, slope, given, *statistics, eps, threads)
            row, slope, shared = _weighted(row, slope, sums, g.wide)
            kernels.grad_input(
                result, slope, given, *statistics, *shared, float(g.count), row, eps, threads
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

    `group_norm` with as many groups as channels; see there for parameters, results and errors.

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

    `group_norm_backward` with as many groups as channels; see there for parameters, results and
    errors.

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
