"""Mean and variance over any axes, in NumPy's words."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.backends import current
from bncore.problem import Reduction, real
from bncore.statistics import trusted_moments
from bncore.threads import resolve


def mean_var(
    x: npt.ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    correction: float = 0,
    keepdims: bool = False,
    n_threads: int | None = None,
) -> tuple[Any, Any]:
    """Compute mean and variance over some axes, in one pass and in float64.

    It replaces ``x.mean(axis), x.var(axis)``.

    Parameters
    ----------
    x : array_like of float32 or float64
        Copied once where it is no contiguous block (in any memory order), is unaligned or in
        foreign byte order, or where the axes that are kept do not lie together in memory.
    axis : int or tuple of int, optional
        The axes that are *reduced*, as in NumPy (not the channel axis); all of them by default.
    correction : float, default 0
        The variance is the sum of squared deviations divided by ``n - correction``.
    keepdims : bool, default False
        Keep the reduced axes, with size 1.
    n_threads : int, optional
        At most so many threads; by default what `get_num_threads` returns.

    Returns
    -------
    mean, var : ndarray or scalar, of x's dtype
        NaN where there is no value.  Where n is not above `correction`, the variance is NaN, or
        inf if the squared deviations are not all 0; there is no warning.

    Raises
    ------
    TypeError, ValueError
        If x is not float32 or float64, or an axis is given twice or is none of x's.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.mean_var(np.array([[0.0, 1.0], [2.0, 5.0]]), axis=0)
    (array([1., 3.]), array([1., 4.]))
    """
    backend = current()
    threads = resolve(n_threads)
    r = Reduction(x, axis, keepdims)
    correction = real("correction", correction)
    size = r.x.shape[1]
    mean, m2 = np.full(size, np.nan), np.full(size, np.nan)
    if r.x.size:
        backend.kernels.moments(mean, m2, r.x, threads)
    var = trusted_moments(r.count, mean, m2).var(correction)
    return r.result(mean), r.result(var)
