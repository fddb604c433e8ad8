"""The structs of ``bncore.h`` for ctypes, field by field.

A test compares them with the layout that a C compiler gives the header.  The module imports nothing
of the package, so that a script can load it alone.
"""

from __future__ import annotations

import ctypes

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
PARALLEL_FOR = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, TASK, ctypes.c_void_p
)


class Executor(ctypes.Structure):
    """``bncore_executor`` for ctypes: a host's own parallel-for."""

    _fields_ = (("parallel_for", PARALLEL_FOR), ("context", ctypes.c_void_p))


class Fusion(ctypes.Structure):
    """``bncore_fusion`` for ctypes; call ``bncore_fusion_init`` first."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_double),
        ("residual", ctypes.c_void_p),
        ("dresidual", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("reserved", ctypes.c_uint64 * 4),
    )


class Weights(ctypes.Structure):
    """``bncore_weights`` for ctypes; call ``bncore_weights_init`` first."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("per_channel", ctypes.c_int32),
        ("omit_nan", ctypes.c_int32),
        ("filled", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("fill", ctypes.c_double),
        ("reserved", ctypes.c_uint64 * 4),
    )


class Problem(ctypes.Structure):
    """``bncore_problem`` for ctypes; call ``bncore_problem_init`` first."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("outer", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("n_threads", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("executor", ctypes.POINTER(Executor)),
        ("scratch", ctypes.c_void_p),
        ("scratch_size", ctypes.c_size_t),
        ("fusion", ctypes.POINTER(Fusion)),
        ("weights", ctypes.POINTER(Weights)),
        ("unused", ctypes.c_void_p),
        ("reserved", ctypes.c_uint64 * 6),
    )
