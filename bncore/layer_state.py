"""What a layer is made of beside its calls: settings that are checked, arrays, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore import problem, scalars
from bncore.statistics import Moments

Array = npt.NDArray[np.floating[Any]]
Check = Callable[[str, object], Any]

PARAMETERS = ("weight", "bias")
RUNNING = ("running_mean", "running_var")
BATCHES = "num_batches_tracked"
INITIAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


# Settings


def setting(name: str, check: Check, doc: str) -> Any:
    """Make a property whose values are checked, kept in the attribute ``_name``."""
    place = f"_{name}"

    def get(self: Any) -> Any:
        return getattr(self, place)

    def put(self: Any, value: object) -> None:
        setattr(self, place, check(name, value))

    return property(get, put, doc=doc)


def option(name: str, check: Check, doc: str) -> Any:
    """Make a property whose values are checked, kept in the layer's options for the functions.

    The dictionary is made anew, since backward needs the one that its forward call had.
    """

    def get(self: Any) -> Any:
        return self._options[name]

    def put(self: Any, value: object) -> None:
        self._options = {**self._options, name: check(name, value)}

    return property(get, put, doc=doc)


def array(name: str, doc: str) -> Any:
    """Make a property for an array of the layer: None where it has none, checked if assigned.

    A parameter that is assigned is the very array; a running statistic is copied into the layer's.
    """
    place = f"_{name}"

    def get(self: Any) -> Array | None:
        found: Array | None = getattr(self, place)
        if found is None and name in self._names():
            raise RuntimeError(
                f"{name}: expected a layer that knows its channels"
                f"{' and its dtype' if name in PARAMETERS else ''}, got one before its first call"
            )
        return found

    def put(self: Any, value: object) -> None:
        own = get(self)
        if own is None:
            raise ValueError(f"{name}: expected no assignment, since the layer has none")
        given = problem.vector(name, value, own.shape[0])
        if name in RUNNING:
            write(own, given)
        else:
            setattr(self, place, problem.writable_array(name, given))

    return property(get, put, doc=doc)


def axis(name: str, value: object) -> int:
    """Check an axis as far as that is possible without x."""
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
    """Check a number of batches; an array of no dimensions will do, as files have it."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    return scalars.integer_at_least(name, value, 0)


def activation(name: str, value: object) -> str | None:
    """Check the name of an activation, or None."""
    return scalars.option(name, value, problem.ACTIVATIONS)


def one_of(*options: str) -> Check:
    """Make the check for one of these words."""

    def check(name: str, value: object) -> Any:
        if isinstance(value, str) and value in options:
            return value
        expected = f"{name}: expected {' or '.join(map(repr, options))}, got {scalars.shown(value)}"
        raise ValueError(expected) if isinstance(value, str) else TypeError(expected)

    return check


def affine(value: object) -> tuple[str, ...]:
    """Return the names of the parameters that there are."""
    if isinstance(value, (bool, np.bool_)):
        return PARAMETERS if value else ()
    if isinstance(value, str) and value in PARAMETERS:
        return (value,)
    raise (ValueError if isinstance(value, str) else TypeError)(
        f"affine: expected True, False, 'weight' or 'bias', got {scalars.shown(value)}"
    )


def floating(name: str, value: Any) -> np.dtype[Any]:
    """Return a dtype of real floating numbers in native byte order."""
    try:
        dtype = np.dtype(value).newbyteorder("=")
    except TypeError as error:
        raise TypeError(f"{name}: expected a dtype, got {scalars.shown(value)}") from error
    if dtype.kind != "f":
        raise TypeError(f"{name}: expected a real floating dtype, got {dtype}")
    return dtype


# Arrays


def initial(name: str, channels: int, dtype: npt.DTypeLike) -> Array:
    """Return the array of this name as a new layer has it."""
    made: Array = np.full(channels, INITIAL[name], dtype)
    return made


def write(target: Array, values: Array) -> None:
    """Write checked values, rounded in silence."""
    with np.errstate(all="ignore"):
        np.copyto(target, values, casting="unsafe")


def cast(values: Array, like: Array) -> Array:
    """Return values in the dtype of another array, rounded in silence."""
    return problem.cast(values, like.dtype.newbyteorder("="))


def finite(moments: Moments) -> bool:
    """Tell whether every mean and variance is finite."""
    return bool(np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all())


def require_finite(moments: Moments) -> None:
    """Refuse a batch with a mean or variance that is NaN or infinite."""
    bad = ~(np.isfinite(moments.mean) & np.isfinite(moments.m2))
    if bad.any():
        raise FloatingPointError(
            f"x: expected finite mean and variance, got NaN or infinity in channel {bad.argmax()} "
            f"({bad.sum()} of {bad.size} channels)"
        )


def checked_state(
    state: Mapping[str, Any], names: tuple[str, ...], channels: int | None
) -> dict[str, Any]:
    """Return the entries of a state dictionary, which has to have exactly these names.

    Raises
    ------
    TypeError, ValueError
        Where a name is missing or unknown, or a value does not fit.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dictionary, got {scalars.shown(state)}")
    missing = [name for name in names if name not in state]
    unknown = [name for name in state if name not in names]
    if missing or unknown:
        got = ", ".join(map(str, state)) or "none"
        raise ValueError(f"state: expected the names {', '.join(names) or 'none'}, got {got}")
    checked: dict[str, Any] = {}
    for name in names:
        if name == BATCHES:
            checked[name] = batches(name, state[name])
        else:
            checked[name] = problem.vector(name, state[name], channels)
            channels = checked[name].shape[0]
    return checked


# Averages


def weight_of_new(momentum: float | None, debias: bool, tracked: int) -> float:
    """Return the weight of a new batch in the running statistics, after so many others.

    ``momentum``; ``1 / t`` for the t-th batch where it is None, which gives the mean over all
    batches.  With `debias`, ``momentum / (1 - (1 - momentum)**t)``: what the moving average over
    batches alone is, with no share of the initial 0 and 1.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 3, the
    division by 1 - beta**t: with avg(t) = (1 - m) avg(t-1) + m b(t) and w(t) = 1 - (1 - m)**t, the
    quotient q = avg / w obeys q(t) = q(t-1) + m / w(t) (b(t) - q(t-1)), for w(t) - m =
    (1 - m) w(t-1).  So the running statistics themselves stay free of bias.

    Examples
    --------
    >>> weight_of_new(0.1, False, 5), weight_of_new(None, False, 4), weight_of_new(0.5, True, 1)
    (0.1, 0.2, 0.6666666666666666)
    """
    if momentum is None:
        return 1.0 / (tracked + 1)
    if not debias or momentum == 0.0:
        return momentum
    if momentum == 1.0:
        return 1.0
    return momentum / -math.expm1((tracked + 1) * math.log1p(-momentum))
