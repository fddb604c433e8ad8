"""PyTorch's tensors as NumPy's arrays, on the same memory, and new tensors for results.

Results are tensors of PyTorch's own allocator.  Fresh memory of tens of megabytes costs more than
a batch norm over it, one page fault per 4 KiB; so Linux is told, as NumPy tells it for its own
arrays, that large pages may serve a large result.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bncore import pool

Array: TypeAlias = npt.NDArray[np.floating[Any]]

LARGE = 1 << 22  # bytes: from where on NumPy asks for large pages, too


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's madvise, where that is Linux's and knows large pages."""
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


def array(tensor: torch.Tensor) -> Array:
    """Return a tensor's memory as an array, with no copy; gradients are not its business."""
    values: Array = tensor.detach().numpy()
    return values


def optional(tensor: torch.Tensor | None) -> Array | None:
    """Return a tensor's memory as an array; None for None."""
    return None if tensor is None else array(tensor)


def output(x: torch.Tensor) -> torch.Tensor:
    """Return a new tensor of x's shape, dtype and, where x has no gaps, strides.

    It is the allocator's, or a block of `bncore.set_buffer_pool` where there is such a pool.
    """
    if pool.current is not None:
        pooled = pool.output(array(x))
        if pooled is not None and (new := torch.from_numpy(pooled)).stride() == x.stride():
            return new
    new = torch.empty_like(x)
    if _madvise is not None and new.nbytes >= LARGE:
        start = new.data_ptr()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise(first, start + new.nbytes - first, mmap.MADV_HUGEPAGE)  # an advice: may fail
    return new


def in_order_of(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, of x's shape, in x's memory order; copied once where it has another."""
    if tensor.stride() == x.stride() or tensor.shape != x.shape:
        return tensor  # another shape is refused later
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)
