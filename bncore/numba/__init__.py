"""Batch norm inside functions that Numba compiles: ``import bncore.numba`` imports Numba.

Numba is an extra: ``pip install 'bncore[numba]'`` installs it.

The functions have the same names as the package's functions and compute the same bits, in nopython
mode, by calling the C library.  They accept fewer kinds of arguments: x and dy are C-contiguous
arrays of float32 or float64, with channels on any `axis` (1 for NCHW, -1 for NHWC memory); nothing
is copied.  Parameters and statistics are arrays of float32 or float64.  `n_threads` is 1 by
default.  If Python code calls them, they release the GIL.

`where`, `weights`, `nan_policy` and `fill` mean what they mean there; a mask is an array of bool,
and both broadcast against x.  A call without them compiles as if they did not exist.

`Moments` and `GradSums` are tuples here.  Make a ``bncore.Moments(*moments)`` to merge them, and
convert it back with ``bn.Moments(m.count, m.mean, m.m2)``.

If sizes do not fit, a function raises ValueError when it runs.  If dtypes, dimensions or memory
order do not fit, Numba raises TypingError when it compiles the function.

Examples
--------
>>> import numba
>>> import numpy as np
>>> import bncore.numba as bn
>>> @numba.njit
... def step(x, weight, bias, dy):
...     y, moments = bn.batch_norm_train(x, weight, bias)
...     dx, dweight, dbias = bn.batch_norm_train_backward(dy, x, moments, weight)
...     return y, dx
>>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
>>> y, dx = step(x, np.ones(2), np.zeros(2), np.ones((2, 2)))
>>> y.round(3).tolist()
[[-1.0, -1.0], [1.0, 1.0]]
"""

from bncore.extras import missing

try:
    import numba  # noqa: F401  # the error below says how to get it
except ModuleNotFoundError as error:
    raise missing("numba", "Numba", {"numba"}, error) from None

from bncore.numba.batch_norm import (
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
    batch_norm_train_backward,
)
from bncore.numba.statistics import GradSums, Moments
from bncore.numba.steps import grad_input, grad_sums, moments, normalize

__all__ = [
    "GradSums",
    "Moments",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
    "batch_norm_train_backward",
    "grad_input",
    "grad_sums",
    "moments",
    "normalize",
]
