"""Checks of arguments with one value per channel: weight, bias, mean, variance and the like.

Such an argument has one dimension, a real floating dtype and as many values as there are channels.
The kernels read it as float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import cast, dtype_shown, is_floating, plain_array
from bncore.arguments.layout import Array

Stat: TypeAlias = npt.NDArray[np.float64]


class Given(Protocol):
    """An argument that an output must not overlap."""

    @property
    def source(self) -> npt.NDArray[Any] | None:
        """Return the caller's array, or None if there is none."""


class Parameter(NamedTuple):
    """A per-channel argument: float64 values for the kernel, and the array they came from."""

    values: Stat
    source: Array


class NoParameter(NamedTuple):
    """A per-channel argument that the caller left out."""

    values: None = None
    source: None = None


def vector(name: str, value: object, size: int | None, axis: object = None) -> Array:
    """Return `value` as a 1-D array of a real float dtype; check its size unless `size` is None.

    If the size is that of a channel axis, `axis` names this axis for the message.
    """
    array = plain_array(name, value)
    if not is_floating(array.dtype):
        raise TypeError(f"{name}: expected a real floating dtype, got {dtype_shown(value, array)}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {array.shape}")
    if size is not None and array.shape[0] != size:
        source = "" if axis is None else f" ({size} channels along axis {axis})"
        raise ValueError(f"{name}: expected shape ({size},){source}, got {array.shape}")
    return array


def float64(values: Array) -> Stat:
    """Return values as contiguous, aligned float64; copy only if necessary."""
    found: Any = cast(values, np.float64)
    aligned: Stat = found if found.flags.aligned else found.copy()
    return aligned


def parameter(name: str, value: object, size: int | None, axis: object = None) -> Parameter:
    """Check an argument with one value per channel as `vector` does, and return it as float64."""
    source = vector(name, value, size, axis)
    return Parameter(float64(source), source)


def variances(name: str, value: object, size: int | None, axis: object = None) -> Parameter:
    """Check one variance per channel, which must not be negative, and return it as float64."""
    given = parameter(name, value, size, axis)
    if (given.values < 0.0).any():
        at = int(np.argmax(given.values < 0.0))
        raise ValueError(
            f"{name}: expected variances >= 0, got {float(given.values[at])} for channel {at}"
        )
    return given
