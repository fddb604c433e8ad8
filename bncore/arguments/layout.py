"""How arrays lie in memory: the order of their axes, (outer, channels, inner), overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.bfloat16 import bits, in_native_order, is_bfloat16

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# The dtypes of x that NumPy has, by their characters, in native byte order.
NATIVE_DTYPES: dict[str, np.dtype[Any]] = {
    "e": np.dtype(np.float16),
    "f": np.dtype(np.float32),
    "d": np.dtype(np.float64),
}

# How much work np.shares_memory may do; if that is not enough, we assume an overlap.
OVERLAP_WORK: Any = 1 << 16


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return a dtype of x in native byte order, or None if x cannot have this dtype."""
    known = NATIVE_DTYPES.get(dtype.char)
    if known is None and is_bfloat16(dtype):
        return in_native_order(dtype)
    return known


def integer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return bool, or integers of 8 to 32 bits, in native byte order; None for any other dtype."""
    return dtype.newbyteorder("=") if dtype.kind in "biu" and dtype.itemsize <= 4 else None


def statistic_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of results per channel that have no other: x's, or float32 for 16 bits."""
    return NATIVE_DTYPES["f"] if dtype.itemsize == 2 else dtype


def dtype_of(array: npt.NDArray[Any]) -> np.dtype[Any]:
    """Return the dtype of an x, or of an array like it, in native byte order."""
    found = native_dtype(array.dtype) or integer_dtype(array.dtype)
    assert found is not None  # data_array has checked it
    return found


def has_dtype(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether an array has this dtype of x, in any byte order."""
    found = native_dtype(array.dtype)
    return found is not None and found == dtype  # NumPy takes None for float64


def memory_order(array: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the axes, slowest in memory first; this is the order that NumPy's order="K" keeps.

    The place of an axis of size 1 is arbitrary, because no step is ever taken along it.
    """
    axes = range(array.ndim)
    if array.flags.c_contiguous:
        return tuple(axes)
    if array.flags.f_contiguous:
        return tuple(reversed(axes))
    strides = array.strides
    return tuple(sorted(axes, key=lambda i: -abs(strides[i])))


class Canonical(NamedTuple):
    """The shape of an array as the kernels take it.

    `outer` is the product of the sizes of all axes that are slower in memory than the channels,
    `inner` that of all axes that are faster.
    """

    outer: int
    channels: int
    inner: int

    @property
    def values_per_channel(self) -> int:
        """The number of values of each channel."""
        return self.outer * self.inner


def canonical(sizes: Sequence[int], start: int, stop: int) -> Canonical:
    """Return (outer, channels, inner) for the sizes of an array's axes, slowest in memory first.

    The channels are the axes from `start` up to, but not including, `stop`.  This is the only place
    in Python where the three sizes are computed.  `bncore.numba` compiles this very function, so it
    uses nothing that Numba does not know.
    """
    outer = channels = inner = 1
    for i in range(len(sizes)):
        if i < start:
            outer *= sizes[i]
        elif i < stop:
            channels *= sizes[i]
        else:
            inner *= sizes[i]
    return Canonical(outer, channels, inner)


def readable(view: npt.NDArray[Any]) -> bool:
    """Tell whether the kernels can use the array's memory without a copy."""
    return view.flags.c_contiguous and view.flags.aligned and view.dtype.isnative


def block(array: Array, order: tuple[int, ...]) -> Array:
    """Return the array with its axes in this order, C-contiguous and native; copy if necessary."""
    view = array.transpose(order)
    if readable(view):
        return view
    copy: Array = np.array(bits(view), dtype=bits(view).dtype.newbyteorder("="), order="C")
    return copy.view(dtype_of(view))


def as_stored(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a block in the form in which backends take it: bfloat16 and bool as their bits."""
    return block.view(np.uint8) if block.dtype.kind == "b" else bits(block)


def in_one_block(array: Array) -> Array:
    """Return the array in its own shape with memory that kernels can use; copy if necessary."""
    order = memory_order(array)
    return block(array, order).transpose(sorted(range(array.ndim), key=order.__getitem__))


def share_memory(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays share a byte; the answer is yes if it is too hard to decide."""
    try:
        return np.shares_memory(a, b, max_work=OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def same_elements(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays have the same elements of memory in the same order."""
    if a is b:
        return True
    return (
        a.shape == b.shape
        and a.itemsize == b.itemsize
        and a.ctypes.data == b.ctypes.data
        and all(
            size <= 1 or s == t for size, s, t in zip(a.shape, a.strides, b.strides, strict=True)
        )
    )


def meets_itself(array: npt.NDArray[Any]) -> bool:
    """Tell whether elements of the array share a byte; yes if it is too hard to decide."""
    if not array.size:
        return False
    reach = array.itemsize
    for stride, size in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False
