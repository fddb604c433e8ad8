"""Measure how far a float32 result is from the true one, in units in the last place.

The reference is the formula of :mod:`bncore.programs.demo.formula` on ``numpy.longdouble``.  It has
64 bits of precision on x86, against float32's 24, so its own error is about 1e-9 of the unit used
here.  Errors are in ulp of the terms that are added, not of their sum, because float32 arithmetic
cannot be exact relative to the sum if weight * xhat and bias cancel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncore.programs.demo import formula
from bncore.programs.demo.formula import Array, Axes


def extended(*arrays: Array) -> tuple[NDArray[np.longdouble], ...]:
    """Widen arrays exactly, for the reference."""
    return tuple(a.astype(np.longdouble) for a in arrays)


def max_ulp(result: Array, exact: Array, magnitude: Array) -> float:
    """Largest error of `result`, in ulp of `magnitude` at the precision of `result`.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones(1, dtype=np.float32)
    >>> max_ulp(np.nextafter(one, one + 1), one, one)
    1.0
    """
    ulp = np.spacing(magnitude.astype(result.dtype))
    return float(np.max(np.abs(result - exact) / ulp))


def forward_reference(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float
) -> tuple[Any, Any]:
    """Exact y, and the magnitude abs(weight * xhat) + abs(bias) that its error is measured in."""
    y = formula.infer(x, mean, var, weight, bias, eps)
    return y, np.abs(y - bias) + np.abs(bias)


def backward_reference(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, axes: Axes, eps: float
) -> tuple[Any, Any]:
    """Exact dx, and the largest of its three terms."""
    sum_dy, sum_dy_xhat = formula.sums(dy, x, mean, var, axes, eps)
    terms = formula.input_terms(dy, x, mean, var, sum_dy, sum_dy_xhat, weight, eps)
    magnitude = np.maximum.reduce([np.broadcast_to(np.abs(t), x.shape) for t in terms])
    return terms[0] + terms[1] + terms[2], magnitude
