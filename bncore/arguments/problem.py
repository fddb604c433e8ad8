"""x in the shape that the kernels take, and the checks of all arguments that must fit x.

An array that is one contiguous block of memory, with its axes in any order, is viewed as
(outer, channels, inner).  The order comes from the strides, not from the shape, so an NCHW-shaped
view of NHWC memory is (N*H*W, C, 1) and is not copied.  Kernels get bfloat16 as its bits in uint16.

Every message reads "<argument>: expected <what>, got <what>".  Functions here write to nothing
that the caller owns, except `Output.finish`, which is called last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bncore.arguments import layout
from bncore.arguments.arrays import cast, data_array, is_integer, memory_of, writable_array
from bncore.arguments.bfloat16 import bits, in_native_order
from bncore.arguments.layout import Array
from bncore.arguments.parameters import (
    Given,
    NoParameter,
    Parameter,
    Stat,
    parameter,
    variances,
)
from bncore.arguments.scalars import one_axis, option, real
from bncore.arguments.weights import GivenWeights, Place, given_weights, nan_that_counts

# A function that makes a new array from a shape and a dtype, as `numpy.empty` does.
Allocate: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]

FLOAT32: np.dtype[Any] = np.dtype(np.float32)
ACTIVATIONS = ("relu", "leaky_relu")


# Results, and what is fused


class Output:
    """The destination of a result.

    Attributes
    ----------
    values : the array that the kernel writes to, in x's canonical shape; uint16 for bfloat16
    memory : the caller's memory, in x's shape
    """

    __slots__ = ("_copy", "_returned", "memory", "values")

    def __init__(
        self, returned: Array, memory: Array, values: Array, copy: tuple[Array, Array] | None = None
    ) -> None:
        self._returned = returned
        self.memory = memory
        self._copy = copy
        self.values = values

    def finish(self) -> Array:
        """Return the array that the caller gets, and fill it if the kernel wrote elsewhere.

        It is the caller's own object, which may belong to a subclass of ndarray.
        """
        if self._copy is not None:
            np.copyto(*self._copy)
        return self._returned


class Fusion(NamedTuple):
    """What is fused with batch norm; the fields that `bncore.backends.contract` describes."""

    activation: str | None
    slope: float
    residual: Array | None = None
    source: Array | None = None  # the residual as the caller passed it
    dresidual: Array | None = None
    bias: Stat | None = None

    def asked(self) -> Fusion | None:
        """Return itself, or None if nothing is fused."""
        plain = self.activation is None and self.residual is None and self.dresidual is None
        return None if plain else self

    def backward(self, bias: Parameter | NoParameter, dresidual: Output | None) -> Fusion | None:
        """Return itself with the fields that backward needs, or None if nothing is fused."""
        target = None if dresidual is None else dresidual.values
        return self._replace(bias=bias.values, dresidual=target).asked()


# The canonical shape


class Problem:
    """x as (outer, channels, inner), and the checks of arguments that must fit x.

    Attributes
    ----------
    x : (outer, channels, inner) array, C-contiguous, aligned, native-endian
        uint16 for bfloat16, uint8 for bool; x's own memory if it is one contiguous block, otherwise
        one copy in x's memory order.  The copy is made on first access, so that a caller who only
        checks arguments makes none.
    array : x's memory in its shape, a view that nobody else has
    shape, dtype : x's shape as given, and its dtype in native byte order; float32 for integers
    channels, count : the number of channels, and of values per channel
    """

    __slots__ = (
        "_at", "_axis", "_canonical", "_order", "_sizes", "_source",
        "array", "channels", "count", "dtype", "shape",
    )  # fmt: skip

    def __init__(
        self, x: object, axis: object, source: Array | None = None, integers: bool = False
    ) -> None:
        """Check x, which may have integers if `integers` says so.

        If x is a copy, `source` is the caller's array, for overlaps with outputs.
        """
        # This view stays as it is while the checks of other arguments run code of the caller.
        array = memory_of(data_array("x", x, integers))
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        channel_axis = one_axis(axis, array.ndim)
        order = layout.memory_order(array)
        at = order.index(channel_axis)
        sizes = layout.canonical([array.shape[i] for i in order], at, at + 1)
        self.shape = array.shape
        self.dtype = FLOAT32 if is_integer(array) else layout.dtype_of(array)
        self.channels = sizes.channels
        self.count = sizes.values_per_channel
        self._axis = axis
        self._order = order
        self._at = at
        self._sizes = sizes
        self._source = array if source is None else source
        self.array = array
        self._canonical: Array | None = None

    @property
    def x(self) -> Array:
        """The values of x in the shape that the kernels take."""
        if self._canonical is None:
            self._canonical = self._kernel_view(layout.block(self.array, self._order))
        return self._canonical

    def _kernel_view(self, block: Array) -> Array:
        """Return an array of x's size, with its axes in x's memory order, as kernels take it."""
        return layout.as_stored(block).reshape(self._sizes)

    @property
    def empty(self) -> bool:
        """Whether x has no values, so that there is nothing for a kernel to do."""
        return 0 in self._sizes

    def require_batch(self) -> None:
        """Refuse one value per channel, whose variance is always 0."""
        if self.count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {self.shape}"
            )

    def gradient(self, dy: object) -> tuple[Array, Array]:
        """Return dy in x's canonical shape, and as the caller passed it."""
        return self._like_x("dy", dy)

    def like_x(self, name: str, value: object) -> Array:
        """Return an argument as an array, which must have x's shape and dtype."""
        array = memory_of(data_array(name, value))
        if array.shape != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {array.shape}")
        if not layout.has_dtype(array, self.dtype):
            raise TypeError(f"{name}: expected {self.dtype}, got {array.dtype}")
        return array

    def _like_x(self, name: str, value: object) -> tuple[Array, Array]:
        """Return such an argument in x's canonical shape (copied if necessary), and as passed."""
        array = self.like_x(name, value)
        return self._kernel_view(layout.block(array, self._order)), array

    def fusion(self, activation: object, negative_slope: object, residual: object) -> Fusion:
        """Check the activation and the residual, and return them as a `Fusion`."""
        largest = float(np.finfo(self.statistic_dtype).max)
        name = option("activation", activation, ACTIVATIONS)
        slope = real("negative_slope", negative_slope, 0.0, largest)
        if residual is None:
            return Fusion(name, slope)
        return Fusion(name, slope, *self._like_x("residual", residual))

    def weights(
        self, where: object, weights: object, nan_policy: object, fill: object = None
    ) -> GivenWeights:
        """Check the arguments that say which values count, and how much.

        With ``nan_policy="raise"``, a NaN that counts is refused here.
        """
        axis = self._order[self._at]
        place = Place(self.shape, self._order, (axis,), self._sizes)
        given, policy = given_weights(place, where, weights, nan_policy, fill)
        if policy == "raise" and not is_integer(self.array):
            at = nan_that_counts(self.x, given.values)
            if at is not None:
                raise ValueError(
                    f"x: expected no NaN with nan_policy='raise', got NaN in channel {at[1]}"
                )
        return given

    def parameter(self, name: str, value: object) -> Parameter:
        """Return an argument with one value per channel as float64."""
        return parameter(name, value, self.channels, self._axis)

    def variance(self, name: str, value: object) -> Parameter:
        """Return an argument with one variance per channel as float64."""
        return variances(name, value, self.channels, self._axis)

    def optional(self, name: str, value: object) -> Parameter | NoParameter:
        """Return a per-channel argument that may be None."""
        return NoParameter() if value is None else self.parameter(name, value)

    @property
    def statistic_dtype(self) -> np.dtype[Any]:
        """The dtype of results per channel that have no other."""
        return layout.statistic_dtype(self.dtype)

    def parameter_gradient(self, total: Stat, parameter: Parameter | NoParameter) -> Array:
        """Return a per-channel sum in the parameter's dtype, or `statistic_dtype` without one."""
        source = parameter.source
        return cast(
            total, self.statistic_dtype if source is None else in_native_order(source.dtype)
        )

    def zeros(self) -> Stat:
        """Return a new per-channel array of zeros."""
        return np.zeros(self.channels)

    def no_means(self) -> Stat:
        """Return a new array of NaN for means: a channel without a value has this mean."""
        return np.full(self.channels, np.nan)

    def output(
        self,
        out: object,
        dy: Array | None = None,
        parameters: Iterable[Given] = (),
        residual: Array | None = None,
        allocate: Allocate = np.empty,
    ) -> Output:
        """Return the destination of y or dx: `out`, or a new array in x's memory order.

        `out` may be x, dy or the residual itself, with the same elements in the same order.  With
        any other overlap the kernel would change an input before it has read it.  `allocate` makes
        the new array from its shape and dtype.
        """
        if out is None:
            new = self.new_array(allocate)
            return Output(new, new, self._kernel_view(new.transpose(self._order)))
        return self._target(out, self.require_output(out, dy, parameters, residual))

    def require_output(
        self,
        out: object,
        dy: Array | None = None,
        parameters: Iterable[Given] = (),
        residual: Array | None = None,
    ) -> Array:
        """Return the memory of `out`, checked as `output` does."""
        itself = {"x": self._source, "dy": dy, "residual": residual}
        return self._fitting("out", out, itself, {}, parameters)

    def residual_gradient(
        self,
        dresidual: object,
        dx: Output,
        dy: Array,
        residual: Array | None,
        parameters: Iterable[Given],
    ) -> Output | None:
        """Return the destination of the residual's gradient, or None if it is not wanted.

        `dresidual` may be dy or the residual itself, because the kernel does not read them again
        after it has written `dresidual`.  It must not overlap x, which is read afterwards, or dx,
        which is written afterwards.
        """
        if dresidual is None:
            return None
        itself = {"dy": dy, "residual": residual}
        apart = {"x": self._source, "out": dx.memory}
        memory = self._fitting("dresidual", dresidual, itself, apart, parameters)
        return self._target(dresidual, memory)

    def _fitting(
        self,
        name: str,
        value: object,
        itself: dict[str, Array | None],
        apart: dict[str, Array],
        parameters: Iterable[Given],
    ) -> Array:
        """Return the memory of an output, which must be one of `itself` or overlap no input."""
        array = writable_array(name, value)
        if not layout.has_dtype(array, self.dtype):
            raise TypeError(f"{name}: expected {self.dtype}, got {array.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {array.shape}")
        for other, source in itself.items():
            if source is None or layout.same_elements(array, source):
                continue
            if layout.share_memory(array, source):
                raise ValueError(
                    f"{name}: expected {other} itself or memory apart from it, "
                    "got a partial overlap"
                )
        for other, source in apart.items():
            if layout.share_memory(array, source):
                raise ValueError(f"{name}: expected memory apart from {other}, got an overlap")
        for given in parameters:
            if given.source is not None and layout.share_memory(array, given.source):
                raise ValueError(
                    f"{name}: expected memory apart from the parameters, got an overlap"
                )
        return array

    def _target(self, returned: Any, memory: Array) -> Output:
        """Return memory of x's shape as an output, with a temporary if kernels cannot write it."""
        view = memory.transpose(self._order)
        if layout.readable(view):
            return Output(returned, memory, self._kernel_view(view))
        staged: Array = bits(np.empty(view.shape, self.dtype))
        return Output(returned, memory, self._kernel_view(staged), (bits(view), staged))

    def new_array(self, allocate: Allocate = np.empty) -> Array:
        """Return a new array of x's shape and dtype in x's memory order."""
        new: Array = allocate(tuple(self.shape[i] for i in self._order), self.dtype)
        if self._source.flags.c_contiguous:
            return new
        return new.transpose(sorted(range(new.ndim), key=self._order.__getitem__))
