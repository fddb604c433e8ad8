"""What counts in compiled code: `where`, `weights`, `nan_policy` and `fill`.

Which of them a call has is known when it is compiled.  A call without any compiles as if there were
no such arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import overload

from bncore.numba.calls import ONLY_COMPILED, canonical, data_type, place


class Counted(NamedTuple):
    """What counts in a call, in fields of bncore_weights.

    Attributes
    ----------
    values : weights of one dimension, uint8 or float64, in x's order; or None
    per_channel, omit_nan, filled : 0 or 1
    fill : float
    """

    values: Any
    per_channel: Any
    omit_nan: Any
    filled: Any
    fill: Any


def _type(given: Any) -> Any:
    """Return the type of an argument, None if it has its default or is None."""
    value = given.value if isinstance(given, types.Omitted) else given
    return None if value is None or isinstance(value, types.NoneType) else value


def _array(name: str, given: Any, kinds: Any, expected: str) -> Any:
    kind = _type(given)
    if kind is not None and not (isinstance(kind, types.Array) and isinstance(kind.dtype, kinds)):
        raise TypingError(f"{name}: expected an array of {expected}, got {given}")
    return kind


def counted(x, axis, where, weights, nan_policy, fill):
    """Return a `Counted`, or None if every value counts once."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(counted)
def _counted(x, axis, where, weights, nan_policy, fill):
    data_type("x", x)  # Numba goes on with its types after an earlier refusal
    mask = _array("where", where, types.Boolean, "bool")
    real = (types.Boolean, types.Integer, types.Float)
    numbers = _array("weights", weights, real, "real numbers")
    policy, constant = _type(nan_policy), _type(fill)
    for name, kind in (("where", mask), ("weights", numbers)):
        if kind is not None and kind.ndim > x.ndim:
            raise TypingError(f"{name}: expected at most x's {x.ndim} dimensions, got {kind.ndim}")
    if policy is not None and not isinstance(policy, (types.UnicodeType, types.StringLiteral)):
        raise TypingError(f"nan_policy: expected a string, got {nan_policy}")
    if mask is None and numbers is None and policy is None:
        return lambda x, axis, where, weights, nan_policy, fill: None
    filled = np.int32(constant is not None)

    def implementation(x, axis, where, weights, nan_policy, fill):
        at = place(x, axis)
        omit, refuse = policy_of(nan_policy)
        shared = is_shared(where, x, at) and is_shared(weights, x, at)
        values = product(where, weights, x, at, shared)
        if refuse:
            refuse_nan(x, at, values, shared)
        return Counted(values, np.int32(not shared), np.int32(omit), filled, constant_of(fill))

    return implementation


def filling(counted, fill):
    """Return what a call with given statistics takes: `counted`, or None if it fills nothing."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(filling)
def _filling(counted, fill):
    if _type(fill) is None:
        return lambda counted, fill: None
    return lambda counted, fill: with_counts(counted, None)


def with_counts(counted, counts):
    """Return the argument `weights` of `call`."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(with_counts)
def _with_counts(counted, counts):
    if isinstance(counted, types.NoneType):
        return lambda counted, counts: None
    return lambda counted, counts: (counted, counts)


def policy_of(nan_policy):
    """Return whether NaN is omitted, and whether it is refused."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(policy_of)
def _policy_of(nan_policy):
    if _type(nan_policy) is None:
        return lambda nan_policy: (False, False)

    def implementation(nan_policy):
        omit, refuse = nan_policy == "omit", nan_policy == "raise"
        if not (omit or refuse or nan_policy == "propagate"):
            raise ValueError("nan_policy: expected 'propagate', 'omit' or 'raise', got another one")
        return omit, refuse

    return implementation


def constant_of(fill):
    """Return the constant of y, 0 if there is none."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(constant_of)
def _constant_of(fill):
    kind = _type(fill)
    if kind is None:
        return lambda fill: 0.0
    if not isinstance(types.unliteral(kind), (types.Integer, types.Float)) and not isinstance(
        kind, (int, float)
    ):
        raise TypingError(f"fill: expected a real number, got {fill}")
    return lambda fill: np.float64(fill)


def is_shared(given, x, at):
    """Tell whether all channels share a mask or weights; true for None."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(is_shared)
def _is_shared(given, x, at):
    if _type(given) is None:
        return lambda given, x, at: True
    missing = x.ndim - given.ndim
    return lambda given, x, at: at < missing or given.shape[at - missing] == 1


@njit
def laid_out(given, x, at, shared):
    """Return an array as a view of x's shape, of size 1 along the channels if they share it."""
    shape = tuple_setitem(x.shape, at, 1) if shared else x.shape
    return np.broadcast_to(given, shape)


def fits(given, x):
    """Tell whether an array broadcasts against x."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(fits)
def _fits(given, x):
    missing = x.ndim - given.ndim

    def implementation(given, x):
        for i in range(given.ndim):
            if given.shape[i] != 1 and given.shape[i] != x.shape[missing + i]:
                return False
        return True

    return implementation


def product(where, weights, x, at, shared):
    """Return the product of mask and weights in x's order, of one dimension; None without both."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(product)
def _product(where, weights, x, at, shared):
    masked, weighted = _type(where) is not None, _type(weights) is not None
    if not masked and not weighted:
        return lambda where, weights, x, at, shared: None
    if not weighted:
        return lambda where, weights, x, at, shared: mask_of(where, x, at, shared)
    if not masked:
        return lambda where, weights, x, at, shared: numbers_of(weights, x, at, shared)

    def implementation(where, weights, x, at, shared):
        mask, numbers = mask_of(where, x, at, shared), numbers_of(weights, x, at, shared)
        for i in range(numbers.size):
            if mask[i] == 0:
                numbers[i] = 0.0
        return numbers

    return implementation


@njit
def mask_of(where, x, at, shared):
    """Return a mask as uint8 in x's order."""
    if not fits(where, x):
        raise ValueError("where: expected a shape that broadcasts against x's, got another one")
    return laid_out(where, x, at, shared).astype(np.uint8).ravel()


@njit
def numbers_of(weights, x, at, shared):
    """Return weights as float64 in x's order; refuse what is no finite number >= 0."""
    if not fits(weights, x):
        raise ValueError("weights: expected a shape that broadcasts against x's, got another one")
    numbers = laid_out(weights, x, at, shared).astype(np.float64).ravel()
    for value in numbers:
        if not (value >= 0.0 and value < np.inf):
            raise ValueError("weights: expected finite numbers >= 0, got another one")
    return numbers


def refuse_nan(x, at, values, shared):
    """Raise an error if a NaN of x counts."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(refuse_nan)
def _refuse_nan(x, at, values, shared):
    weighs = isinstance(values, types.Array)

    def implementation(x, at, values, shared):
        flat, shape = x.ravel(), canonical(x.shape, at, at + 1)
        for i in range(flat.size):
            if np.isnan(flat[i]):
                sample = i // (shape.channels * shape.inner)
                own = sample * shape.inner + i % shape.inner if shared else i
                if not weighs or values[own] != 0:
                    raise ValueError(
                        "x: expected no NaN with nan_policy='raise', got NaN in channel "
                        + str(i // shape.inner % shape.channels)
                    )

    return implementation
