"""Properties for the settings and arrays of a layer, which check what is assigned to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import problem, scalars
from bncore.arguments.arrays import cast, is_floating, plain_array, writable_array
from bncore.arguments.bfloat16 import bfloat16_dtype, in_native_order
from bncore.arguments.parameters import vector

Array = npt.NDArray[np.floating[Any]]
Check = Callable[[str, object], Any]

PARAMETERS = ("weight", "bias")
RUNNING = ("running_mean", "running_var")
BATCHES = "num_batches_tracked"
INITIAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def setting(name: str, check: Check, doc: str) -> Any:
    """Make a property that checks its values and keeps them in the attribute ``_name``."""
    place = f"_{name}"

    def get(self: Any) -> Any:
        return getattr(self, place)

    def put(self: Any, value: object) -> None:
        setattr(self, place, check(name, value))

    return property(get, put, doc=doc)


def option(name: str, check: Check, doc: str) -> Any:
    """Make a property that checks its values and keeps them in the options for the functions.

    Every assignment makes a new dictionary of options, because backward needs the dictionary of its
    forward call.
    """

    def get(self: Any) -> Any:
        return self._options[name]

    def put(self: Any, value: object) -> None:
        self._options = {**self._options, name: check(name, value)}

    return property(get, put, doc=doc)


def array(name: str, doc: str) -> Any:
    """Make a property for an array of the layer, which is None if the layer has no such array.

    Assigned values are checked.  An assigned parameter becomes the layer's array itself; assigned
    running statistics are copied into the layer's array.
    """
    place = f"_{name}"

    def get(self: Any) -> Array | None:
        found: Array | None = getattr(self, place)
        if found is None and name in self._names():
            wanted, made = "channels", "BatchNorm(64)"
            if name in PARAMETERS:
                wanted, made = "channels and dtype", "BatchNorm(64, dtype=np.float32)"
            raise RuntimeError(
                f"{name}: expected a layer that knows its {wanted}, as {made} does, got one "
                "before its first call"
            )
        return found

    def put(self: Any, value: object) -> None:
        own = get(self)
        if own is None:
            raise ValueError(f"{name}: expected no assignment, since the layer has none")
        given = vector(name, value, own.shape[0])
        if name in RUNNING:
            write(own, given)
        else:
            writable_array(name, given)
            setattr(self, place, given)

    return property(get, put, doc=doc)


def write(target: Array, values: Array) -> None:
    """Write checked values, rounded once and without warnings."""
    np.copyto(target, cast(values, target.dtype))


def axis(name: str, value: object) -> int:
    """Check an axis as far as this is possible before x is known."""
    return scalars.integer(name, value, "an integer")


def at_least_0(name: str, value: object) -> float:
    """Check a real number >= 0."""
    return scalars.real(name, value, 0.0)


def share(name: str, value: object) -> float:
    """Check a real number from 0 to 1."""
    return scalars.real(name, value, 0.0, 1.0)


def share_or_none(name: str, value: object) -> float | None:
    """Check a real number from 0 to 1, or None."""
    return None if value is None else share(name, value)


def threads(name: str, value: object) -> int | None:
    """Check a number of threads, or None."""
    return None if value is None else scalars.integer_at_least(name, value, 1)


def batches(name: str, value: object) -> int:
    """Check a number of batches; it may be an array without dimensions, as in saved files."""
    if getattr(value, "shape", None) == ():
        value = plain_array(name, value)[()]
    return scalars.integer_at_least(name, value, 0)


def batches_or_each(name: str, value: object, channels: int | None) -> int | npt.NDArray[np.int64]:
    """Check a number of batches, or an array with one for each channel."""
    if getattr(value, "shape", ()) == ():
        return batches(name, value)
    given = plain_array(name, value)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers >= 0, got {given.dtype}")
    if given.shape != (channels,):
        raise ValueError(f"{name}: expected an integer or shape ({channels},), got {given.shape}")
    if (given < 0).any():
        raise ValueError(f"{name}: expected integers >= 0, got {given.min()}")
    return given.astype(np.int64)


def activation(name: str, value: object) -> str | None:
    """Check the name of an activation, or None."""
    return scalars.option(name, value, problem.ACTIVATIONS)


def one_of(*options: str) -> Check:
    """Make a check that accepts only one of these words."""

    def check(name: str, value: object) -> Any:
        if isinstance(value, str) and value in options:
            return value
        expected = f"{name}: expected {' or '.join(map(repr, options))}, got {scalars.shown(value)}"
        raise ValueError(expected) if isinstance(value, str) else TypeError(expected)

    return check


on_single = one_of("raise", "running")


def affine(value: object) -> tuple[str, ...]:
    """Return the names of the parameters that the layer has."""
    if isinstance(value, (bool, np.bool_)):
        return PARAMETERS if value else ()
    if isinstance(value, str) and value in PARAMETERS:
        return (value,)
    raise (ValueError if isinstance(value, str) else TypeError)(
        f"affine: expected True, False, 'weight' or 'bias', got {scalars.shown(value)}"
    )


def floating(name: str, value: Any) -> np.dtype[Any]:
    """Check that `value` is a real floating dtype, and return it in native byte order."""
    if isinstance(value, str) and value == "bfloat16":
        return bfloat16_dtype()  # NumPy knows the name only after ml_dtypes has been imported
    try:
        dtype = in_native_order(np.dtype(value))
    except TypeError as error:
        raise TypeError(f"{name}: expected a dtype, got {scalars.shown(value)}") from error
    if not is_floating(dtype):
        raise TypeError(f"{name}: expected a real floating dtype, got {dtype}")
    return dtype
