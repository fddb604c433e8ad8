"""Arrays of 16 bits in float32, where a function makes its result in several kernel calls.

A kernel rounds to x's dtype when it stores.  If a second kernel worked on what the first one
stored, 16-bit results would be rounded twice.  So these functions compute some rows or samples in
float32, and round them once at the end.  Arrays are as kernels take them: uint16 is bfloat16.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import bfloat16
from bncore.arguments.float_environment import silent_arithmetic

Array: TypeAlias = npt.NDArray[np.floating[Any]]


def in_float32(values: Array) -> Array:
    """Return values of 16 bits as new float32, which is exact, and any other array itself."""
    if values.dtype.itemsize != 2:
        return values
    with silent_arithmetic():
        if values.dtype == np.uint16:
            return bfloat16.as_float32(values)
        return values.astype(np.float32)


def store(to: Array, values: Array) -> None:
    """Write results to their place, rounded once if it has 16 bits and they are float32."""
    if to is values:
        return
    with silent_arithmetic():
        if to.dtype == np.uint16:
            np.copyto(to, bfloat16.rounded_float32(values), casting="unsafe")
        else:
            np.copyto(to, values, casting="same_kind")
