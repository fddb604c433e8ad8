"""How the Numba backend compiles its loops; and the coefficients of `partition`, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from bncore.backends import partition

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and these kernels exist compiled only")

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile with plain IEEE arithmetic, no lock, and the machine code kept on disk.

    Where no directory can be written to, it is kept in memory and made anew by every process.
    """
    try:
        return _compiled(function, cache=True)
    except RuntimeError:  # "cannot cache function": neither here nor in the user's directory
        return _compiled(function, cache=False)


def _compiled(function: Function, *, cache: bool) -> Function:
    compiled: Function = numba.njit(
        cache=cache, nogil=True, error_model="numpy", fastmath=False, boundscheck=False
    )(function)
    return compiled


inverse_std = jit(partition.inverse_std)
normalize_coefficients = jit(partition.normalize_coefficients)
gradient_coefficients = jit(partition.gradient_coefficients)
