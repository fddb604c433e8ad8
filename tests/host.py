"""bncore.h through ctypes, as an embedding host sees it: the native module exports the C API."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

import variants

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
PARALLEL_FOR = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, TASK, ctypes.c_void_p
)


class Executor(ctypes.Structure):
    _fields_ = (("parallel_for", PARALLEL_FOR), ("context", ctypes.c_void_p))


class Fusion(ctypes.Structure):
    """bncore_fusion, field by field."""

    _fields_ = (
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_double),
        ("residual", ctypes.c_void_p),
        ("dresidual", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Problem(ctypes.Structure):
    """bncore_problem, field by field."""

    _fields_ = (
        ("outer", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("dtype", ctypes.c_int32),
        ("n_threads", ctypes.c_int32),
        ("executor", ctypes.POINTER(Executor)),
        ("scratch", ctypes.c_void_p),
        ("scratch_size", ctypes.c_size_t),
        ("fusion", ctypes.POINTER(Fusion)),
        ("reserved", ctypes.c_uint64 * 3),
    )


@cache
def library() -> ctypes.CDLL:
    native = ctypes.CDLL(variants.native_module().__file__)
    native.bncore_status_string.restype = ctypes.c_char_p
    native.bncore_scratch_size.restype = ctypes.c_size_t
    return native


def problem(shape: tuple[int, int, int], dtype: type = np.float32, n_threads: int = 1) -> Problem:
    p = Problem()
    sizes = map(ctypes.c_int64, shape)
    assert library().bncore_problem_init(ctypes.byref(p), int(dtype == np.float64), *sizes) == 0
    p.n_threads = n_threads
    return p


def run(name: str, p: Problem, *arrays: np.ndarray | None) -> int:
    """Call an operation; return its status."""
    addresses = (None if a is None else ctypes.c_void_p(a.ctypes.data) for a in arrays)
    return int(getattr(library(), f"bncore_{name}")(ctypes.byref(p), *addresses))


def with_executor(p: Problem, parallel_for: Callable[[int, int, Callable[[int], None]], None]):
    """Let p run on the host's parallel_for(tasks, threads, task); keep what is returned alive."""

    def adapter(_context, tasks, threads, task, arg):
        parallel_for(tasks, threads, lambda i: task(arg, i))

    executor = Executor(PARALLEL_FOR(adapter), None)
    p.executor = ctypes.pointer(executor)
    return executor
