"""Layer norm: statistics for every row, a weight for every column.

It is one kernel call: group norm of one group, whose channels are the columns.  With masks or
weights it needs two, since the kernels of batch norm take one weight per mean and variance: the
first normalizes, and its channels are the rows; the second applies the weights, and its channels
are the columns.  Both work on a few rows at a time, so that the rows stay in cache.  Rows of 16-bit
values are converted to float32 for both calls, so that the results are rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array, plain_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import NoParameter, Parameter, parameter
from bncore.arguments.problem import Problem
from bncore.arguments.weights import ALL_ONE, GivenWeights, NanPolicy, Weights, is_nan, weights_of
from bncore.backends import current
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
)

Array: TypeAlias = npt.NDArray[np.floating[Any]]


class RowWeights(NamedTuple):
    """The weights of some rows, for a kernel call over rows and for one over columns."""

    lines: Weights | None = None
    columns: Weights | None = None

    @property
    def filling(self) -> Weights | None:
        """What `normalize` takes for the columns."""
        return None if self.columns is None or self.columns.fill is None else self.columns


CHUNK_BYTES = 1 << 19  # x, dy and two temporaries of this size fit in the second-level cache


class Rows:
    """x as rows; the values of a row are normalized together.

    Attributes
    ----------
    problem : Problem
        The problem of x in C order: x's own memory, or one copy.
    number, width : the number of rows, and of values in a row
    shape : the shape of the normalized axes
    weights : what counts
    """

    weights: GivenWeights = ALL_ONE

    def __init__(self, x: object, axis: object) -> None:
        array = data_array("x", x)
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        first = scalars.one_axis(axis, array.ndim)
        if first == 0:
            raise ValueError("axis: expected an axis other than 0, the batch axis, got 0")
        rows = layout.block(array, tuple(range(array.ndim)))
        self.problem = Problem(rows, 0, source=array)
        self.shape = array.shape[first:]
        _, self.number, self.width = layout.canonical(array.shape, 0, first)
        self._lead = array.shape[:first]

    def __iter__(self) -> Iterator[slice]:
        """Yield ranges of rows, one for each pair of kernel calls."""
        size = layout.statistic_dtype(self.problem.dtype).itemsize
        each = max(CHUNK_BYTES // (self.width * size), 1)
        for start in range(0, self.number, each):
            yield slice(start, min(start + each, self.number))

    def weigh(self, where: object, weights: object, nan_policy: object, fill: object) -> None:
        """Check the arguments that say what counts; refuse a NaN if they say so."""
        shape = self.problem.shape
        self.weights, policy = weights_of(shape, where, weights, nan_policy, fill)
        for rows in self if policy == "raise" and not self.problem.empty else ():
            bad = is_nan(self.of(self.problem.x, rows))
            if self.weights.values is not None:
                bad &= self._values(rows) != 0
            if bad.any():
                at = rows.start + int(bad.any(axis=1).argmax())
                raise ValueError(f"x: expected no NaN with nan_policy='raise', got NaN in row {at}")
        self.weights = self.weights.where_needed(self.problem.x)

    def _values(self, rows: slice) -> Array:
        """Return the weights of a range of rows."""
        lead = np.unravel_index(np.arange(rows.start, rows.stop), self._lead)
        every = np.broadcast_to(self.weights.values, self.problem.shape)  # type: ignore[arg-type]
        return every[lead].reshape(-1, self.width)

    def weights_of(self, given: Array, rows: slice, count: Stat) -> RowWeights:
        """Return the weights of a range of rows, whose values are `given` and not uint16."""
        w = self.weights
        if not w.weighs:
            return RowWeights()
        values: Any = np.uint8(1) if w.values is None else self._values(rows)
        if w.omit_nan:
            values = np.where(np.isnan(given), values.dtype.type(0), values)
        return RowWeights(
            Weights(_lines(values), False, w.fill, count),
            Weights(_columns(values), False, w.fill, np.zeros(self.width)),
        )

    def whole(self, values: Array) -> Array:
        """Return an array of x's size as the kernels of group norm take it."""
        return values.reshape(self.number, 1, self.width, 1)

    def of(self, values: Array, rows: slice) -> Array:
        """Return a range of rows of an array of x's size."""
        return values.reshape(self.number, self.width)[rows]

    def optional(self, name: str, value: object) -> Parameter | NoParameter:
        """Return an argument that has the normalized shape as float64, or None."""
        if value is None:
            return NoParameter()
        array = plain_array(name, value)
        if array.shape != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {array.shape}")
        return Parameter(parameter(name, array.reshape(-1), None).values, array)


def _lines(values: Array) -> Array:
    """Return the array with its rows as the channels of a kernel call."""
    return values.reshape(1, *values.shape)


def _columns(values: Array) -> Array:
    """Return the array with its columns as the channels of a kernel call."""
    return values.reshape(*values.shape, 1)


def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = -1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Moments]:
    """Normalize every sample over its last axes, with one weight per normalized element.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        It is copied once if it is not C-contiguous, aligned and in native byte order.
    weight, bias : array_like of float, of shape ``x.shape[axis:]``, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default -1
        This axis and all after it are normalized together; it must not be 0.
    eps, n_threads
        As in `batch_norm_train`.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives y.  It is `x` itself or does not
        overlap x.
    where, weights, nan_policy, fill
        As in `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new C-contiguous array.
    moments : Moments
        The moments of every row, for the flattened ``x.shape[:axis]``.  Pass them to
        `layer_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if weight or bias does not have the normalized shape.

    Notes
    -----
    For one weight per channel over ``(channels, inner)``, use `group_norm` with one group.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450 (2016), equations 3
    and 4.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> y, moments = bncore.layer_norm(np.array([[0.0, 2.0], [5.0, 9.0]]), [1.0, 3.0], eps=0.0)
    >>> y
    array([[-1.,  3.],
           [-1.,  3.]])
    """
    kernels, threads = current().kernels, resolve(n_threads)
    r = Rows(x, axis)
    p = r.problem
    gamma, beta = r.optional("weight", weight), r.optional("bias", bias)
    eps = scalars.real("eps", eps, 0.0)
    r.weigh(where, weights, nan_policy, fill)
    _require_row(r)
    inputs = (gamma, beta, *r.weights.sources)
    y = p.output(out, parameters=inputs, allocate=buffer_pool.empty)
    mean, m2, count = np.full(r.number, np.nan), np.zeros(r.number), counts_of(r.width, r.number)
    if not (p.empty or r.weights.weighs):
        affine = gamma.values, beta.values
        arrays = r.whole(y.values), mean, m2, r.whole(p.x)
        kernels.group_norm(*arrays, *affine, 1, eps, threads)
        return y.finish(), trusted_moments(count, mean, m2)
    plain = gamma.values is None and beta.values is None
    zeros, ones = np.zeros(r.width), np.ones(r.width)
    for rows in () if p.empty else r:
        target, given = r.of(y.values, rows), r.of(p.x, rows)
        wide = in_float32(given)
        result = target if wide is given else wide
        own = r.weights_of(wide, rows, count[rows])
        kernels.train(
            _lines(result), mean[rows], m2[rows], _lines(wide), None, None, eps, threads, None,
            own.lines,
        )  # fmt: skip
        if not plain:
            columns = _columns(result)
            kernels.normalize(
                columns, columns, zeros, ones, gamma.values, beta.values, 0.0, threads, None,
                own.filling,
            )  # fmt: skip
        store(target, result)
    return y.finish(), trusted_moments(count, mean, m2)


def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = -1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `layer_norm`.

    ``dx = invstd * (g - mean(g) - xhat * mean(g * xhat))`` with ``g = weight * dy``; each mean is
    over one row.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of x's shape and dtype.
    x, weight, axis, eps, n_threads
        As in the forward call.
    moments : Moments
        As `layer_norm` returned them for this x.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives dx.  It may be `dy` or `x` itself.
    where, weights, nan_policy, fill
        As in `batch_norm_train_backward`.

    Returns
    -------
    dx : ndarray
        `out`, or a new C-contiguous array.
    dweight, dbias : ndarray of shape ``x.shape[axis:]``
        Summed in float64, in weight's dtype.  Without a weight they have x's dtype, or float32 if
        that has 16 bits.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`; and if `moments` are not those of x.

    Notes
    -----
    The terms of all sums have the type of the arithmetic: x's dtype, or float32 if that has 16
    bits.  Up to eight of a row, and four of a column, are added in this type, and then in float64.
    The error of a float32 gradient is therefore relative to the sum of the absolute values of its
    terms.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450 (2016), equation 4,
    differentiated.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[0.0, 2.0]]), np.array([[1.0, 3.0]])
    >>> y, moments = bncore.layer_norm(x, eps=0.0)
    >>> bncore.layer_norm_backward(dy, x, moments, eps=0.0)
    (array([[0., 0.]]), array([-1.,  3.]), array([1., 3.]))
    """
    kernels, threads = current().kernels, resolve(n_threads)
    r = Rows(x, axis)
    p = r.problem
    gradient, source = p.gradient(dy)
    found = checked_moments("moments", moments, r.number)
    r.weigh(where, weights, nan_policy, fill)
    require_own_counts(found, r.width, r.weights, f"count {r.width}", "row")
    gamma = r.optional("weight", weight)
    eps = scalars.real("eps", eps, 0.0)
    dx = p.output(out, source, (gamma, *r.weights.sources), allocate=buffer_pool.empty)
    dbias, dweight = np.zeros(r.width), np.zeros(r.width)
    zeros, ones = np.zeros(r.width), np.ones(r.width)
    mean, var = found.mean, found.var()
    if not (p.empty or r.weights.weighs):
        arrays = r.whole(gradient), r.whole(p.x), mean, var
        results = r.whole(dx.values), dbias, dweight
        kernels.group_norm_backward(*results, *arrays, gamma.values, 1, eps, threads)
    for rows in r if r.weights.weighs and not p.empty else ():
        target = r.of(dx.values, rows)
        given, slope = (in_float32(r.of(values, rows)) for values in (p.x, gradient))
        result = target if given.dtype == target.dtype else given
        statistics = mean[rows], var[rows]
        own = r.weights_of(given, rows, found.count[rows])
        scratch = np.empty_like(given)
        kernels.normalize(
            _lines(scratch), _lines(given), *statistics, None, None, eps, threads
        )  # xhat
        sum_dy, sum_dy_xhat = np.zeros((2, r.width))
        kernels.grad_sums(
            sum_dy, sum_dy_xhat, _columns(slope), _columns(scratch), zeros, ones, 0.0, threads,
            own.columns,
        )  # fmt: skip
        with silent_arithmetic():
            dbias += sum_dy
            dweight += sum_dy_xhat
        if gamma.values is not None:
            kernels.normalize(
                _columns(scratch), _columns(slope), zeros, ones, gamma.values, None, 0.0, threads
            )
            slope = scratch
        unused = np.zeros(len(given)), np.zeros(len(given))
        kernels.train_backward(
            _lines(result), *unused, _lines(slope), _lines(given), *statistics, None, eps, threads,
            None, own.lines,
        )  # fmt: skip
        store(target, result)
    return dx.finish(), _parameter(p, r, dweight, gamma), _parameter(p, r, dbias, gamma)


def _require_row(r: Rows) -> None:
    """Refuse rows of one value, whose variance is always 0."""
    if r.width == 1 and r.number and not r.weights.weighs:
        raise ValueError(f"Expected more than 1 value per row, got input size {r.problem.shape}")


def _parameter(p: Problem, r: Rows, total: Stat, of: Any) -> Array:
    return p.parameter_gradient(total, of).reshape(r.shape)
