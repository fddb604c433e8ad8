"""Moments, mean and variance of chunked arrays."""

from __future__ import annotations

from typing import SupportsIndex

import dask.array as da
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import integer_scale, is_integer
from bncore.arguments.weights import NanPolicy
from bncore.dask import chunks, graphs
from bncore.dask.graphs import Operand
from bncore.functions.mean_var import FLOAT64, Axes, given_correction


def parts_of(
    x: da.Array,
    axes: tuple[int, ...],
    counted: tuple[Operand, Operand],
    keepdims: bool,
    split_every: object,
    dtype: object,
    scale: object,
    nan_policy: NanPolicy,
) -> da.Array:
    """Return the moments over some axes: an array of one `chunks.Part` for each chunk that is kept.

    Its shape and chunks are those of the means.
    """
    factor = integer_scale(scale, x._meta)
    exact = scalars.float64_sums("dtype", dtype)
    parts = graphs.step(
        chunks.moments_of, "moments", range(x.ndim), (graphs.whole(x), *counted),
        graphs.empty(x.ndim, object), adjust_chunks=dict.fromkeys(axes, 1), axis=axes,
        keepdims=keepdims, in_float64=exact, scale=factor, nan_policy=nan_policy,
    )  # fmt: skip
    return graphs.reduced(parts, "moments", axes, keepdims, split_every)


def moments(
    x: da.Array,
    *,
    axis: SupportsIndex = 1,
    dtype: npt.DTypeLike | None = None,
    scale: float | None = None,
    where: npt.ArrayLike | da.Array | None = None,
    weights: npt.ArrayLike | da.Array | None = None,
    nan_policy: NanPolicy = "propagate",
    split_every: int | dict[int, int] | None = None,
) -> da.Array:
    """Describe the moments of every channel of a chunked array; `compute` gives `bncore.Moments`.

    Parameters
    ----------
    x : dask.array.Array of 2 or more dimensions
        Of a dtype that `bncore.moments` takes, with NumPy arrays as chunks.  Sizes of chunks may be
        unknown, except along the channel axis.
    axis : int, default 1
        The channel axis.
    dtype, scale
        As in `bncore.moments`.
    where, weights : array_like or dask.array.Array, optional
        What counts, as in `bncore.moments`; they broadcast against x.  They get x's chunks.
    nan_policy : {"propagate", "omit", "raise"}, default "propagate"
        As in `bncore.moments`.  A NaN that is not allowed is found when its chunk is computed.
    split_every : int or dict, optional
        The most states that one task merges, as in `dask.array.reduction`; a dict gives the number
        of neighbours along each axis.  By default Dask's setting ``split_every``, or 8.

    Returns
    -------
    dask.array.Array
        An array of dtype object without dimensions.  Its one element is a `bncore.Moments`, which
        ``compute()`` returns.  `normalize` and `batch_norm_train_backward` take it as it is.

    Raises
    ------
    TypeError, ValueError
        As `bncore.moments`, when the graph is built; and if x is no Dask array.

    Notes
    -----
    A chunk in C order is read where it is.  Another one is copied into C order, because the memory
    order of chunks that travel between workers may change, and with it the last bits.

    Examples
    --------
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[0.0, 1.0], [2.0, 5.0], [4.0, 6.0]], chunks=(2, 1))
    >>> lazy = bncore.dask.moments(x)
    >>> lazy.compute()
    Moments(count=array([3., 3.]), mean=array([2., 4.]), m2=array([ 8., 14.]))
    """
    graphs.data("x", x, integers=True)
    channel = graphs.channel_axis(x, axis)
    counted = graphs.counted(x, where, weights, nan_policy)
    return all_moments(x, channel, counted, split_every, dtype, scale, nan_policy)


def all_moments(
    x: da.Array,
    channel: int,
    counted: tuple[Operand, Operand],
    split_every: object,
    dtype: object,
    scale: object,
    nan_policy: NanPolicy,
) -> da.Array:
    """Return the moments of all channels as one element; the arguments are checked."""
    others = tuple(i for i in range(x.ndim) if i != channel)
    parts = parts_of(x, others, counted, False, split_every, dtype, scale, nan_policy)
    meta = graphs.empty(0, object)
    return graphs.step(chunks.joined, "moments-of-all", (), [Operand(parts, (channel,))], meta)


def mean_var(
    x: da.Array,
    *,
    axis: Axes | None = None,
    correction: float | None = None,
    keepdims: bool = False,
    dtype: npt.DTypeLike | None = None,
    scale: float | None = None,
    ddof: float | None = None,
    where: npt.ArrayLike | da.Array | None = None,
    weights: npt.ArrayLike | da.Array | None = None,
    nan_policy: NanPolicy = "propagate",
    split_every: int | dict[int, int] | None = None,
) -> tuple[da.Array, da.Array]:
    """Describe mean and variance over some axes of a chunked array, in one pass over its chunks.

    ``dask.compute(mean, var)`` computes both from the same pass.

    Parameters
    ----------
    x : dask.array.Array
        Of a dtype that `bncore.mean_var` takes, with NumPy arrays as chunks.  Sizes of chunks may
        be unknown.
    axis : int or tuple of int, optional
        The axes to *reduce*, as in NumPy; all axes by default.
    correction, keepdims, dtype, scale, ddof
        As in `bncore.mean_var`.
    where, weights, nan_policy, split_every
        As in `moments`.

    Returns
    -------
    mean, var : dask.array.Array
        Of x's dtype or of `dtype`; float64 for integers.

    Raises
    ------
    TypeError, ValueError
        As `bncore.mean_var`, when the graph is built; and if x is no Dask array.

    Notes
    -----
    A chunk is copied once if it is not in C order, or if the axes that are kept do not lie
    together.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[0.0, 1.0], [2.0, 5.0], [4.0, 6.0]], chunks=(2, 1))
    >>> dask.compute(*bncore.dask.mean_var(x, axis=0, ddof=1))
    (array([2., 4.]), array([4., 7.]))
    """
    graphs.data("x", x, integers=True)
    axes = tuple(sorted(scalars.several_axes(axis, x.ndim)))
    keep = scalars.boolean("keepdims", keepdims)
    subtracted = given_correction(correction, ddof)
    subtracted = scalars.real("correction" if ddof is None else "ddof", subtracted)
    counted = graphs.counted(x, where, weights, nan_policy)
    parts = parts_of(x, axes, counted, keep, split_every, dtype, scale, nan_policy)
    wide = is_integer(x._meta) or dtype is not None
    meta = graphs.empty(parts.ndim, FLOAT64 if wide else layout.dtype_of(x._meta))
    source = graphs.whole(parts)
    mean = graphs.step(chunks.mean_of, "mean", range(parts.ndim), [source], meta, to=meta.dtype)
    var = graphs.step(
        chunks.var_of,
        "var",
        range(parts.ndim),
        [source],
        meta,
        to=meta.dtype,
        correction=subtracted,
    )
    return mean, var


def normalized_over(
    x: da.Array,
    axis: Axes | None,
    *,
    eps: float,
    where: npt.ArrayLike | da.Array | None = None,
    weights: npt.ArrayLike | da.Array | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> da.Array:
    """Describe an array normalized by its moments over any axes, for labelled arrays."""
    graphs.data("x", x)
    axes = tuple(sorted(scalars.several_axes(axis, x.ndim)))
    counted = graphs.counted(x, where, weights, nan_policy, fill)
    parts = parts_of(x, axes, counted, True, None, None, None, nan_policy)
    return graphs.step(
        chunks.normalized_over, "normalize", range(x.ndim),
        (graphs.whole(x), *counted, graphs.whole(parts)), graphs.empty(x.ndim, x._meta.dtype),
        axis=axes, eps=scalars.real("eps", eps, 0.0), nan_policy=nan_policy, fill=fill,
    )  # fmt: skip
