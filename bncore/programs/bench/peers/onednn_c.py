"""The part of oneDNN's C API that batch normalization needs, through ctypes.

Numbers are those of its headers (package ``onednn-devel-cpu-gomp`` 2023.2: oneDNN 3.2).
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint, c_void_p
from functools import cache
from importlib.metadata import files
from typing import Any

import numpy as np

from bncore.programs.bench.cases import Array, Shape

FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128  # dnnl_prop_kind_t
USE_GLOBAL_STATS, USE_SCALE, USE_SHIFT = 1, 2, 4  # dnnl_normalization_flags_t
SRC, DST, MEAN, VARIANCE, SCALE, SHIFT = 1, 17, 49, 50, 51, 52  # DNNL_ARG_*
DIFF_SRC, DIFF_DST, DIFF_SCALE, DIFF_SHIFT = 129, 145, 255, 256
F32, CPU, IN_ORDER = 3, 1, 1
BLOCKED_16C = {3: 56, 4: 78, 5: 121}  # dnnl_nCw16c, dnnl_nChw16c, dnnl_nCdhw16c by dimensions


class Argument(ctypes.Structure):
    """dnnl_exec_arg_t."""

    _fields_ = (("arg", c_int), ("memory", c_void_p))


@cache
def library() -> ctypes.CDLL:
    """Load libdnnl from where pip put it; raise OSError if it is missing."""
    for file in files("onednn-cpu-gomp") or []:
        if file.name.startswith("libdnnl.so"):
            return ctypes.CDLL(str(file.locate()))
    raise OSError("onednn-cpu-gomp has no libdnnl.so")


def do(function: str, *arguments: Any) -> None:
    """Call a function of the library that returns a status."""
    status = getattr(library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} returned status {status}")


def make(function: str, *arguments: Any) -> c_void_p:
    """Call a function whose first argument receives a new object, which is never freed."""
    made = c_void_p()
    do(function, ctypes.byref(made), *arguments)
    return made


@cache
def engine() -> c_void_p:
    """Take the processor."""
    return make("dnnl_engine_create", c_int(CPU), ctypes.c_size_t(0))


@cache
def stream() -> c_void_p:
    """Make a queue on the processor, which runs everything immediately and in order."""
    return make("dnnl_stream_create", engine(), c_uint(IN_ORDER))


class Memory:
    """An array in one of oneDNN's layouts: a NumPy array's own, or a blocked one of ours."""

    def __init__(self, descriptor: c_void_p, array: Array) -> None:
        self.descriptor = descriptor
        self.array = array  # kept alive
        self.handle = make("dnnl_memory_create", descriptor, engine(), c_void_p(array.ctypes.data))

    @classmethod
    def of(cls, array: Array) -> Memory:
        """Wrap a float32 array, in any order of axes."""
        dims = (c_int64 * array.ndim)(*array.shape)
        strides = (c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        descriptor = make(
            "dnnl_memory_desc_create_with_strides", c_int(array.ndim), dims, c_int(F32), strides
        )
        return cls(descriptor, array)

    @classmethod
    def blocked(cls, shape: Shape) -> Memory:
        """Allocate an array in blocks of 16 channels, touched."""
        dims = (c_int64 * len(shape))(*shape)
        descriptor = make(
            "dnnl_memory_desc_create_with_tag",
            c_int(len(shape)), dims, c_int(F32), c_int(BLOCKED_16C[len(shape)]),
        )  # fmt: skip
        get_size = library().dnnl_memory_desc_get_size
        get_size.restype = ctypes.c_size_t
        memory = np.zeros(get_size(descriptor) + 64, np.uint8)
        return cls(descriptor, memory[-memory.ctypes.data % 64 :])

    def copy_to(self, other: Memory) -> None:
        """Reorder this array into another's layout."""
        with_engines = (self.descriptor, engine(), other.descriptor, engine(), c_void_p())
        description = make("dnnl_reorder_primitive_desc_create", *with_engines)
        Primitive(description, {SRC: self, DST: other})()


class Primitive:
    """An operation with its arguments; calling it runs it to the end."""

    def __init__(self, description: c_void_p, memories: dict[int, Memory]) -> None:
        self.memories = memories
        self.handle = make("dnnl_primitive_create", description)
        self.arguments = (Argument * len(memories))(
            *(Argument(number, memory.handle) for number, memory in memories.items())
        )
        self.execute, self.wait = library().dnnl_primitive_execute, library().dnnl_stream_wait
        self.execute.argtypes = [c_void_p, c_void_p, c_int, c_void_p]
        self.wait.argtypes = [c_void_p]
        self.given = (self.handle, stream(), len(memories), ctypes.addressof(self.arguments))

    def __call__(self) -> None:
        """Run it."""
        status = self.execute(*self.given) or self.wait(stream())
        if status:
            raise RuntimeError(f"oneDNN returned status {status}")


def forward_description(kind: int, data: Memory, eps: float, flags: int) -> c_void_p:
    """Describe a forward pass from and to memory like `data`."""
    return make(
        "dnnl_batch_normalization_forward_primitive_desc_create",
        engine(), c_int(kind), data.descriptor, data.descriptor, c_float(eps), c_uint(flags),
        c_void_p(),
    )  # fmt: skip


def backward_description(data: Memory, eps: float, flags: int) -> c_void_p:
    """Describe a backward pass, all arrays like `data`."""
    hint = forward_description(FORWARD_TRAINING, data, eps, flags | USE_SHIFT)
    like = (data.descriptor,) * 3
    return make(
        "dnnl_batch_normalization_backward_primitive_desc_create",
        engine(), c_int(BACKWARD), *like, c_float(eps), c_uint(flags | USE_SHIFT), hint, c_void_p(),
    )  # fmt: skip
