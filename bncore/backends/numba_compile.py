"""How the Numba backend compiles its loops; and the coefficients of `partition`, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from bncore.backends import partition

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile with plain IEEE arithmetic, no lock, and the machine code kept on disk."""
    compiled: Function = numba.njit(
        cache=True, nogil=True, error_model="numpy", fastmath=False, boundscheck=False
    )(function)
    return compiled


inverse_std = jit(partition.inverse_std)
normalize_coefficients = jit(partition.normalize_coefficients)
gradient_coefficients = jit(partition.gradient_coefficients)
