"""bncore.h through ctypes, as an embedding host sees it: the native module exports the C API."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

import variants
from bncore.c_library import PARALLEL_FOR, Executor, Fusion, Problem


@cache
def library() -> ctypes.CDLL:
    native = ctypes.CDLL(variants.native_module().__file__)
    native.bncore_status_string.restype = ctypes.c_char_p
    native.bncore_scratch_size.restype = ctypes.c_size_t
    return native


def problem(shape: tuple[int, int, int], dtype: type = np.float32, n_threads: int = 1) -> Problem:
    p = Problem()
    assert init(p, int(dtype == np.float64), *shape) == 0
    p.n_threads = n_threads
    return p


def init(p: Problem, dtype: int, *sizes: int) -> int:
    """Call bncore_problem_init; return its status."""
    given = map(ctypes.c_int64, sizes)
    size = ctypes.c_size_t(ctypes.sizeof(Problem))
    return int(library().bncore_problem_init(ctypes.byref(p), size, dtype, *given))


def fusion(
    activation: int,
    slope: float = 0.0,
    *,
    residual: int | None = None,
    dresidual: int | None = None,
    bias: int | None = None,
) -> Fusion:
    """Give a bncore_fusion with addresses of arrays."""
    f = Fusion()
    size = ctypes.c_size_t(ctypes.sizeof(Fusion))
    assert library().bncore_fusion_init(ctypes.byref(f), size) == 0
    f.activation, f.slope = activation, slope
    f.residual, f.dresidual, f.bias = residual, dresidual, bias
    return f


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
