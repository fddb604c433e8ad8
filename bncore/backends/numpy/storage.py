"""The storage types in NumPy: what arrays of data mean, and how results are rounded to them.

uint16 stands for the bits of bfloat16.  Data of 16 bits are computed in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bncore.arguments import bfloat16
from bncore.backends.partition import Data, computed_in


def computed(data: Data) -> Data:
    """Give the numbers as the type that they are computed in; a view if that is the data's own."""
    if data.dtype == np.uint16:
        return bfloat16.as_float32(data)
    return data.astype(computed_in(data), copy=False)


def stored(numbers: Data, dtype: npt.DTypeLike) -> Data:
    """Round to a storage type; to nearest, ties to even, and NaN stays NaN."""
    if dtype == np.uint16:
        return bfloat16.rounded_float32(numbers)
    return numbers.astype(dtype, copy=False)


def store(out: Data, numbers: Data) -> None:
    """Write rounded numbers."""
    out[...] = stored(numbers, out.dtype)
