"""Batch norm of chunked arrays: each pass over the data is one step of a graph.

Training has two steps, as in `bncore.functions.steps`: moments, then y; gradient sums, then dx.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, TypeAlias

import dask.array as da
import numpy.typing as npt
from dask.graph_manipulation import clone

import bncore
from bncore.arguments import layout, scalars
from bncore.arguments.weights import NanPolicy
from bncore.dask import chunks, graphs
from bncore.dask.graphs import Operand
from bncore.dask.statistics import all_moments
from bncore.statistics import Moments

Lazy: TypeAlias = npt.ArrayLike | da.Array


def normalize(
    x: da.Array,
    moments: Moments | da.Array,
    weight: Lazy | None = None,
    bias: Lazy | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    where: Lazy | None = None,
    weights: Lazy | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> da.Array:
    """Describe a chunked array normalized by given moments, chunk by chunk.

    Parameters
    ----------
    x : dask.array.Array of float16, bfloat16, float32 or float64, of 2 or more dimensions
        With NumPy arrays as chunks.
    moments : bncore.Moments, or what `moments` returned
        The moments of x or of other data.
    weight, bias : (C,) array_like or dask.array.Array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis, eps, nan_policy, fill
        As in `bncore.normalize`.
    where, weights : array_like or dask.array.Array, optional
        As in `bncore.normalize`; they get x's chunks.

    Returns
    -------
    dask.array.Array
        y, of x's dtype, shape and chunks.

    Raises
    ------
    TypeError, ValueError
        As `bncore.normalize`, when the graph is built; and if x is no Dask array.

    Examples
    --------
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[0.0], [2.0], [4.0], [6.0]], chunks=(2, 1))
    >>> bncore.dask.normalize(x, bncore.dask.moments(x), eps=0.0).compute().T.round(3)
    array([[-1.342, -0.447,  0.447,  1.342]])
    """
    graphs.data("x", x)
    channel = graphs.channel_axis(x, axis)
    own, numbers = graphs.given_moments(x, channel, moments)
    gamma = graphs.optional(x, channel, "weight", weight)
    beta = graphs.optional(x, channel, "bias", bias)
    counted = graphs.counted(x, where, weights, nan_policy, fill)
    options: dict[str, Any] = {"axis": channel, "eps": eps, "nan_policy": nan_policy, "fill": fill}
    empty = graphs.trial(x, channel)
    bncore.normalize(
        empty, graphs.moments_or_stand_in(own, x.shape[channel]), graphs.or_ones(gamma),
        graphs.or_ones(beta), **options,
    )  # fmt: skip
    operands = (graphs.whole(x), *counted, own, numbers, gamma, beta)
    meta = graphs.empty(x.ndim, empty.dtype)
    return graphs.step(
        chunks.normalized, "normalize", range(x.ndim), operands, meta, total=x.shape[channel],
        **options,
    )  # fmt: skip


def batch_norm_infer(
    x: da.Array,
    mean: Lazy,
    var: Lazy,
    weight: Lazy | None = None,
    bias: Lazy | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: Lazy | None = None,
    scale: float | None = None,
    where: Lazy | None = None,
    weights: Lazy | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> da.Array:
    """Describe a chunked array normalized by a given mean and variance, chunk by chunk.

    Parameters
    ----------
    x : dask.array.Array of 2 or more dimensions
        Of a dtype that `bncore.batch_norm_infer` takes, with NumPy arrays as chunks.
    mean, var, weight, bias : (C,) array_like or dask.array.Array of float
        As in `bncore.batch_norm_infer`.  A negative variance of a lazy array is found when a chunk
        is computed.
    axis, eps, activation, negative_slope, scale, nan_policy, fill
        As in `bncore.batch_norm_infer`.
    residual, where, weights : array_like or dask.array.Array, optional
        As in `bncore.batch_norm_infer`; they get x's chunks.

    Returns
    -------
    dask.array.Array
        y, of x's dtype (float32 for integers), shape and chunks.

    Raises
    ------
    TypeError, ValueError
        As `bncore.batch_norm_infer`, when the graph is built; and if x is no Dask array.

    Examples
    --------
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[1.0, 8.0], [3.0, 6.0]], chunks=(1, 2))
    >>> bncore.dask.batch_norm_infer(x, [0.0, 4.0], [1.0, 4.0], eps=0.0).compute()
    array([[1., 2.],
           [3., 1.]])
    """
    graphs.data("x", x, integers=True)
    channel = graphs.channel_axis(x, axis)
    given = [
        graphs.per_channel(x, channel, "mean", mean),
        graphs.per_channel(x, channel, "var", var),
        graphs.optional(x, channel, "weight", weight),
        graphs.optional(x, channel, "bias", bias),
    ]
    counted = graphs.counted(x, where, weights, nan_policy, fill)
    options: dict[str, Any] = {
        "axis": channel, "eps": eps, "activation": activation, "negative_slope": negative_slope,
        "scale": scale, "nan_policy": nan_policy, "fill": fill,
    }  # fmt: skip
    known: Any = [
        graphs.or_ones(operand) if isinstance(value, da.Array) else value
        for operand, value in zip(given, (mean, var, weight, bias), strict=True)
    ]
    y = bncore.batch_norm_infer(graphs.trial(x, channel), *known, **options)
    other = graphs.NOTHING if residual is None else graphs.like(x, "residual", residual, y.dtype)
    operands = (graphs.whole(x), *counted, *given, other)
    meta = graphs.empty(x.ndim, y.dtype)
    return graphs.step(chunks.inferred, "infer", range(x.ndim), operands, meta, **options)


def batch_norm_train(
    x: da.Array,
    weight: Lazy | None = None,
    bias: Lazy | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    where: Lazy | None = None,
    weights: Lazy | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
    split_every: int | dict[int, int] | None = None,
    recompute: bool = False,
) -> tuple[da.Array, da.Array]:
    """Describe batch norm by the statistics of all chunks: moments in a first step, y in a second.

    Parameters
    ----------
    x, weight, bias, axis, eps, where, weights, nan_policy, fill
        As in `normalize`.
    split_every
        As in `moments`.
    recompute : bool, default False
        Between the two steps, Dask holds all chunks of x in memory.  True makes a second graph of
        x, so that every chunk is loaded or computed again for the second step.

    Returns
    -------
    y : dask.array.Array
        Of x's dtype, shape and chunks.
    moments : dask.array.Array
        As `moments` returns them, for `batch_norm_train_backward`.

    Raises
    ------
    TypeError, ValueError
        As `bncore.batch_norm_train`, when the graph is built; and if x is no Dask array.

    Examples
    --------
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[0.0], [2.0], [4.0], [6.0]], chunks=(2, 1))
    >>> y, moments = bncore.dask.batch_norm_train(x, eps=0.0)
    >>> y.compute().T.round(3)
    array([[-1.342, -0.447,  0.447,  1.342]])
    """
    graphs.data("x", x)
    channel = graphs.channel_axis(x, axis)
    counted = graphs.counted(x, where, weights, nan_policy, fill)
    if where is weights is None and nan_policy != "omit":
        graphs.require_batch(x, channel)
    moments = all_moments(x, channel, counted, split_every, None, None, nan_policy)
    again = (x, counted[0].array, counted[1].array)
    if scalars.boolean("recompute", recompute):
        again = clone(*again)
    x, where, weights = again
    y = normalize(
        x, moments, weight, bias, axis=channel, eps=eps, where=where, weights=weights,
        nan_policy=nan_policy, fill=fill,
    )  # fmt: skip
    return y, moments


def batch_norm_train_backward(
    dy: Lazy,
    x: da.Array,
    moments: Moments | da.Array,
    weight: Lazy | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    where: Lazy | None = None,
    weights: Lazy | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
    split_every: int | dict[int, int] | None = None,
    recompute: bool = False,
) -> tuple[da.Array, da.Array, da.Array]:
    """Describe the gradients of `batch_norm_train`: their sums in a first step, dx in a second.

    Parameters
    ----------
    dy : array_like or dask.array.Array
        Gradient of the loss with respect to y, of x's shape and dtype.  It gets x's chunks.
    x, weight, axis, eps, where, weights, nan_policy, fill
        As in the forward call.
    moments : bncore.Moments, or what `batch_norm_train` returned
        The moments of the forward call.
    split_every
        As in `moments`.
    recompute : bool, default False
        As in `batch_norm_train`, for dy and x.

    Returns
    -------
    dx : dask.array.Array
        Of x's dtype, shape and chunks.
    dweight, dbias : (C,) dask.array.Array
        In weight's dtype.  Without a weight they have x's dtype, or float32 if that has 16 bits.

    Raises
    ------
    TypeError, ValueError
        As `bncore.grad_sums`, when the graph is built; and if x is no Dask array.  Counts of lazy
        moments are checked when chunks are computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import bncore.dask
    >>> x = da.from_array([[0.0], [2.0], [4.0], [6.0]], chunks=(2, 1))
    >>> dy = da.from_array([[1.0], [0.0], [0.0], [0.0]], chunks=(2, 1))
    >>> y, moments = bncore.dask.batch_norm_train(x, eps=0.0)
    >>> dx, dweight, dbias = bncore.dask.batch_norm_train_backward(dy, x, moments, eps=0.0)
    >>> dx.compute().T.round(3), dweight.compute().round(3), dbias.compute()
    (array([[ 0.134, -0.179, -0.045,  0.089]]), array([-1.342]), array([1.]))
    """
    graphs.data("x", x)
    channel = graphs.channel_axis(x, axis)
    gradient = graphs.like(x, "dy", dy, x.dtype)
    own, numbers = graphs.given_moments(x, channel, moments)
    gamma = graphs.optional(x, channel, "weight", weight)
    counted = graphs.counted(x, where, weights, nan_policy, fill)
    options: dict[str, Any] = {"axis": channel, "eps": eps, "nan_policy": nan_policy, "fill": fill}
    empty = graphs.trial(x, channel)
    seen = graphs.moments_or_stand_in(own, x.shape[channel])
    bncore.grad_sums(empty, empty, seen, **options)
    options["total"] = x.shape[channel]
    to = layout.statistic_dtype(empty.dtype) if gamma.array is None else gamma.array.dtype

    operands: tuple[Operand, ...] = (gradient, graphs.whole(x), *counted)
    parts = graphs.step(
        chunks.sums_of, "grad-sums", range(x.ndim), (*operands, own, numbers),
        graphs.empty(x.ndim, object),
        adjust_chunks={i: 1 for i in range(x.ndim) if i != channel}, **options,
    )  # fmt: skip
    others = tuple(i for i in range(x.ndim) if i != channel)
    sums = Operand(graphs.reduced(parts, "grad-sums", others, False, split_every), (channel,))
    if scalars.boolean("recompute", recompute):
        lazy = None if own.axes is None else own.array
        again = clone(*(operand.array for operand in operands), omit=lazy)
        operands = tuple(
            operand._replace(array=array) for operand, array in zip(operands, again, strict=True)
        )
    dx = graphs.step(
        chunks.input_gradient, "grad-input", range(x.ndim), (*operands, own, numbers, sums, gamma),
        graphs.empty(x.ndim, empty.dtype), **options,
    )  # fmt: skip
    meta = graphs.empty(1, to)
    dweight = graphs.step(chunks.sum_dy_xhat_of, "dweight", (channel,), [sums], meta, to=to)
    dbias = graphs.step(chunks.sum_dy_of, "dbias", (channel,), [sums], meta, to=to)
    return dx, dweight, dbias
