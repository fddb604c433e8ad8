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


def array(tensor: torch.Tensor) -> Array:
    """Return a tensor's memory as an array, without a copy and without tracking gradients.

    NumPy has no bfloat16, and ml_dtypes may be missing, so such an array has `bfloat16.PRIVATE`.
    """
    plain = tensor.detach()
    values: Array
    if plain.dtype is torch.bfloat16:
        values = plain.view(torch.uint16).numpy().view(bfloat16.PRIVATE)
    else:
        values = plain.numpy()
    return values


def tensor_of(values: Array) -> torch.Tensor:
    """Return an array's memory as a tensor; this undoes `array`."""
    if bfloat16.is_bfloat16(values.dtype):
        return torch.from_numpy(bfloat16.bits(values)).view(torch.bfloat16)
    return torch.from_numpy(values)


def optional(tensor: torch.Tensor | None) -> Array | None:
    """Return a tensor's memory as an array; None for None."""
    return None if tensor is None else array(tensor)


def rounded(values: Stat, dtype: torch.dtype) -> torch.Tensor:
    """Return float64 values as a new tensor of a dtype, each rounded once."""
    new = torch.empty(values.shape, dtype=dtype)
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
    if tensor.stride() == x.stride() or tensor.shape != x.shape:
        return tensor  # the checks refuse another shape later
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)
