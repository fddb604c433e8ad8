"""What `Moments` and `GradSums` share: float64 arrays of values per channel that do not change."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import vector

Stat: TypeAlias = npt.NDArray[np.float64]

new = object.__new__


def frozen(values: Stat) -> Stat:
    """Make an array read-only, and return it."""
    values.flags.writeable = False
    return values


def copied(values: npt.NDArray[Any]) -> Stat:
    """Copy the values to a new float64 array."""
    with silent_arithmetic():
        return np.array(values, dtype=np.float64, order="C")


def pair(first: str, a: object, second: str, b: object) -> tuple[Stat, Stat]:
    """Copy two per-channel arrays, which must have the same size."""
    one = vector(first, a, None)
    two = vector(second, b, one.shape[0])
    return copied(one), copied(two)


def same(a: Stat, b: Stat) -> bool:
    """Tell whether two arrays have the same values; NaN equals NaN."""
    return np.array_equal(a, b, equal_nan=True)


def reduced(value: object, slots: tuple[str, ...]) -> tuple[Any, ...]:
    """Return what pickle and copy need to make the object again."""
    fields = {name: getattr(value, name) for name in slots}
    return restored, (type(value), fields), getattr(value, "__dict__", None)


def restored(kind: type, fields: dict[str, Any]) -> Any:
    """Make a `Moments` or `GradSums`, or an object of a subclass, from its saved fields.

    An array may lie in a received message, at any address (PEP 574).  The kernels need alignment.
    """
    self: Any = new(kind)
    for name, value in _with_counts(fields).items():
        if isinstance(value, np.ndarray):
            value = value if value.flags.aligned else value.copy()
            value.setflags(write=False)
        setattr(self, name, value)
    return self


def _with_counts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return saved fields with one count per channel; earlier `Moments` have one int for all."""
    count = fields.get("_count")
    if not isinstance(count, int):
        return fields
    counts = np.full(fields["_mean"].shape, float(count))
    if count:
        return {**fields, "_count": counts}
    mean, m2 = np.full_like(counts, np.nan), np.zeros_like(counts)
    return {"_count": counts, "_mean": mean, "_m2": m2, "_low": 0.0}


def of_class(kind: Any, value: object) -> Any:
    """Return `value`, or for an instance of a subclass an object of class `kind` itself.

    A subclass may override the properties, and return arrays of any size or another array every
    time.
    """
    if type(value) is kind:
        return value
    fields = {name: vars(kind)[name].__get__(value) for name in kind.__slots__}
    return restored(kind, fields)
