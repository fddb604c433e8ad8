"""Tensors of other libraries as arrays, through DLPack and without a copy.

NumPy reads every floating dtype but bfloat16.  This module reads such a tensor from its capsule.
The capsule is not consumed: the array keeps it, and with it the memory, until both are gone.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments.bfloat16 import bfloat16_dtype

CPU = 1  # kDLCPU
BFLOAT = 4  # kDLBfloat
READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
VERSION = (1, 0)  # the newest layout of the structs that this module knows


class _Tensor(ctypes.Structure):
    """``DLTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``; in the older ``DLManagedTensor`` the tensor comes first."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class _Memory:
    """The memory of a tensor as an array of uint16; it keeps the capsule alive."""

    def __init__(self, capsule: object, tensor: _Tensor, read_only: bool) -> None:
        self._capsule = capsule
        shape = tuple(tensor.shape[: tensor.ndim])
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(np.uint16).str,
            "data": ((tensor.data or 0) + tensor.byte_offset, read_only),
            "strides": tuple(2 * step for step in tensor.strides[: tensor.ndim])
            if tensor.strides
            else None,
        }


def from_dlpack(value: Any) -> npt.NDArray[Any]:
    """Return the memory of an object that has ``__dlpack__`` as an array."""
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError):
        found = _bfloat16(value)
        if found is None:
            raise
        return found


def _bfloat16(value: Any) -> npt.NDArray[Any] | None:
    """Return a tensor of bfloat16 on the CPU as an array, or None for any other."""
    try:
        if value.__dlpack_device__()[0] != CPU:
            return None
        try:
            capsule = value.__dlpack__(max_version=VERSION)
        except TypeError:  # an exporter that was written before versions
            capsule = value.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None  # the reason is the same for which NumPy raised
    tensor, read_only = _opened(capsule)
    if tensor is None or (tensor.code, tensor.bits, tensor.lanes) != (BFLOAT, 16, 1):
        return None
    dtype = bfloat16_dtype()
    if 0 in tensor.shape[: tensor.ndim]:
        return np.empty(tuple(tensor.shape[: tensor.ndim]), dtype)
    return np.asarray(_Memory(capsule, tensor, read_only)).view(dtype)


def _opened(capsule: object) -> tuple[_Tensor | None, bool]:
    """Return the tensor in a capsule and whether it is read-only; no tensor if it is unknown."""
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        known = managed.major == VERSION[0] and managed.tensor.device_type == CPU
        return managed.tensor if known else None, bool(managed.flags & READ_ONLY)
    if _is_valid(capsule, b"dltensor"):
        tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
        # Such a capsule does not say whether the memory may be written to.
        return tensor if tensor.device_type == CPU else None, True
    return None, True


def _function(name: str, result: Any) -> Any:
    """Return a function of Python's C interface that takes a capsule and its name."""
    return ctypes.PYFUNCTYPE(result, ctypes.py_object, ctypes.c_char_p)((name, ctypes.pythonapi))


_is_valid = _function("PyCapsule_IsValid", ctypes.c_int)
_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p)
