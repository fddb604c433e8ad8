"""The specification compiled by Numba: the backend if the native extension is absent.

Importing this module imports Numba.  A kernel is compiled on its first call for each type of data.
Numba caches the machine code on disk, next to the specification or, if it cannot write there, in
the user's cache directory.  ``NUMBA_CACHE_DIR`` names another place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import isfunction
from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

from bncore.backends.numba import (
    elementwise,
    gradients,
    groups,
    integers,
    storage,
    sums,
    weighted,
)
from bncore.backends.numba.group_operations import GroupOperations
from bncore.backends.numba.threads import spread

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and this backend would be slower than NumPy's")

# Kernels call the other functions of the specification, which have no decorators in its text.
# The overloads below take the place of three: two of these look up a function by the storage type,
# which is known when a kernel is compiled.
REPLACED = storage.value, storage.stored, storage.unsigned

for _module in (storage, sums, weighted, gradients, elementwise, groups, integers):
    for _function in filter(isfunction, vars(_module).values()):
        if _function.__module__ == _module.__name__ and _function not in REPLACED:
            register_jitable(error_model="numpy")(_function)


def reading(element: Any) -> Callable[[Any], Any]:
    """Give Numba the function that reads elements of this Numba type."""
    read = storage.READ[as_dtype(element).type]

    def value(element: Any) -> Any:
        return read(element)

    return value


def rounding(number: Any, array: Any) -> Callable[[Any, Any], Any]:
    """Give Numba the function that rounds to elements of an array of this Numba type."""
    round_to = storage.ROUND[as_dtype(array.dtype).type]

    def stored(number: Any, array: Any) -> Any:
        return round_to(number)

    return stored


def casting(place: Any) -> Callable[[Any], Any]:
    """Give Numba the function that makes a place unsigned."""

    def unsigned(place: Any) -> Any:
        return np.uint64(place)

    return unsigned


overload(storage.value)(reading)
overload(storage.stored)(rounding)
overload(storage.unsigned)(casting)


@cache
def compiled(kernel: Callable[..., None]) -> Any:
    """Compile a kernel with plain IEEE arithmetic and without the GIL, and cache the result.

    If no directory is writable, every process compiles the kernel again.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": False}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # "cannot cache function": no directory is writable
        return numba.njit(**options)(kernel)


def run(n_threads: int, n_tasks: int, kernel: Callable[..., None], /, *args: Any) -> None:
    """Run a compiled kernel over all its tasks."""
    spread(n_threads, n_tasks, compiled(kernel), *args)


name = "numba"
operations = GroupOperations(run)
moments = operations.moments
normalize = operations.normalize
train = operations.train
grad_sums = operations.grad_sums
grad_input = operations.grad_input
train_backward = operations.train_backward
infer_backward = operations.infer_backward
group_norm = operations.group_norm
group_norm_backward = operations.group_norm_backward
integer_moments = operations.integer_moments
integer_normalize = operations.integer_normalize
