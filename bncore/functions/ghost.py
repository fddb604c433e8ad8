"""Ghost batch norm: normalize a large batch in parts, each by its own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.problem import Problem
from bncore.functions.train import batch_norm_train, batch_norm_train_backward
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import Moments, checked_moments, require_counts

Array: TypeAlias = npt.NDArray[np.floating[Any]]


class VirtualBatches:
    """x divided along axis 0 into virtual batches.

    Attributes
    ----------
    problem : Problem
        The problem of the whole x.
    x : x's memory in its shape
    slices : the slices of axis 0, one for each virtual batch
    counts : the number of values per channel in each virtual batch
    """

    def __init__(self, x: object, size: object, axis: object) -> None:
        self.problem = Problem(x, axis)
        self.x = self.problem.array
        if scalars.one_axis(axis, self.x.ndim) == 0:
            raise ValueError("axis: expected an axis other than 0, the batch axis, got 0")
        number, length = scalars.integer_at_least("size", size, 1), self.x.shape[0]
        self.slices = [slice(a, min(a + number, length)) for a in range(0, length, number)]
        each = self.problem.count // max(length, 1)
        self.counts = [(part.stop - part.start) * each for part in self.slices]


def ghost_batch_norm(
    x: npt.ArrayLike,
    size: SupportsIndex,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, list[Moments]]:
    """Normalize virtual batches of a large batch, each by its own mean and variance.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        As in `batch_norm_train`.  If axis 0 is not the slowest in memory, each virtual batch is
        copied.
    size : int
        The number of samples (along axis 0) in a virtual batch.  The last virtual batch holds the
        samples that are left.
    weight, bias, axis, eps, out, n_threads
        As in `batch_norm_train`; `axis` must not be 0.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    moments : list of Moments
        The moments of each virtual batch.  To update running statistics as the paper does, pass
        each to `update_running_stats` in turn; or pass the moments of the whole batch, which
        `merged_moments` computes.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if a virtual batch has only one value per channel.

    References
    ----------
    E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better: closing the generalization
    gap in large batch training of neural networks", NIPS 2017, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> y, moments = bncore.ghost_batch_norm(np.array([[0.0], [2.0], [5.0], [9.0]]), 2, eps=0.0)
    >>> y.ravel()
    array([-1.,  1., -1.,  1.])
    >>> bncore.merged_moments(moments).mean
    array([4.])
    """
    v = VirtualBatches(x, size, axis)
    p = v.problem
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    options: dict[str, Any] = {"axis": axis, "eps": scalars.real("eps", eps, 0.0)}
    options["n_threads"] = resolve(n_threads)
    if 1 in v.counts and p.channels:
        raise ValueError(
            "Expected more than 1 value per channel in every virtual batch, "
            f"got size {v.slices[-1].stop - v.slices[-1].start} of input size {p.shape}"
        )
    y = (
        p.new_array(buffer_pool.empty)
        if out is None
        else p.require_output(out, None, (gamma, beta))
    )
    found = []
    for part in v.slices:
        _, moments = batch_norm_train(v.x[part], gamma.values, beta.values, out=y[part], **options)
        found.append(moments)
    return y if out is None else out, found


def ghost_batch_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Sequence[Moments],
    size: SupportsIndex,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `ghost_batch_norm`, one virtual batch after the other.

    Parameters
    ----------
    moments, size
        The moments that `ghost_batch_norm` returned, and the size that it was given.
    dy, x, weight, axis, eps, out, n_threads
        As in `batch_norm_train_backward`.

    Returns
    -------
    dx, dweight, dbias : ndarray
        As `batch_norm_train_backward`; dweight and dbias are summed over the virtual batches in
        float64.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train_backward`; and if `moments` does not fit the virtual batches.

    References
    ----------
    E. Hoffer, I. Hubara, D. Soudry, NIPS 2017, algorithm 1, differentiated.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[0.0], [2.0], [5.0], [9.0]]), np.array([[1.0], [0.0], [0.0], [1.0]])
    >>> y, moments = bncore.ghost_batch_norm(x, 2, eps=0.0)
    >>> bncore.ghost_batch_norm_backward(dy, x, moments, 2, eps=0.0)[1:]
    (array([0.]), array([2.]))
    """
    v = VirtualBatches(x, size, axis)
    p = v.problem
    source = p.like_x("dy", dy)
    gamma = p.optional("weight", weight)
    options: dict[str, Any] = {"axis": axis, "eps": scalars.real("eps", eps, 0.0)}
    options["n_threads"] = resolve(n_threads)
    if not isinstance(moments, Sequence) or len(moments) != len(v.slices):
        got = f"{len(moments)}" if isinstance(moments, Sequence) else scalars.shown(moments)
        raise ValueError(f"moments: expected a list of {len(v.slices)} Moments, got {got}")
    given = [checked_moments("moments", one, p.channels) for one in moments]
    for number, (one, count) in enumerate(zip(given, v.counts, strict=True)):
        place = f"virtual batch {number}, channel"
        require_counts(one, one.count == count, f"counts {v.counts}", place)
    dx = p.new_array(buffer_pool.empty) if out is None else p.require_output(out, source, (gamma,))
    wide = np.ones(p.channels) if gamma.values is None else gamma.values  # float64 sums
    dweight, dbias = p.zeros(), p.zeros()
    for part, one in zip(v.slices, given, strict=True):
        _, *sums = batch_norm_train_backward(
            source[part], v.x[part], one, wide, out=dx[part], **options
        )
        with silent_arithmetic():
            dweight += sums[0]
            dbias += sums[1]
    dx = dx if out is None else out
    return dx, p.parameter_gradient(dweight, gamma), p.parameter_gradient(dbias, gamma)
