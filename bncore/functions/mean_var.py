"""Mean, variance and standard deviation over any axes, with NumPy's names for the arguments."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import cast, data_array, integer_scale, is_integer, writable_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import Stat
from bncore.arguments.weights import (
    PROPAGATE,
    GivenWeights,
    NanPolicy,
    Place,
    given_weights,
    nan_that_counts,
)
from bncore.backends import current
from bncore.functions import integers
from bncore.runtime.threads import resolve
from bncore.statistics import variance

FLOAT64: np.dtype[Any] = np.dtype(np.float64)

Array = npt.NDArray[np.floating[Any]]
Axes = SupportsIndex | tuple[SupportsIndex, ...]


class Reduction:
    """x with some axes reduced, as (outer, kept, inner).

    Attributes
    ----------
    x : (outer, kept, inner) array, C-contiguous, aligned, native-endian
        uint16 for bfloat16, uint8 for bool; x's own memory if the kept axes lie together in it,
        otherwise one copy.
    dtype : the dtype of the results: x's in native byte order, or float64, also for integers
    scale : what integers are multiplied with, None for floats
    count : the number of values that are reduced to one
    shape : the shape of the results
    """

    __slots__ = ("_kept", "_place", "_squeezed", "count", "dtype", "scale", "shape", "x")

    def __init__(
        self,
        x: object,
        axis: object,
        keepdims: object,
        in_float64: bool = False,
        scale: object = None,
    ) -> None:
        array = data_array("x", x, integers=True)
        shape = array.shape
        reduced = set(scalars.several_axes(axis, array.ndim))
        keep = scalars.boolean("keepdims", keepdims)
        order = [i for i in layout.memory_order(array) if shape[i] != 1]
        kept = [i for i in order if i not in reduced]
        first = order.index(kept[0]) if kept else len(order)
        if order[first : first + len(kept)] != kept:
            # The copy keeps the fastest axes in memory fastest, so that it reads long runs.
            away = [i for i in order if i in reduced]
            order, first = (kept + away, 0) if order[-1] in reduced else (away + kept, len(away))
        sizes = [shape[i] for i in order]
        canonical = layout.canonical(sizes, first, first + len(kept))
        ones = tuple(i for i in range(array.ndim) if shape[i] == 1)
        values = layout.as_stored(layout.block(array, (*ones, *order)))
        self.x: layout.Array = values.reshape(canonical)
        self._place = Place(shape, (*ones, *order), kept, canonical)
        self.scale = integer_scale(scale, array)
        in_float64 = in_float64 or self.scale is not None
        self.dtype = FLOAT64 if in_float64 else layout.dtype_of(array)
        self.count = canonical.values_per_channel
        self._kept = kept
        self._squeezed = [shape[i] for i in kept]
        self.shape = tuple(
            1 if i in reduced else shape[i] for i in range(array.ndim) if keep or i not in reduced
        )

    def weights(self, where: object, weights: object, nan_policy: object) -> GivenWeights:
        """Check the arguments that say what counts; refuse a NaN if they say so."""
        given, policy = given_weights(self._place, where, weights, nan_policy)
        if policy == "raise" and self.scale is None:  # integers have no NaN
            at = nan_that_counts(self.x, given.values)
            if at is not None:
                place = self._place.index_of(at)
                raise ValueError(f"x: expected no NaN with nan_policy='raise', got NaN at {place}")
        return given

    def sums(self, given: GivenWeights, threads: int, exact: bool) -> tuple[Stat, Stat, Stat]:
        """Compute counts, means and m2 of the kept axes, in memory order."""
        size = self.x.shape[1]
        count = np.full(size, float(self.count))
        mean, m2 = np.full(size, np.nan), np.zeros(size)
        if self.x.size:
            own = given.record(count)
            integers.moments(current().kernels, mean, m2, self.x, threads, exact, self.scale, own)
        return count, mean, m2

    def flat(self, values: npt.NDArray[Any]) -> Any:
        """Return values of the kept axes in the order of these axes, not of memory; 1-D."""
        kept = sorted(range(len(self._kept)), key=self._kept.__getitem__)
        array = values.reshape(self._squeezed).transpose(kept)
        return np.ascontiguousarray(array).reshape(-1)

    def result(self, values: Stat) -> Any:
        """Return the values in the result's shape, or a scalar if that has no dimensions."""
        return self.flat(cast(values, self.dtype)).reshape(self.shape)[()]


def given_correction(correction: object, ddof: object) -> Any:
    """Return what to subtract from n; NumPy has two names for it, of which one is enough."""
    if ddof is None:
        return 0 if correction is None else correction
    if correction is not None:
        one, other = scalars.real("ddof", ddof), scalars.real("correction", correction)
        if one != other:
            raise ValueError(f"ddof: expected it or correction alone, got {one:g} and {other:g}")
    return ddof


def _require_fitting(name: str, out: object, result: Any) -> Array:
    """Return the memory of an output, which must have the result's shape and dtype."""
    array = writable_array(name, out)
    if array.shape != result.shape:
        raise ValueError(f"{name}: expected shape {result.shape}, got {array.shape}")
    if not layout.has_dtype(array, result.dtype):
        raise TypeError(f"{name}: expected {result.dtype}, got {array.dtype}")
    return array


def _written(out: Any, results: tuple[Any, Any]) -> tuple[Any, Any]:
    """Write both results to their outputs, and return these."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out: expected a pair of arrays, got {scalars.shown(out)}")
    pair = [_require_fitting("out", *both) for both in zip(out, results, strict=True)]
    if layout.share_memory(*pair):
        raise ValueError("out: expected two arrays apart from each other, got an overlap")
    for array, result in zip(pair, results, strict=True):
        np.copyto(array, result)
    return out[0], out[1]


def mean_var(
    x: npt.ArrayLike,
    *,
    axis: Axes | None = None,
    correction: float | None = None,
    keepdims: bool = False,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
    ddof: float | None = None,
    out: tuple[Array, Array] | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
) -> tuple[Any, Any]:
    """Compute mean and variance over some axes, in one pass.

    It replaces ``x.mean(axis), x.var(axis)``, and with ``nan_policy="omit"`` `numpy.nanmean` and
    `numpy.nanvar`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32, float64, bool or integers of 8 to 32 bits
        Integers are read as they are, and their mean and variance are float64.  x is copied once if
        it is not one contiguous block (in any memory order), is unaligned, has a foreign byte
        order, or if the axes that are kept do not lie together in memory.
    axis : int or tuple of int, optional
        The axes to *reduce*, as in NumPy (not the channel axis); all axes by default.
    correction, ddof : float, default 0
        Two names of one argument, as in NumPy.  The variance is the sum of squared deviations
        divided by ``n - correction``, where n is the sum of the weights if there are weights.
    keepdims : bool, default False
        Keep the reduced axes, with size 1.
    dtype : None or numpy.float64, default None
        The dtype of the results, and what 16-bit values are summed in, as in `moments`.  With None
        the results have x's dtype, as NumPy's; those of integers have float64.
    n_threads : int, optional
        The largest number of threads to use; `get_num_threads()` by default.
    scale : float, optional
        What integers are multiplied with, as in `moments`.
    out : pair of ndarray, optional
        Writable arrays of the results' shape and dtype that receive mean and variance.
    where, weights, nan_policy
        What counts, as in `batch_norm_train`; both arrays broadcast against x.

    Returns
    -------
    mean, var : ndarray or scalar, of x's dtype or of `dtype`
        `out`, or new arrays.  NaN if no value counts.  If n is not above `correction`, the variance
        is NaN, or inf if the squared deviations are not all 0.  There is no warning.

    Raises
    ------
    TypeError, ValueError
        If x has another dtype, an axis is given twice or does not exist in x, `dtype` is neither
        None nor float64, or another argument is not as described above.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.mean_var(np.array([[0.0, 1.0], [2.0, 5.0]]), axis=0)
    (array([1., 3.]), array([1., 4.]))
    >>> bncore.mean_var(np.array([[0.0, np.nan], [2.0, 5.0]]), axis=0, nan_policy="omit")
    (array([1., 5.]), array([1., 0.]))
    >>> bncore.mean_var(np.array([1.0, 4.0]), weights=[2, 1])  # of 1, 1, 4
    (np.float64(2.0), np.float64(2.0))
    """
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    exact = dtype is not None and scalars.float64_sums("dtype", dtype)
    subtracted = given_correction(correction, ddof)
    done: tuple[Any, Any] | None = None
    if fast is not None and where is weights is scale is None and nan_policy is PROPAGATE:
        done = fast.fast_mean_var(x, axis, subtracted, keepdims, threads, exact)
    if done is None:
        r = Reduction(x, axis, keepdims, exact, scale)
        subtracted = scalars.real("correction" if ddof is None else "ddof", subtracted)
        given = r.weights(where, weights, nan_policy)
        count, mean, m2 = r.sums(given, threads, exact)
        done = r.result(mean), r.result(variance(count, m2, subtracted))
    return done if out is None else _written(out, done)


def var(
    x: npt.ArrayLike,
    axis: Axes | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
    ddof: float | None = None,
    keepdims: bool = False,
    *,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    correction: float | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
) -> Any:
    """Compute the variance over some axes, with the arguments of `numpy.var` but `mean`.

    Parameters
    ----------
    x, axis, dtype, ddof, keepdims, where, weights, nan_policy, correction, n_threads, scale
        As in `mean_var`.
    out : ndarray, optional
        A writable array of the result's shape and dtype that receives it.

    Returns
    -------
    ndarray or scalar, of x's dtype or of `dtype`

    Examples
    --------
    >>> import bncore
    >>> bncore.var([[0.0, 1.0], [2.0, 5.0]], axis=0, ddof=1)
    array([2., 8.])
    """
    found = mean_var(
        x, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims, correction=correction,
        n_threads=n_threads, where=where, weights=weights, nan_policy=nan_policy, scale=scale,
    )[1]  # fmt: skip
    return _put(out, found)


def std(
    x: npt.ArrayLike,
    axis: Axes | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
    ddof: float | None = None,
    keepdims: bool = False,
    *,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    correction: float | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
) -> Any:
    """Compute the standard deviation over some axes, with the arguments of `numpy.std` but `mean`.

    Parameters
    ----------
    x, axis, dtype, out, ddof, keepdims, where, weights, nan_policy, correction, n_threads, scale
        As in `var`.  Values of 16 bits are summed in float64.

    Returns
    -------
    ndarray or scalar, of x's dtype or of `dtype`
        The square root of the variance, which is rounded once, so that a variance beyond the range
        of x's dtype does no harm.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.std(np.array([-300.0, 300.0], np.float16))
    np.float16(300.0)
    """
    array = data_array("x", x, integers=True)
    exact = scalars.float64_sums("dtype", dtype) or is_integer(array)
    squared = var(
        array, axis, np.float64, None, ddof, keepdims, correction=correction, n_threads=n_threads,
        where=where, weights=weights, nan_policy=nan_policy, scale=scale,
    )  # fmt: skip
    with silent_arithmetic():
        wide: Any = np.sqrt(squared)
    found = wide if exact else cast(wide, layout.dtype_of(array)).reshape(np.shape(wide))[()]
    return _put(out, found)


def _put(out: Array | None, found: Any) -> Any:
    """Return a result, or write it to `out` and return that."""
    if out is None:
        return found
    np.copyto(_require_fitting("out", out, found), found)
    return out
