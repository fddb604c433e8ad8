"""Where arrays lie in memory: the order of their axes, one block, the same elements, overlaps."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# The dtypes of x by their characters, in native byte order.
NATIVE_DTYPES: dict[str, np.dtype[Any]] = {"f": np.dtype(np.float32), "d": np.dtype(np.float64)}

# The work that np.shares_memory may do before the answer counts as "yes".
OVERLAP_WORK: Any = 1 << 16


def memory_order(array: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the axes, slowest in memory first: the order that NumPy's order="K" keeps.

    The place of an axis of size 1 means nothing, since no step is taken along it.
    """
    axes = range(array.ndim)
    if array.flags.c_contiguous:
        return tuple(axes)
    if array.flags.f_contiguous:
        return tuple(reversed(axes))
    strides = array.strides
    return tuple(sorted(axes, key=lambda i: -abs(strides[i])))


def readable(view: npt.NDArray[Any]) -> bool:
    """Tell whether the kernels can take the array's memory as it is."""
    return view.flags.c_contiguous and view.flags.aligned and view.dtype.isnative


def block(array: Array, order: tuple[int, ...]) -> Array:
    """Return the axes in this order as a C-contiguous native array; copied where it is not that."""
    view = array.transpose(order)
    if readable(view):
        return view
    return np.array(view, dtype=NATIVE_DTYPES[view.dtype.char], order="C")


def in_one_block(array: Array) -> Array:
    """Return the array as kernels can take it, in its own shape; copied where it is not that."""
    order = memory_order(array)
    return block(array, order).transpose(sorted(range(array.ndim), key=order.__getitem__))


def share_memory(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays have a byte in common; what is too hard to tell counts as yes."""
    try:
        return np.shares_memory(a, b, max_work=OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def same_elements(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays are the same elements of memory in the same order."""
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
    """Tell whether elements of the array have a byte in common; hard cases count as yes."""
    if not array.size:
        return False
    reach = array.itemsize
    for stride, size in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False
