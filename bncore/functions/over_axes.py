"""Moments and normalization over any axes, for data in pieces: chunked and labelled arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array
from bncore.arguments.weights import NanPolicy, broadcast
from bncore.functions.mean_var import Axes, Reduction
from bncore.functions.steps import normalize
from bncore.runtime.threads import resolve
from bncore.statistics import Moments, trusted_moments

Array = npt.NDArray[Any]


def reduced_moments(
    x: npt.ArrayLike,
    axis: Axes | None,
    keepdims: bool = False,
    *,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
) -> tuple[Moments, tuple[int, ...]]:
    """Compute the moments from which `mean_var` makes its results, so that pieces can be merged.

    Parameters
    ----------
    x, axis, keepdims, dtype, n_threads, scale, where, weights, nan_policy
        As in `mean_var`.

    Returns
    -------
    moments : Moments
        One channel for each value of the result of `mean_var`, in C order.
    shape : tuple of int
        The shape of that result.

    Examples
    --------
    >>> import numpy as np
    >>> reduced_moments(np.array([[0.0, 1.0], [2.0, 5.0]]), 0)
    (Moments(count=array([2., 2.]), mean=array([1., 3.]), m2=array([2., 8.])), (2,))
    """
    threads = resolve(n_threads)
    exact = scalars.float64_sums("dtype", dtype)
    r = Reduction(x, axis, keepdims, exact, scale)
    found = r.sums(r.weights(where, weights, nan_policy), threads, exact)
    return trusted_moments(*map(r.flat, found)), r.shape


def normalize_over(
    x: npt.ArrayLike,
    moments: Moments,
    axis: Axes | None,
    *,
    eps: float,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> Array:
    """Normalize by moments that were computed over any axes.

    Parameters
    ----------
    x, axis
        As in `mean_var`; x has a floating dtype.
    moments : Moments
        One channel for each value along the axes that are kept, in C order, as `reduced_moments`
        returns them.
    eps, n_threads, where, weights, nan_policy, fill
        As in `bncore.normalize`.

    Returns
    -------
    ndarray
        y, of x's shape and dtype.

    Notes
    -----
    x is copied once if it is not in C order, or if the axes that are kept do not lie together.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> normalize_over(x, reduced_moments(x, 0)[0], 0, eps=0.0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    array = data_array("x", x)
    reduced = scalars.several_axes(axis, array.ndim)
    kept = [i for i in range(array.ndim) if i not in reduced]
    first = kept[0] if kept else 0
    order = list(range(array.ndim))
    if order[first : first + len(kept)] != kept:
        order, first = [*kept, *sorted(reduced)], 0
    sizes = [array.shape[i] for i in order]
    canonical = layout.canonical(sizes, first, first + len(kept))

    def by_channel(values: Array) -> Array:
        return values.transpose(order).reshape(canonical)

    counted: dict[str, Any] = {
        name: by_channel(broadcast(name, value, array.shape))
        for name, value in (("where", where), ("weights", weights))
        if value is not None
    }
    y = normalize(
        by_channel(array), moments, eps=eps, n_threads=n_threads, nan_policy=nan_policy, fill=fill,
        **counted,
    )  # fmt: skip
    return y.reshape(sizes).transpose(np.argsort(order))
