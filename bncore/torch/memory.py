"""View PyTorch's tensors as NumPy's arrays on the same memory, and allocate tensors for results.

Tens of megabytes of new memory cost more time than a batch norm over them, because each 4 KiB cause
a page fault.  So large results reuse the memory of earlier results that are no longer needed.  They
also ask Linux for large pages, as NumPy does for its own arrays.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bncore.arguments import bfloat16, scalars
from bncore.arguments.arrays import cast
from bncore.arguments.parameters import Stat
from bncore.runtime import buffer_pool
from bncore.torch import compiled

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# Type strings of NumPy; bfloat16 is read as integers first.  Only masks and weights are integers.
NUMPY = {
    torch.float16: "<f2",
    torch.bfloat16: "<u2",
    torch.float32: "<f4",
    torch.float64: "<f8",
    torch.bool: "|b1",
    torch.uint8: "|u1",
    torch.int8: "|i1",
    torch.int16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
}
if sys.byteorder == "big":
    NUMPY = {kind: text.replace("<", ">") for kind, text in NUMPY.items()}

_zero = torch._is_zerotensor

LARGE = 1 << 22  # bytes; NumPy asks for large pages from this size on, too


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's madvise on Linux with large pages, otherwise None."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found: Callable[[int, int, int], int] = madvise
    return found


_madvise = _find_madvise()
_pool: buffer_pool.Pool | None = None  # used without the compiled part, which has its own pool


class _Memory:
    """A tensor's memory for NumPy; it keeps the tensor.

    `torch.Tensor.numpy` would forbid that the memory is ever resized, and sharded models resize it.
    """

    def __init__(self, tensor: torch.Tensor, dtype: str) -> None:
        self.tensor = tensor
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": dtype,
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


def array(tensor: torch.Tensor) -> Array:
    """Return a tensor's memory as an array, without a copy and without tracking gradients.

    NumPy has no bfloat16, and ml_dtypes may be missing, so such an array has `bfloat16.PRIVATE`.

    Raises
    ------
    TypeError
        If the tensor has no memory on the CPU that NumPy could read.
    """
    plain = tensor.detach()
    if not plain.is_cpu or plain.layout is not torch.strided or plain.is_neg() or _zero(plain):
        raise TypeError(f"expected a dense tensor on the CPU, got {plain.layout} on {plain.device}")
    values: Array
    if plain.numel() == 0:  # it may have no memory
        values = np.empty(plain.shape, NUMPY[plain.dtype])
    else:
        values = np.asarray(_Memory(plain, NUMPY[plain.dtype]))
    return values.view(bfloat16.PRIVATE) if plain.dtype is torch.bfloat16 else values


def tensor_of(values: Array) -> torch.Tensor:
    """Return an array's memory as a tensor; this undoes `array`."""
    if bfloat16.is_bfloat16(values.dtype):
        return torch.from_numpy(bfloat16.bits(values)).view(torch.bfloat16)
    return torch.from_numpy(values)


def copied(values: Array) -> torch.Tensor:
    """Return an array's values as a tensor of PyTorch's own memory, which can be resized."""
    return tensor_of(values).clone()


def optional(tensor: torch.Tensor | None) -> Array | None:
    """Return a tensor's memory as an array; None for None."""
    return None if tensor is None else array(tensor)


def rounded(values: Stat, dtype: torch.dtype) -> torch.Tensor:
    """Return float64 values as a new tensor of a dtype, each rounded once."""
    new = torch.empty(values.shape, dtype=dtype, device="cpu")
    target = array(new)
    target[...] = cast(values, target.dtype)
    return new


def output(x: torch.Tensor) -> torch.Tensor:
    """Return a new tensor of x's shape and dtype, and of x's strides if x has no gaps.

    Its memory comes from the allocator, or from the pool of `set_buffer_pool`.
    """
    if compiled.adapter is not None:
        made: torch.Tensor = compiled.adapter.output(x)
        return made
    if _pool is not None:
        pooled = buffer_pool.output(array(x), _pool)
        if pooled is not None and (new := tensor_of(pooled)).stride() == x.stride():
            return new
    new = torch.empty_like(x)
    if _madvise is not None and new.nbytes >= LARGE:
        start = new.data_ptr()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise(first, start + new.nbytes - first, mmap.MADV_HUGEPAGE)  # only advice; may fail
    return new


def set_buffer_pool(max_bytes: SupportsIndex) -> None:
    """Set how much memory of results that are no longer in use is kept for later results.

    The pool serves results of 1 MiB or more of all of bncore's functions and modules for PyTorch,
    in all threads.  `bncore.set_buffer_pool` does the same for NumPy arrays.

    Parameters
    ----------
    max_bytes : int
        The largest number of unused bytes to keep; tensors in use do not count.  0 keeps none.
        Initially it is 256 MiB, or 0 if the compiled part is missing.

    Raises
    ------
    TypeError, ValueError
        If `max_bytes` is not an integer, or is negative.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.set_buffer_pool(1 << 28)
    >>> x = torch.ones(64, 64, 64, 2)
    >>> places = set()
    >>> for _ in range(5):
    ...     y = bncore.torch.batch_norm(x, None, None, training=True)
    ...     places.add(y.data_ptr())
    >>> len(places) <= 2  # the new y is made while the last one is still there
    True
    """
    global _pool
    bound = scalars.integer_at_least("max_bytes", max_bytes, 0)
    if compiled.adapter is not None:
        compiled.adapter.set_pool(bound)
        return
    before, _pool = _pool, buffer_pool.Pool(bound) if bound else None
    if before is not None:
        before.close()


def in_order_of(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, which has x's shape, in x's memory order; copy it if necessary."""
    if tensor.shape != x.shape:
        return tensor  # the checks refuse another shape later
    if tensor.stride() == x.stride() and not (tensor.is_neg() or _zero(tensor)):
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)
