"""Checks of arguments that are not arrays: numbers, flags, axes and names.

Every message reads "<argument>: expected <what>, got <what>".
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np


def shown(value: object) -> str:
    """Describe a value for a message: scalars by their value, anything else by its type."""
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    return type(value).__name__


def integer(name: str, value: object, expected: str) -> int:
    """Return `value` as an int; refuse a bool."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def integer_at_least(name: str, value: object, least: int) -> int:
    """Return `value` as an int, which must be at least `least`."""
    number = integer(name, value, f"an integer >= {least}")
    if number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    return number


def real_or_nan(name: str, value: object) -> float:
    """Return `value` as a float, which may be NaN or infinite."""
    # Test the exact type first, because isinstance with an abstract class takes the longest.
    known = type(value) is float or type(value) is int
    if not known and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name}: expected a real number, got {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def real(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float between `low` and `high`, both included."""
    number = real_or_nan(name, value)
    if not (math.isfinite(number) and low <= number <= high):
        if high < math.inf:
            bounds = f" from {low:g} to {high:g}"
        else:
            bounds = f" >= {low:g}" if low > -math.inf else ""
        raise ValueError(f"{name}: expected a finite number{bounds}, got {shown(value)}")
    return number


def boolean(name: str, value: object) -> bool:
    """Return `value` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {shown(value)}")
    return bool(value)


def one_axis(axis: object, ndim: int, expected: str = "an integer") -> int:
    """Return `axis` as an index that counts from 0."""
    number = integer("axis", axis, expected)
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(
            f"axis: expected an integer from {-ndim} to {ndim - 1} for {ndim} dimensions, "
            f"got {number}"
            if ndim
            else f"axis: expected no axis for 0 dimensions, got {number}"
        )
    return number % ndim


def several_axes(axis: object, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names: None for all, one integer, or a tuple of integers."""
    if axis is None:
        return tuple(range(ndim))
    expected = "None, an integer or a tuple of integers"
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(one_axis(one, ndim, expected) for one in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis: expected every axis once, got {axis}")
    return axes


def float64_sums(name: str, value: object) -> bool:
    """Return whether a `dtype` asks for sums in float64; it must be None or float64."""
    if value is None:
        return False
    try:
        dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        got = shown(value)
    else:
        if dtype == np.float64:
            return True
        got = str(dtype)
    raise TypeError(f"{name}: expected None or float64, got {got}")


def option(name: str, value: object, options: tuple[str, ...]) -> str | None:
    """Return `value`, which must be None or one of the options."""
    if value is None:
        return None
    if isinstance(value, str) and value in options:
        return options[options.index(value)]  # not a subclass of str
    *others, last = "None", *map(repr, options)
    expected = f"{name}: expected {', '.join(others)} or {last}, got {shown(value)}"
    raise ValueError(expected) if isinstance(value, str) else TypeError(expected)
