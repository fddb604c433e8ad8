"""Mean and variance over any axes, with NumPy's names for the arguments."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import cast, data_array, integer_scale
from bncore.arguments.parameters import Stat
from bncore.backends import current
from bncore.functions import integers
from bncore.runtime.threads import resolve
from bncore.statistics import variance

FLOAT64: np.dtype[Any] = np.dtype(np.float64)


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
    """

    __slots__ = ("_kept", "_shape", "_squeezed", "count", "dtype", "scale", "x")

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
        self.scale = integer_scale(scale, array)
        in_float64 = in_float64 or self.scale is not None
        self.dtype = FLOAT64 if in_float64 else layout.dtype_of(array)
        self.count = canonical.values_per_channel
        self._kept = kept
        self._squeezed = [shape[i] for i in kept]
        self._shape = tuple(
            1 if i in reduced else shape[i] for i in range(array.ndim) if keep or i not in reduced
        )

    def result(self, values: Stat) -> Any:
        """Return the values in the result's shape, or a scalar if that has no dimensions."""
        kept = sorted(range(len(self._kept)), key=self._kept.__getitem__)
        array = cast(values, self.dtype).reshape(self._squeezed).transpose(kept)
        return np.ascontiguousarray(array).reshape(self._shape)[()]


def mean_var(
    x: npt.ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    correction: float = 0,
    keepdims: bool = False,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Compute mean and variance over some axes, in one pass.

    It replaces ``x.mean(axis), x.var(axis)``.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32, float64, bool or integers of 8 to 32 bits
        Integers are read as they are, and their mean and variance are float64.  x is copied once if
        it is not one contiguous block (in any memory order), is unaligned, has a foreign byte
        order, or if the axes that are kept do not lie together in memory.
    axis : int or tuple of int, optional
        The axes to *reduce*, as in NumPy (not the channel axis); all axes by default.
    correction : float, default 0
        The variance is the sum of squared deviations divided by ``n - correction``.
    keepdims : bool, default False
        Keep the reduced axes, with size 1.
    dtype : None or numpy.float64, default None
        The dtype of the results, and what 16-bit values are summed in, as in `moments`.  With None
        the results have x's dtype, as NumPy's; those of integers have float64.
    n_threads : int, optional
        The largest number of threads to use; `get_num_threads()` by default.
    scale : float, optional
        What integers are multiplied with, as in `moments`.

    Returns
    -------
    mean, var : ndarray or scalar, of x's dtype or of `dtype`
        NaN if there is no value.  If n is not above `correction`, the variance is NaN, or inf if
        the squared deviations are not all 0.  There is no warning.

    Raises
    ------
    TypeError, ValueError
        If x has another dtype, an axis is given twice or does not exist in x, or `dtype` is neither
        None nor float64.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.mean_var(np.array([[0.0, 1.0], [2.0, 5.0]]), axis=0)
    (array([1., 3.]), array([1., 4.]))
    """
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    exact = dtype is not None and scalars.float64_sums("dtype", dtype)
    if fast is not None and scale is None:
        done: tuple[Any, Any] | None = fast.fast_mean_var(
            x, axis, correction, keepdims, threads, exact
        )
        if done is not None:
            return done
    r = Reduction(x, axis, keepdims, exact, scale)
    correction = scalars.real("correction", correction)
    size = r.x.shape[1]
    mean, m2 = np.full(size, np.nan), np.full(size, np.nan)
    if r.x.size:
        integers.moments(backend.kernels, mean, m2, r.x, threads, exact, r.scale)
    return r.result(mean), r.result(variance(float(r.count), m2, correction))
