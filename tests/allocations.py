"""How much memory NumPy asks for in a call: the sizes of all arrays, also of those that are freed.

NumPy lets a program replace the functions that allocate arrays' memory (NEP 49).  Here they pass
every request on to the C library, and note its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy._core import _multiarray_umath as _umath

SET_HANDLER = 304  # its place in NumPy's table of C functions

_libc = ctypes.CDLL(None)
_Malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Calloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_Realloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

for _name, _arguments in {
    "malloc": [ctypes.c_size_t],
    "calloc": [ctypes.c_size_t, ctypes.c_size_t],
    "realloc": [ctypes.c_void_p, ctypes.c_size_t],
}.items():
    getattr(_libc, _name).restype = ctypes.c_void_p
    getattr(_libc, _name).argtypes = _arguments
_libc.free.argtypes = [ctypes.c_void_p]

_sizes: list[int] = []


@_Malloc
def _malloc(_: Any, size: int) -> int:
    _sizes.append(size)
    return _libc.malloc(size)


@_Calloc
def _calloc(_: Any, number: int, size: int) -> int:
    _sizes.append(number * size)
    return _libc.calloc(number, size)


@_Realloc
def _realloc(_: Any, memory: int, size: int) -> int:
    _sizes.append(size)
    return _libc.realloc(memory, size)


@_Free
def _free(_: Any, memory: int, size: int) -> None:
    _libc.free(memory)


class _Handler(ctypes.Structure):
    """PyDataMem_Handler of NumPy's headers."""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _Malloc),
        ("calloc", _Calloc),
        ("realloc", _Realloc),
        ("free", _Free),
    ]


# For as long as the process: arrays that were allocated by it are freed by it.
_handler = _Handler(b"noting", 1, None, _malloc, _calloc, _realloc, _free)


def _set_handler(capsule: Any) -> Any:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(get(_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])
    return function(capsule)


def _capsule() -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(_handler), b"mem_handler", None)


@contextmanager
def noted() -> Iterator[list[int]]:
    """Give a list that gets the size of every memory that NumPy asks for in this block."""
    before = _set_handler(_capsule())
    del _sizes[:]
    found: list[int] = []
    try:
        yield found
        found.extend(_sizes)
    finally:
        _set_handler(before)


def bytes_of_large(call: Any, least: int) -> int:
    """Return how many bytes a call asks for in arrays of at least so many bytes, in all."""
    with noted() as sizes:
        result = call()
    del result
    return sum(size for size in sizes if size >= least)
