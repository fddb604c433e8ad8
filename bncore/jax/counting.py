"""What counts in a call: `where`, `weights`, `nan_policy` and `fill`, and what they do in formulas.

A call has one array of weights at most, bool or of floating point.  It has x's shape, but size 1
along the channels if all channels share it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bncore.arguments import scalars
from bncore.arguments.arrays import is_floating
from bncore.arguments.problem import Problem
from bncore.arguments.weights import NAN_POLICIES
from bncore.jax import devices
from bncore.jax.checks import arithmetic, array
from bncore.jax.handlers import Settings

Array: TypeAlias = jax.Array


# Arguments


def traced(*arrays: Any) -> bool:
    """Tell whether the values of an array are not known, because a call is being traced."""
    return any(isinstance(one, jax.core.Tracer) for one in arrays)


def _fitted(name: str, given: Array, x: Array) -> Array:
    """Return an array that broadcasts against x, with as many dimensions as x."""
    missing = x.ndim - given.ndim
    sizes = x.shape[max(missing, 0) :]
    if missing < 0 or any(a not in (1, b) for a, b in zip(given.shape, sizes, strict=True)):
        raise ValueError(
            f"{name}: expected a shape that broadcasts against x's {x.shape}, got {given.shape}"
        )
    return given.reshape((1,) * missing + given.shape)


def _mask(value: object, x: Array) -> Array:
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        value = np.asarray(value.view(np.uint8) != 0)  # its bytes may be others than 0 and 1
    mask = array("where", value)
    if mask.dtype != np.bool_:
        raise TypeError(f"where: expected bool, got {mask.dtype}")
    return _fitted("where", mask, x)


def _numbers(value: object, x: Array) -> Array:
    """Return weights as bool or floating point; refuse those that are no finite numbers >= 0."""
    numbers = array("weights", value)
    kind = np.dtype(numbers.dtype)
    if kind.kind not in "biu" and not is_floating(kind):
        raise TypeError(f"weights: expected real numbers, got {kind}")
    numbers = _fitted("weights", numbers, x)
    if kind.kind == "b":
        return numbers
    numbers = numbers.astype(jax.dtypes.canonicalize_dtype(np.float64))
    if not traced(numbers):
        known = np.asarray(numbers)
        bad = ~((known >= 0.0) & (known < np.inf))
        if bad.any():
            at = tuple(map(int, np.unravel_index(bad.argmax(), bad.shape)))
            raise ValueError(
                f"weights: expected finite numbers >= 0, got {float(known[at])} at {at}"
            )
    return jax.lax.stop_gradient(numbers)


def checked(
    settings: Settings, x: Array, where: object, weights: object, nan_policy: object, fill: object
) -> tuple[Settings, Array | None]:
    """Return the settings and the weights of a call."""
    policy = scalars.option("nan_policy", nan_policy, NAN_POLICIES)
    constant = None if fill is None else scalars.real_or_nan("fill", fill)
    mask = None if where is None else _mask(where, x)
    given = None if weights is None else _numbers(weights, x)
    if mask is not None and given is not None:
        given = mask & given if given.dtype == np.bool_ else jnp.where(mask, given, 0.0)
    elif given is None:
        given = mask
    if given is not None:
        shared = given.shape[settings.axis] == 1
        one = {settings.axis} if shared else set()
        given = jnp.broadcast_to(given, [1 if i in one else n for i, n in enumerate(x.shape)])
    if policy == "raise":
        _refuse_nan(settings, x, given)
    if given is None and policy != "omit":
        constant = None  # there is nothing to fill
    return settings._replace(omit_nan=policy == "omit", fill=constant), given


def _refuse_nan(settings: Settings, x: Array, weights: Array | None) -> None:
    """Refuse a NaN that counts, of values that are known."""
    if traced(x, weights):
        raise ValueError(
            "nan_policy: expected 'propagate' or 'omit' while a call is traced, got 'raise'"
        )
    known = None if weights is None else np.asarray(weights)
    Problem(np.asarray(x), settings.axis).weights(None, known, "raise")


# Formulas


class Counting(NamedTuple):
    """The weights of x's values, in formulas.

    Attributes
    ----------
    settings : of the call
    w : the weights, which broadcast against x, or None if all are 1
    number : the sum of the weights of each channel, on all devices; 1 if it is 0
    """

    settings: Settings
    w: Array | None
    number: Any

    @classmethod
    def of(cls, settings: Settings, x: Array, weights: Array | None) -> Counting:
        """Return the weights of x, which has the dtype of arithmetic."""
        w = None if weights is None else weights.astype(x.dtype)
        if settings.omit_nan:
            w = jnp.where(jnp.isnan(x), 0.0, jnp.ones_like(x) if w is None else w)
        if w is None:
            n = x.size // max(x.shape[settings.axis], 1) * devices.count(settings.devices)
            return cls(settings, None, n if isinstance(n, int) and n > 0 else jnp.maximum(n, 1))
        w = jax.lax.stop_gradient(w)
        own = cls(settings, w, 1.0)
        number = own.total(jnp.broadcast_to(w, x.shape))
        return own._replace(number=jnp.where(number > 0.0, number, 1.0))

    def sum(self, values: Array) -> Array:
        """Sum every channel on this device."""
        axes = tuple(i for i in range(self.settings.ndim) if i != self.settings.axis)
        return jnp.sum(values, axes, keepdims=True)

    def total(self, values: Array) -> Array:
        """Sum every channel on all devices."""
        return devices.total(self.settings.devices, self.sum(values))

    def counted(self, values: Array) -> Array:
        """Return values that are 0 where the weight is 0."""
        return values if self.w is None else jnp.where(self.w == 0.0, 0.0, values)

    def average(self, values: Array) -> Array:
        """Return the weighted mean of every channel."""
        return self.total(self.weighted(values)) / self.number

    def part(self, values: Array) -> Array:
        """Return what this device adds to the weighted mean of every channel, as (C,) values."""
        return (self.sum(self.weighted(values)) / self.number).ravel()

    def weighted(self, values: Array) -> Array:
        """Return values times their weights."""
        return values if self.w is None else self.counted(values) * self.w

    def spread(self, values: Array) -> Array:
        """Return values times each weight's part of the sum of the weights."""
        return values / self.number if self.w is None else values * (self.w / self.number)

    def filled(self, y: Array, constant: float | None = None) -> Array:
        """Return y with `fill` where the weight is 0, or with another constant where it fills."""
        fill = self.settings.fill
        if self.w is None or fill is None:
            return y
        constant = fill if constant is None else constant
        return jnp.where(self.w == 0.0, jnp.asarray(constant, y.dtype), y)


def clean(settings: Settings, x: Array, weights: Array | None, dy: Array) -> Array:
    """Return x without NaN and huge values where no statistic and no gradient needs them."""
    wide = x.astype(arithmetic(x.dtype))
    w = Counting.of(settings, wide, weights).w
    if w is None:
        return x
    unused = (w == 0.0) & ~jnp.isfinite(wide * wide)
    return jnp.where(unused if settings.fill is not None else unused & (dy == 0), 0, x)
