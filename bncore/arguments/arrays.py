"""Checks of array arguments: whether they are arrays, their dtype, and whether they are writable.

Every message reads "<argument>: expected <what>, got <what>".
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import bfloat16, layout
from bncore.arguments.bfloat16 import is_bfloat16
from bncore.arguments.dlpack import from_dlpack
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.layout import Array
from bncore.arguments.scalars import real, shown

MASK_HINT = "pass a mask by its name, where=mask"
DATA_DTYPES = "float16, bfloat16, float32 or float64"
DATA_AND_INTEGERS = "float16, bfloat16, float32, float64, bool or integers of 8 to 32 bits"


def _holds_mask(value: object) -> bool:
    """Tell whether a list or tuple contains a masked array, at any depth."""
    if isinstance(value, (list, tuple)):
        return any(map(_holds_mask, value))
    return isinstance(value, np.ma.MaskedArray)


def memory_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a new view of an array's memory that has NumPy's own class.

    A subclass can replace dtype, shape, strides and flags by Python properties that return
    anything, and a kernel that relied on them would write outside the memory.  The view has the
    array's real dtype, shape, strides and flags.  It keeps them when somebody changes the array's
    shape or dtype in place.
    """
    return np.ndarray.view(array, np.ndarray)


def _require_inside_buffer(array: npt.NDArray[Any]) -> None:
    """Refuse an array whose ``__array_interface__`` claims more memory than its buffer has.

    NumPy does not compare the two.  If the interface gives an address instead of a buffer, or the
    array comes from a DLPack capsule, its claim is trusted, because nobody can tell how much memory
    there is.
    """
    try:
        buffer = memoryview(array.base)  # type: ignore[arg-type]
    except TypeError:
        return  # an address, or NumPy's own memory
    start = np.frombuffer(buffer, np.uint8).ctypes.data
    low, high = np.lib.array_utils.byte_bounds(array)
    if low < start or high > start + buffer.nbytes:
        raise ValueError(f"it claims {high - low} bytes of a buffer of {buffer.nbytes}")


def plain_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return `value` as an ndarray that has NumPy's own class.

    A masked array is refused, because its mask would be lost.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask, got {shown(value)} (x.data and "
            "where=~np.ma.getmaskarray(x) say what counts of x)"
        )
    if issubclass(type(value), np.ndarray):
        return memory_of(value)  # type: ignore[arg-type]
    if value is None:
        raise TypeError(f"{name}: expected an array, got None")
    if _holds_mask(value):
        raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray in a list")
    try:
        if hasattr(type(value), "__dlpack__"):
            if getattr(value, "is_neg", bool)():  # PyTorch gives the memory without the minus sign
                raise TypeError("the view negates its memory; call tensor.resolve_neg() first")
            return from_dlpack(value)  # no copy
        array = np.asarray(value)
        if hasattr(type(value), "__array_interface__"):
            _require_inside_buffer(array)
        return array
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name}: expected an array, got {shown(value)} ({error})") from error


def _require_no_container(name: str, value: object) -> None:
    """Refuse what has arrays and is none, such as an open file, and say what to pass instead."""
    if isinstance(value, (str, bytes, os.PathLike, io.IOBase)):
        what = "open the file, and pass its array, such as numpy.load(path, mmap_mode='r')"
    elif hasattr(type(value), "keys") and not hasattr(type(value), "__array__"):
        what = "it has arrays by name: pass one of them, such as x['name']"
    elif isinstance(value, Iterator):
        what = "bncore.merged_moments takes arrays one after the other"
    else:
        return
    raise TypeError(f"{name}: expected an array, got {shown(value)} ({what})")


def dtype_shown(value: object, array: npt.NDArray[Any], integers: bool = False) -> str:
    """Describe a refused dtype and how to convert it, or the type of what is not an array.

    `integers` says that integers of other sizes are taken.
    """
    if array.dtype.kind == "O" and value is not array:
        return f"{shown(value)} (not called?)" if callable(value) else shown(value)
    if array.dtype.kind in "biuf":
        known = issubclass(type(value), np.ndarray)
        wide = integers and array.dtype.kind in "iu"  # 64 bits, of which float32 holds 24
        dtype = "np.float64" if wide else "np.float32"
        how = f".astype({dtype})" if known else f"np.asarray(..., {dtype})"
        return f"{array.dtype} (convert with {how}{', or to int32 if it fits' if wide else ''})"
    return str(array.dtype)


def data_array(name: str, value: object, integers: bool = False) -> Array:
    """Return `value` as an array of a dtype of x, in any layout and byte order.

    `integers` allows those that `layout.integer_dtype` knows.
    """
    if type(value) is not np.ndarray:
        _require_no_container(name, value)
    array = plain_array(name, value)
    if layout.native_dtype(array.dtype) is None and not (integers and is_integer(array)):
        expected = DATA_AND_INTEGERS if integers else DATA_DTYPES
        if name == "residual" and array.dtype == np.bool_:
            raise TypeError(f"residual: expected {expected}, got bool ({MASK_HINT})")
        raise TypeError(f"{name}: expected {expected}, got {dtype_shown(value, array, integers)}")
    return array


def is_integer(array: npt.NDArray[Any]) -> bool:
    """Tell whether this is an array of the integers that some functions read as they are."""
    return layout.integer_dtype(array.dtype) is not None


def integer_scale(scale: object, array: npt.NDArray[Any]) -> float | None:
    """Return what integers are multiplied with, 1 by default; None for an array of floats."""
    if not is_integer(array):
        if scale is not None:
            raise TypeError(
                f"scale: expected None for an x of {array.dtype}, since it is for integers, "
                f"got {shown(scale)}"
            )
        return None
    number = 1.0 if scale is None else real("scale", scale, 0.0)
    if number == 0.0:
        raise ValueError(f"scale: expected a finite number > 0, got {shown(scale)}")
    return number


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Tell whether this is a real floating dtype."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def cast(array: Array, dtype: npt.DTypeLike) -> Array:
    """Return `array` as C-contiguous memory of `dtype`, rounded once and without warnings.

    It is not copied if it is that already.
    """
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    to = np.dtype(dtype)
    with silent_arithmetic():
        if is_bfloat16(array.dtype):
            array = bfloat16.as_float32(array)
        if is_bfloat16(to):
            rounded: Any = bfloat16.rounded(array).astype(bfloat16.bits_dtype(to))
            return np.ascontiguousarray(rounded.view(to))
        return np.ascontiguousarray(array, dtype=to)


def writable_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return the memory of `value`, an array that will be written in place."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {shown(value)}")
    if not issubclass(type(value), np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {shown(value)}")
    array = memory_of(value)  # type: ignore[arg-type]
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if layout.meets_itself(array):
        raise ValueError(
            f"{name}: expected an array whose elements do not overlap, got strides {array.strides}"
        )
    return array
