"""The storage types in NumPy: what arrays of data mean, and how results are rounded to them.

uint16 stands for the bits of bfloat16.  Data of 16 bits are computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.backends.partition import Data, computed_in


def computed(data: Data) -> Data:
    """Give the numbers as the type that they are computed in; a view if that is the data's own."""
    if data.dtype == np.uint16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(computed_in(data), copy=False)


def stored(numbers: Data, dtype: npt.DTypeLike) -> Data:
    """Round to a storage type; to nearest, ties to even, and NaN stays NaN."""
    if dtype != np.uint16:
        return numbers.astype(dtype, copy=False)
    bits = np.asarray(numbers, np.float32).view(np.uint32)
    rounded: Any = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def store(out: Data, numbers: Data) -> None:
    """Write rounded numbers."""
    out[...] = stored(numbers, out.dtype)
