"""Standardize the features of a table or the channels of an array, and undo it."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import Stat
from bncore.arguments.weights import NanPolicy
from bncore.functions.infer import batch_norm_infer
from bncore.functions.steps import moments as moments_of
from bncore.statistics import Moments, checked_moments

Array = npt.NDArray[np.floating[Any]]


def _variances(moments: Moments, correction: object) -> Stat:
    """Return the variance of every channel, and 1 for a channel whose values are all the same."""
    varied = moments.var(scalars.real("correction", correction))
    return np.where(moments.m2 == 0.0, 1.0, varied)


def standardize(
    x: npt.ArrayLike,
    moments: Moments | None = None,
    *,
    axis: SupportsIndex = 1,
    correction: float = 0,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Moments]:
    """Subtract the mean of every channel (feature), and divide by its standard deviation.

    A constant channel becomes 0: if all of its values are the same, the divisor is 1 instead of 0,
    as in scikit-learn's ``StandardScaler``.

    Parameters
    ----------
    x : array_like of 2 or more dimensions
        A dtype that `batch_norm_infer` takes; integers give a float32 y.  In a table of samples by
        features, the features lie along axis 1.
    moments : Moments, optional
        The moments to standardize by, such as those of the training data for test data; those of x
        by default.
    axis : int, default 1
        The channel axis.
    correction : float, default 0
        The variance is m2 / (count - correction): 0 as in scikit-learn, 1 as in R and pandas.
    out, n_threads
        As in `batch_norm_train`.
    where, weights, nan_policy, fill
        What counts in the moments, and what y is where the weight is 0, as in `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    moments : Moments
        The moments that x was standardized by, to be passed to `destandardize`.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if `moments` has another number of channels.  One value per
        channel is allowed.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> table = np.array([[1.0, 7.0, 0.0], [3.0, 7.0, np.nan]])
    >>> y, moments = bncore.standardize(table, nan_policy="omit", fill=0.0)
    >>> y
    array([[-1.,  0.,  0.],
           [ 1.,  0.,  0.]])
    >>> bncore.destandardize(y, moments)
    array([[1., 7., 0.],
           [3., 7., 0.]])
    """
    array = data_array("x", x, integers=True)
    counts: dict[str, Any] = {"where": where, "weights": weights, "nan_policy": nan_policy}
    options: dict[str, Any] = {"axis": axis, "n_threads": n_threads}
    if moments is None:
        array = layout.in_one_block(array)  # one copy for both passes
        moments = moments_of(array, **options, **counts)
    else:
        moments = checked_moments("moments", moments, _channels(array, axis))
    var = _variances(moments, correction)
    y = batch_norm_infer(array, moments.mean, var, eps=0.0, out=out, fill=fill, **options, **counts)
    return y, moments


def destandardize(
    x: npt.ArrayLike,
    moments: Moments,
    *,
    axis: SupportsIndex = 1,
    correction: float = 0,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Undo `standardize`: multiply every channel by its standard deviation, and add its mean.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        What `standardize` returned, or other numbers in that scale, such as predictions.
    moments : Moments
        As `standardize` returned them.
    axis, correction, n_threads
        As in `standardize`.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives the result; it may be x itself.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape, dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As `standardize`.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> y, moments = bncore.standardize(np.array([[1.0], [5.0]]))
    >>> bncore.destandardize(np.array([[0.5]]), moments)
    array([[4.]])
    """
    array = data_array("x", x)
    moments = checked_moments("moments", moments, _channels(array, axis))
    with silent_arithmetic():
        std = np.sqrt(_variances(moments, correction))
    zeros, ones = np.zeros_like(std), np.ones_like(std)
    return batch_norm_infer(
        array, zeros, ones, std, moments.mean, axis=axis, eps=0.0, out=out, n_threads=n_threads
    )


def _channels(array: Array, axis: object) -> int:
    """Return the number of channels, and refuse an array that has no such axis."""
    if array.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
    return int(array.shape[scalars.one_axis(axis, array.ndim)])
