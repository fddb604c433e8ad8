"""bfloat16, which NumPy lacks: recognition, its bits, and conversions that round once.

An array of bfloat16 has the dtype that ml_dtypes registers with NumPy.  It is recognized without
ml_dtypes, and converted here by integer arithmetic on its bits: the upper half of a float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HALFWAY = np.uint32(0x8000)  # the lower half of a float32 that lies between two bfloat16 values
QUIET = np.uint32(0x0040)  # this bit of a bfloat16 NaN keeps it from becoming infinite
FIRST_REGISTERED = 256  # NumPy numbers the dtypes that other libraries register from here on


class _Private(np.void):  # type: ignore[misc]
    """Two bytes that are a bfloat16."""


# bfloat16 within bncore, for an adapter that must work where ml_dtypes is missing.  The functions
# take it, and return it where they return the dtype of an argument.  No array of it leaves bncore.
PRIVATE: np.dtype[Any] = np.dtype((_Private, 2))


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell whether this is bfloat16, in any byte order."""
    if dtype.kind != "V" or dtype.itemsize != 2:
        return False
    return dtype.type is _Private or (dtype.num >= FIRST_REGISTERED and dtype.name == "bfloat16")


def in_native_order(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype in native byte order."""
    if dtype.type is _Private:
        return PRIVATE
    return np.dtype(dtype.type) if is_bfloat16(dtype) else dtype.newbyteorder("=")


def bfloat16_dtype() -> np.dtype[Any]:
    """Return NumPy's dtype for bfloat16; raise if nobody can register it."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError(
            "bfloat16: expected the package ml_dtypes, which has this dtype for NumPy, got none "
            "(pip install ml_dtypes)"
        ) from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a view of an array of bfloat16 as uint16 in its byte order; any other array itself.

    This is the form in which backends take bfloat16.
    """
    if not is_bfloat16(array.dtype):
        return array
    return array.view(bits_dtype(array.dtype))


def bits_dtype(dtype: np.dtype[Any]) -> np.dtype[np.uint16]:
    """Return the dtype of the bits of a bfloat16: uint16 in its byte order."""
    return np.dtype(np.uint16).newbyteorder(dtype.byteorder)


def as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the values of bfloat16, or their bits in uint16, as new float32; this is exact."""
    upper = bits(array).astype(np.uint32)
    return np.left_shift(upper, 16, out=upper).view(np.float32)


def rounded_float32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to the bits of bfloat16, to nearest and to even; NaN stays NaN."""
    whole = np.ascontiguousarray(values).view(np.uint32)
    upper = whole >> 16
    rounded = (whole + (upper & 1) + 0x7FFF) >> 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = upper[nan] | QUIET
    return rounded.astype(np.uint16)


def rounded(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """Round values of any floating dtype to the bits of bfloat16, once."""
    exact = np.asarray(values, np.promote_types(values.dtype, np.float64))  # longdouble stays
    nearest = np.array(exact, np.float32, order="C")
    # Only where rounding to float32 arrives exactly between two values of bfloat16 does it decide
    # the second rounding.  There, the error of the first one tells on which side the value lies.
    whole = nearest.view(np.uint32)
    between = ((whole & 0xFFFF) == HALFWAY) & np.isfinite(nearest) & (nearest != exact)
    if between.any():
        away = np.abs(exact) > np.abs(nearest)
        whole[between & away] += np.uint32(1)
        whole[between & ~away] -= np.uint32(1)
    return rounded_float32(nearest)
