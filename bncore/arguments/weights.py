"""How much each value of x counts: the record that the backends take, and the checks of masks.

A caller gives `where`, `weights` and `nan_policy`, which broadcast against x.  A backend gets one
array in x's memory order.  If the caller's arrays broadcast over the channels, all channels share
it, and nothing of x's size is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import is_floating, plain_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.layout import Canonical
from bncore.arguments.parameters import Given, Stat, float64
from bncore.arguments.scalars import option, real_or_nan, shown

# `nan_policy` is compared with this very object on the way to the fast path.
PROPAGATE: Literal["propagate"] = "propagate"
NAN_POLICIES = (PROPAGATE, "omit", "raise")
NanPolicy: TypeAlias = Literal["propagate", "omit", "raise"]

Array = npt.NDArray[Any]


class Weights(NamedTuple):
    """The weights of a call; the fields that `bncore.backends.contract.Weights` describes."""

    values: npt.NDArray[Any] | None
    omit_nan: bool
    fill: float | None
    count: npt.NDArray[np.float64]  # type: ignore[assignment]  # tuples have a method count


class Source(NamedTuple):
    """An argument that an output must not overlap."""

    source: Array


class GivenWeights(NamedTuple):
    """`where`, `weights`, `nan_policy` and `fill` of a call, checked.

    Attributes
    ----------
    values : the product of `where` and `weights`, as the backends take it, or None
    omit_nan : whether a NaN of x does not count
    fill : the value of y where the weight is 0, or None
    sources : the caller's arrays, which no output may overlap
    """

    values: Array | None
    omit_nan: bool
    fill: float | None
    sources: tuple[Given, ...]

    @property
    def weighs(self) -> bool:
        """Whether any value may have a weight other than 1."""
        return self.values is not None or self.omit_nan

    @property
    def counts_ones(self) -> bool:
        """Whether every weight is 0 or 1."""
        return self.values is None or self.values.dtype == np.uint8

    def numbers(self, x: Array) -> Array:
        """Return how many values of each channel have a weight above 0; x is as kernels take it."""
        counts = np.True_ if self.values is None else self.values != 0
        if self.omit_nan:
            counts = counts & ~is_nan(x)
        numbers: Array = np.broadcast_to(counts, x.shape).sum((0, 2))
        return numbers

    def where_needed(self, x: Array) -> GivenWeights:
        """Return these weights, or none where all values of x count once; x is as kernels take it.

        A norm that has another kernel for weights then has the same bits as without them.
        """
        ones = self.values is None or bool((self.values == 1).all())
        if not self.weighs or not ones or (self.omit_nan and bool(is_nan(x).any())):
            return self
        return self._replace(values=None, omit_nan=False)

    def record(self, count: Stat) -> Weights | None:
        """Return what a backend takes, or None if all values count alike.

        `count` is the sum of the weights of every channel: an array to fill, or the known sums.
        """
        return Weights(self.values, self.omit_nan, self.fill, count) if self.weighs else None

    def filling(self, channels: int) -> Weights | None:
        """Return what `normalize` takes, or None if it has nothing to fill."""
        return None if self.fill is None else self.record(np.zeros(channels))


ALL_ONE = GivenWeights(None, False, None, ())

# Arrays of the caller


def _collapsed(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """Return an array that broadcasts against `shape`, with size 1 where it repeats itself."""
    sizes = shape[len(shape) - array.ndim :]
    fits = array.ndim <= len(shape) and all(
        own in (1, size) for own, size in zip(array.shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that broadcasts against x's {shape}, got {array.shape}"
        )
    once = [
        slice(0, 1) if step == 0 and size > 1 else slice(None)
        for step, size in zip(array.strides, array.shape, strict=True)
    ]
    return array[tuple(once)]


def _kind(value: object, array: Array) -> str:
    """Describe a refused dtype, or the type of what is not an array."""
    return shown(value) if array.dtype.kind == "O" and value is not array else str(array.dtype)


def _mask(value: object, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return `where` as an array of bool with size 1 where it repeats, and as the caller's."""
    array = plain_array("where", value)
    if array.dtype != np.bool_:
        raise TypeError(f"where: expected bool, got {_kind(value, array)}")
    return _collapsed("where", array, shape), array


def _numbers(value: object, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return `weights` as bool or float64 with size 1 where it repeats, and as the caller's."""
    array = plain_array("weights", value)
    if array.dtype.kind not in "biu" and not is_floating(array.dtype):
        raise TypeError(f"weights: expected real numbers, got {_kind(value, array)}")
    short = _collapsed("weights", array, shape)
    if short.dtype.kind == "b" or short.size == 0:
        return short, array
    numbers = float64_in_order(short)
    with silent_arithmetic():
        if not (numbers.min() >= 0.0 and numbers.max() < np.inf):  # both are NaN if there is one
            bad = ~((numbers >= 0.0) & (numbers < np.inf))
            at = tuple(map(int, np.unravel_index(bad.argmax(), bad.shape)))
            raise ValueError(
                f"weights: expected finite numbers >= 0, got {float(numbers[at])} at {at}"
            )
    return numbers, array


def float64_in_order(array: Array) -> Array:
    """Return the array as aligned float64, in its own memory order if it is one block."""
    order = sorted(range(array.ndim), key=lambda i: -abs(array.strides[i]))
    back = sorted(range(array.ndim), key=order.__getitem__)
    block = float64(array.transpose(order))  # of one dimension if the array has none
    return block.transpose(back) if array.ndim else block.reshape(())


def _zeros_and_ones(mask: Array) -> Array:
    """Return a bool array as uint8 of 0 and 1, which its bytes need not be."""
    values: Array = mask.view(np.uint8)
    return (values != 0).view(np.uint8) if values.size and values.max() > 1 else values


def _product(where: Array | None, weights: Array | None) -> Array | None:
    """Return the product of the two as uint8 of 0 and 1, or float64."""
    if where is None and weights is None:
        return None
    if where is None or weights is None:
        product = weights if where is None else where
    elif weights.dtype.kind == "b":
        product = where & weights
    else:
        product = np.where(where, weights, 0.0)
    assert product is not None
    return _zeros_and_ones(product) if product.dtype.kind == "b" else product


def _canonical(
    values: Array, shape: tuple[int, ...], order: Sequence[int], kept: Sequence[int], to: Canonical
) -> Array:
    """Return weights as the kernels take them: (outer, 1, inner), or (outer, channels, inner)."""
    full = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    shared = all(full.shape[i] == 1 for i in kept)
    target = tuple(1 if shared and i in kept else size for i, size in enumerate(shape))
    repeated = full if full.shape == target else np.broadcast_to(full, target)
    block = np.ascontiguousarray(repeated.transpose(order))
    return block.reshape(to.outer, 1 if shared else to.channels, to.inner)


class Place(NamedTuple):
    """Where the values of x lie.

    Attributes
    ----------
    shape : x's shape
    order : its axes, slowest in memory first
    kept : the axes along which the channels lie
    sizes : the shape that the kernels take
    """

    shape: tuple[int, ...]
    order: Sequence[int]
    kept: Sequence[int]
    sizes: Canonical

    def index_of(self, at: tuple[int, int, int]) -> tuple[int, ...]:
        """Return the index of a value of x from the one that it has for the kernels."""
        flat = np.ravel_multi_index(at, self.sizes)
        in_order = np.unravel_index(flat, [self.shape[i] for i in self.order])
        return tuple(int(i) for _, i in sorted(zip(self.order, in_order, strict=True)))


def weights_of(
    shape: tuple[int, ...], where: object, weights: object, nan_policy: object, fill: object
) -> tuple[GivenWeights, str | None]:
    """Check the arguments that say what counts; return them, and the policy.

    The values broadcast against `shape`, and have size 1 where they repeat.
    """
    policy = option("nan_policy", nan_policy, NAN_POLICIES)
    mask = None if where is None else _mask(where, shape)
    numbers = None if weights is None else _numbers(weights, shape)
    constant = None if fill is None else real_or_nan("fill", fill)
    values = _product(mask and mask[0], numbers and numbers[0])
    sources = tuple(Source(pair[1]) for pair in (mask, numbers) if pair is not None)
    return GivenWeights(values, policy == "omit", constant, sources), policy


def given_weights(
    place: Place, where: object, weights: object, nan_policy: object, fill: object = None
) -> tuple[GivenWeights, str | None]:
    """Check the same arguments, and return the values as the kernels take them."""
    given, policy = weights_of(place.shape, where, weights, nan_policy, fill)
    if given.values is None:
        return given, policy
    return given._replace(values=_canonical(given.values, *place)), policy


def broadcast(name: str, value: object, shape: tuple[int, ...]) -> Array:
    """Return a checked `where` or `weights` as a view of x's shape."""
    return np.broadcast_to(plain_array(name, value), shape)


# NaN that counts

BLOCK = 1 << 18  # values that are looked at together


def is_nan(values: Array) -> Array:
    """Tell which values are NaN; uint16 is the bits of bfloat16."""
    if values.dtype == np.uint16:
        return (values & 0x7FFF) > 0x7F80
    return np.isnan(values)


def nan_that_counts(x: Array, weights: Array | None) -> tuple[int, int, int] | None:
    """Return where x has its first NaN whose weight is not 0, or None.

    Both are as kernels take them.
    """
    flat = x.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        found = np.flatnonzero(is_nan(flat[start : start + BLOCK]))
        if not found.size:
            continue
        outer, channel, inner = np.unravel_index(found + start, x.shape)
        row = 0 if weights is None or weights.shape[1] == 1 else channel
        counts = np.ones(found.size, bool) if weights is None else weights[outer, row, inner] != 0
        if counts.any():
            first = counts.argmax()
            return int(outer[first]), int(channel[first]), int(inner[first])
    return None
