"""The current oneDNN, which PyTorch's wheel contains: reached through PyTorch's MKL-DNN tensors.

PyTorch runs an operation on such tensors with oneDNN.  ``Tensor.to_mkldnn`` copies into plain nchw
memory; here the tensors stand in the problem's own arrays, nchw or nhwc, and nothing is copied or
reordered.  oneDNN picks the layout of a result by that of its input, so that results are in the
problem's layout, too.  PyTorch cannot write these results to given memory, but with
`KEPT_MEMORY` a call takes the memory that the result of the call before gave back, without page
faults, as if it was given.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bncore.programs.bench.cases import EPS, MAIN, Array, Case, Problem
from bncore.programs.bench.peers import Call, Unavailable
from bncore.programs.bench.peers.pytorch import Torch, array_of, tensor

aten = torch.ops.aten


class OneDnnOfTorch(Torch):
    """Forward in training and inference, and backward."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if not torch.backends.mkldnn.is_available():
            raise Unavailable("this PyTorch has no oneDNN")
        library()

    def can(self, case: Case) -> bool:
        """Take the three main operations on images and volumes, in every type but float64."""
        takes = case.operation in MAIN and case.dtype != "float64"
        return takes and case.output == "given" and len(case.shape) in (4, 5)

    def call(self, case: Case, p: Problem) -> Call:
        """Wrap the arrays; parameters and stored statistics are ordinary tensors."""
        x = wrapped(p.x, p)
        w, b, *stored = map(torch.from_numpy, (p.weight, p.bias, p.running_mean, p.running_var))
        if case.operation == "infer":
            return lambda: torch.native_batch_norm(x, w, b, *stored, False, 0.1, EPS)[0]
        given = (x, w, b, None, None, True, 0.1, EPS)
        if case.operation == "train":
            return lambda: torch.native_batch_norm(*given)[0]
        saved = torch.native_batch_norm(*given)[1:]
        known = (wrapped(p.dy, p), x, w, None, None, *saved, True, EPS, [True, True, True])
        return lambda: aten.native_batch_norm_backward(*known)

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Copy results to ordinary tensors, and move the channel axis back."""
        results = result if isinstance(result, tuple | list) else (result,)
        dense = [t.to_dense() if t.layout == torch._mkldnn else t for t in results]
        return tuple(array_of(t, p) for t in dense)


@cache
def library() -> ctypes.CDLL:
    """Load the C functions of PyTorch that make a tensor from memory and a layout."""
    loaded = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    if not hasattr(loaded, "aoti_torch_create_tensor_from_blob_v2"):
        raise Unavailable("this PyTorch cannot make an MKL-DNN tensor from memory")
    return loaded


def wrapped(array: Array, p: Problem) -> Any:
    """Make an MKL-DNN tensor that stands in an array's memory and has the array's layout."""
    plain = tensor(array, p)
    layout = description(tuple(plain.shape), plain.stride(), plain.dtype)
    kind = getattr(library(), f"aoti_torch_dtype_{p.dtype}")()
    sizes = (c_int64 * plain.ndim)(*plain.shape)
    contiguous = (c_int64 * plain.ndim)(*strides_of(tuple(plain.shape)))
    made = c_void_p()
    status = library().aoti_torch_create_tensor_from_blob_v2(
        c_void_p(plain.data_ptr()), c_int64(plain.ndim), sizes, contiguous, c_int64(0),
        c_int32(kind), c_int32(library().aoti_torch_device_type_cpu()), c_int32(0),
        ctypes.byref(made), c_int32(library().aoti_torch_layout__mkldnn()),
        c_void_p(layout.ctypes.data), c_int64(layout.size),
    )  # fmt: skip
    if status:
        raise RuntimeError("PyTorch made no MKL-DNN tensor")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [c_void_p, ctypes.c_char_p, c_void_p]
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule(made, None, None))


def description(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Array:
    """Return oneDNN's description of a layout, as bytes.

    PyTorch gives the description of a plain tensor; the other strides are put in the place of its.
    """
    example = torch.zeros(shape, dtype=dtype).to_mkldnn()
    layout: Array = torch.ops.mkldnn._get_mkldnn_serialized_md(example).numpy().copy()
    words = layout[: layout.size // 8 * 8].view(np.int64)
    n, plain = len(shape), strides_of(shape)
    places = [i for i in range(words.size - n) if tuple(words[i : i + n]) == plain]
    if len(places) != 1:
        raise Unavailable("oneDNN describes layouts in another way than expected")
    words[places[0] : places[0] + n] = strides
    return layout


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous array, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def peer(name: str) -> OneDnnOfTorch:
    """Make the peer."""
    return OneDnnOfTorch(name)
