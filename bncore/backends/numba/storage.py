"""The storage types in integer arithmetic: what their bits mean, and how numbers are rounded.

`sums.py` says what this text is.  Arrays of data hold float64, float32, int16 or uint16; int16
stands for the bits of float16, and uint16 for those of bfloat16.  Kernels read an element by
`value`, compute with the float32 or float64 that it gives, and write what `stored` gives.

Numbers are rounded once, to nearest, ties to even.  Subnormal numbers are kept.  NaN stays NaN: it
keeps its sign and the highest bits of its payload, and becomes quiet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.backends.partition import Data


def value(element: Any) -> Any:
    """Give the number for an element of an array: float64 as it is, everything else as float32."""
    return READ[type(element)](element)


def stored(number: Any, array: Data) -> Any:
    """Round a number to an element of this array; 16 bits are rounded from float32."""
    return ROUND[array.dtype.type](number)


def unsigned(place: int) -> int:
    """Give a place in an array, not counted from the end.

    Compiled it is unsigned, and Numba does not ask for every value whether it is negative.
    """
    return place


def from_bfloat16(element: Any) -> Any:
    """Read bfloat16: it is the upper half of a float32."""
    return np.uint32(np.uint32(element) << 16).view(np.float32)


def to_bfloat16(number: Any) -> Any:
    """Round float32 to bfloat16; a carry out of the fraction moves on into the exponent."""
    bits = np.int64(np.float32(number).view(np.uint32))
    if (bits & 0x7FFFFFFF) > 0x7F800000:  # NaN
        return np.uint16((bits >> 16) | 0x40)
    return np.uint16(shifted(bits, 16))


def from_float16(element: Any) -> Any:
    """Read float16: the exponent has another bias, and its subnormal numbers are normal ones."""
    bits = np.int64(element) & 0xFFFF
    sign, size = (bits & 0x8000) << 16, bits & 0x7FFF
    if size > 0x7C00:  # NaN
        size = (size << 13) | 0x7FC00000
    elif size == 0x7C00:  # infinity
        size = np.int64(0x7F800000)
    elif size >= 0x400:
        size = (size << 13) + (112 << 23)
    else:  # a multiple of 2**-24, which float32 holds as a normal number
        size = np.int64(np.float32(size * 2.0**-24).view(np.uint32))
    return np.uint32(sign | size).view(np.float32)


def to_float16(number: Any) -> Any:
    """Round float32 to float16; from 65520 on it is infinite, by the carry."""
    bits = np.int64(np.float32(number).view(np.uint32))
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:  # NaN
        half = 0x7E00 | ((size >> 13) & 0x3FF)
    elif size >= 0x47800000:  # from 2**16 on
        half = np.int64(0x7C00)
    elif size >= 0x38800000:  # from 2**-14 on
        half = shifted(size - (112 << 23), 13)
    else:  # a multiple of 2**-24, the step of subnormal numbers
        half = shifted((size & 0x7FFFFF) | 0x800000, min(126 - (size >> 23), 25))
    return np.uint16(sign | half).view(np.int16)


def shifted(bits: Any, places: Any) -> Any:
    """Shift to the right and round to nearest, ties to even."""
    return (bits + ((1 << (places - 1)) - 1) + ((bits >> places) & 1)) >> places


def as_it_is(element: Any) -> Any:
    """Read a number that needs no conversion."""
    return element


READ: dict[type, Any] = {
    np.float64: as_it_is,
    np.float32: as_it_is,
    np.int16: from_float16,
    np.uint16: from_bfloat16,
}
ROUND: dict[type, Any] = {
    np.float64: np.float64,
    np.float32: np.float32,
    np.int16: to_float16,
    np.uint16: to_bfloat16,
}
