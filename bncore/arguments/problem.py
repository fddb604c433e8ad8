"""The one place that validates arrays, explains what is wrong, and finds the canonical shape.

What is no array is the business of `bncore.arguments.scalars`, where an array lies that of
`bncore.arguments.layout`.

Any array that is one contiguous block of memory, in whatever order its axes lie there, is
(outer, channels, inner): the channel axis splits the block.  The order comes from the strides,
not from the shape, so an NCHW-shaped view of NHWC memory is (N*H*W, C, 1) and is not copied.

Every message reads "<argument>: expected <what>, got <what>".  Functions here write to nothing
that the caller owns, except `Output.finish`, which is called last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout as placement
from bncore.arguments.float_environment import default_environment
from bncore.arguments.layout import NATIVE_DTYPES, Array
from bncore.arguments.scalars import one_axis, option, real, shown

Stat: TypeAlias = npt.NDArray[np.float64]

ACTIVATIONS = ("relu", "leaky_relu")


# Arrays


def _holds_mask(value: object) -> bool:
    """Tell whether a list or tuple has a masked array in it, at any depth."""
    if isinstance(value, (list, tuple)):
        return any(map(_holds_mask, value))
    return isinstance(value, np.ma.MaskedArray)


def plain_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return `value` as an ndarray, itself where it is one; a mask would be lost: refused."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {shown(value)}")
    if value is None:
        raise TypeError(f"{name}: expected an array, got None")
    if _holds_mask(value):
        raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray in a list")
    try:
        if hasattr(type(value), "__dlpack__") and not isinstance(value, np.ndarray):
            if getattr(value, "is_neg", bool)():  # PyTorch gives such a view's memory as it is
                raise TypeError("a view that negates, use tensor.resolve_neg()")
            return np.from_dlpack(value)  # type: ignore[arg-type]  # no copy
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name}: expected an array, got {shown(value)} ({error})") from error


def dtype_shown(value: object, array: npt.NDArray[Any]) -> str:
    """Describe a refused dtype: what is no array by its type, what can be converted with a hint."""
    if array.dtype.kind == "O" and value is not array:
        return f"{shown(value)} (not called?)" if callable(value) else shown(value)
    if array.dtype.kind in "biuf":
        how = ".astype(np.float32)" if value is array else "np.asarray(..., np.float32)"
        return f"{array.dtype} (convert with {how})"
    return str(array.dtype)


def data_array(name: str, value: object) -> Array:
    """Return `value` as a float32 or float64 array of any layout and byte order."""
    array = plain_array(name, value)
    if array.dtype.char not in NATIVE_DTYPES:
        raise TypeError(f"{name}: expected float32 or float64, got {dtype_shown(value, array)}")
    return array


def vector(name: str, value: object, size: int | None, axis: object = None) -> Array:
    """Return `value` as a 1-D array of a real float dtype, and of this size unless it is None.

    `axis` is the channel axis that the size is from, where there is one, for the message.
    """
    array = plain_array(name, value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected a real floating dtype, got {dtype_shown(value, array)}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {array.shape}")
    if size is not None and array.shape[0] != size:
        source = "" if axis is None else f" ({size} channels along axis {axis})"
        raise ValueError(f"{name}: expected shape ({size},){source}, got {array.shape}")
    return array


def cast(array: Array, dtype: npt.DTypeLike) -> Array:
    """Return `array` in `dtype`, rounded in silence; C-contiguous; not copied where it is that."""
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with default_environment(), np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def writable_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return `value`, an array that will be written in place."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {shown(value)}")
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {shown(value)}")
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if placement.meets_itself(value):
        raise ValueError(
            f"{name}: expected an array whose elements do not overlap, got strides {value.strides}"
        )
    return value


# Results, parameters and what is fused


class Output:
    """Where a result goes: `values` for the kernel, and the array that the caller gets."""

    __slots__ = ("_copy", "array", "values")

    def __init__(
        self, array: Array, values: Array, copy: tuple[Array, Array] | None = None
    ) -> None:
        self.array = array
        self._copy = copy
        self.values = values

    def finish(self) -> Array:
        """Fill the caller's array where the kernel did not write to it, and return it."""
        if self._copy is not None:
            np.copyto(*self._copy)
        return self.array


class Parameter(NamedTuple):
    """A per-channel argument: float64 values for the kernel, and the array that they came from."""

    values: Stat
    source: Array


class NoParameter(NamedTuple):
    """A per-channel argument that was left out."""

    values: None = None
    source: None = None


class Fusion(NamedTuple):
    """What is fused with batch norm; the fields that `bncore.backends.contract` describes."""

    activation: str | None
    slope: float
    residual: Array | None = None
    source: Array | None = None  # the residual as given
    dresidual: Array | None = None
    bias: Stat | None = None

    def asked(self) -> Fusion | None:
        """Return itself, or None where nothing is fused."""
        plain = self.activation is None and self.residual is None and self.dresidual is None
        return None if plain else self

    def backward(self, bias: Parameter | NoParameter, dresidual: Output | None) -> Fusion | None:
        """Return itself with what backward needs besides, or None where nothing is fused."""
        target = None if dresidual is None else dresidual.values
        return self._replace(bias=bias.values, dresidual=target).asked()


# The canonical shape


class Problem:
    """x as (outer, channels, inner), and what has to agree with it.

    Attributes
    ----------
    x : (outer, channels, inner) array, C-contiguous, aligned, native-endian
        x's own memory where it is one contiguous block, else one copy in x's memory order, made
        when it is asked for: who only checks pays for none.
    shape, dtype : x's shape as given, and its dtype in native byte order
    channels, count : number of channels, and of values per channel
    """

    __slots__ = (
        "_array", "_axis", "_canonical", "_order", "_sizes", "_source",
        "channels", "count", "dtype", "shape",
    )  # fmt: skip

    def __init__(self, x: object, axis: object, source: Array | None = None) -> None:
        """Take x; `source` is the caller's array where x is a copy, for overlaps with outputs."""
        array = data_array("x", x)
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        channel_axis = one_axis(axis, array.ndim)
        order = placement.memory_order(array)
        at = order.index(channel_axis)
        sizes = [array.shape[i] for i in order]
        outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
        self.shape = array.shape
        self.dtype: np.dtype[Any] = NATIVE_DTYPES[array.dtype.char]
        self.channels = sizes[at]
        self.count = outer * inner
        self._axis = axis
        self._order = order
        self._sizes = (outer, self.channels, inner)
        self._source = array if source is None else source
        self._array = array
        self._canonical: Array | None = None

    @property
    def x(self) -> Array:
        """The values of x as the kernels take them."""
        if self._canonical is None:
            self._canonical = placement.block(self._array, self._order).reshape(self._sizes)
        return self._canonical

    @property
    def empty(self) -> bool:
        """Whether x holds no value, so that no kernel has anything to do."""
        return 0 in self._sizes

    def require_batch(self) -> None:
        """Refuse one value per channel: its variance says nothing."""
        if self.count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {self.shape}"
            )

    def gradient(self, dy: object) -> tuple[Array, Array]:
        """Return dy in x's canonical shape, and as given."""
        return self._like_x("dy", dy)

    def like_x(self, name: str, value: object) -> Array:
        """Return an argument, which has to be of x's shape and dtype, as given."""
        array = data_array(name, value)
        if array.shape != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {array.shape}")
        if array.dtype.char != self.dtype.char:
            raise TypeError(f"{name}: expected {self.dtype}, got {array.dtype}")
        return array

    def _like_x(self, name: str, value: object) -> tuple[Array, Array]:
        """Return such an argument in x's canonical shape, copied once if need be, and as given."""
        array = self.like_x(name, value)
        return placement.block(array, self._order).reshape(self._sizes), array

    def fusion(self, activation: object, negative_slope: object, residual: object) -> Fusion:
        """Return what is fused with batch norm."""
        largest = float(np.finfo(self.dtype).max)
        name = option("activation", activation, ACTIVATIONS)
        slope = real("negative_slope", negative_slope, 0.0, largest)
        if residual is None:
            return Fusion(name, slope)
        return Fusion(name, slope, *self._like_x("residual", residual))

    def parameter(self, name: str, value: object) -> Parameter:
        """Return a per-channel argument as float64."""
        source = vector(name, value, self.channels, self._axis)
        values: Any = cast(source, np.float64)
        return Parameter(values if values.flags.aligned else values.copy(), source)

    def optional(self, name: str, value: object) -> Parameter | NoParameter:
        """Return a per-channel argument that may be None."""
        return NoParameter() if value is None else self.parameter(name, value)

    def parameter_gradient(self, total: Stat, parameter: Parameter | NoParameter) -> Array:
        """Return a per-channel sum in the parameter's dtype; in x's where there is none."""
        source = parameter.source
        return cast(total, self.dtype if source is None else source.dtype.newbyteorder("="))

    def zeros(self) -> Stat:
        """Return a new per-channel array."""
        return np.zeros(self.channels)

    def output(
        self,
        out: object,
        dy: Array | None = None,
        parameters: Iterable[Parameter | NoParameter] = (),
        residual: Array | None = None,
    ) -> Output:
        """Return where y or dx goes: into `out`, or into a new array in x's memory order.

        `out` may be x, dy or the residual itself, the same elements in the same order; any other
        overlap with an input would change the input while it is read.
        """
        if out is None:
            return self._new_output()
        return self._target(self.require_output(out, dy, parameters, residual))

    def require_output(
        self,
        out: object,
        dy: Array | None = None,
        parameters: Iterable[Parameter | NoParameter] = (),
        residual: Array | None = None,
    ) -> Array:
        """Return `out`, checked as `output` does, with no memory to go with it."""
        itself = {"x": self._source, "dy": dy, "residual": residual}
        return self._fitting("out", out, itself, {}, parameters)

    def residual_gradient(
        self,
        dresidual: object,
        dx: Output,
        dy: Array,
        residual: Array | None,
        parameters: Iterable[Parameter | NoParameter],
    ) -> Output | None:
        """Return where the gradient by the residual goes, if it is wanted.

        `dresidual` may be dy or the residual itself, which are read before it is written and not
        after; x is read after, and dx is written after.
        """
        if dresidual is None:
            return None
        itself = {"dy": dy, "residual": residual}
        apart = {"x": self._source, "out": dx.array}
        return self._target(self._fitting("dresidual", dresidual, itself, apart, parameters))

    def _fitting(
        self,
        name: str,
        value: object,
        itself: dict[str, Array | None],
        apart: dict[str, Array],
        parameters: Iterable[Parameter | NoParameter],
    ) -> Array:
        """Return an array that can take a result: one of `itself`, or apart from them."""
        array = writable_array(name, value)
        if array.dtype.char != self.dtype.char:
            raise TypeError(f"{name}: expected {self.dtype}, got {array.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {array.shape}")
        for other, source in itself.items():
            if source is None or placement.same_elements(array, source):
                continue
            if placement.share_memory(array, source):
                raise ValueError(
                    f"{name}: expected {other} itself or memory apart from it, "
                    "got a partial overlap"
                )
        for other, source in apart.items():
            if placement.share_memory(array, source):
                raise ValueError(f"{name}: expected memory apart from {other}, got an overlap")
        for parameter in parameters:
            if parameter.source is not None and placement.share_memory(array, parameter.source):
                raise ValueError(
                    f"{name}: expected memory apart from the parameters, got an overlap"
                )
        return array

    def _target(self, array: Array) -> Output:
        """Return an array of x's shape as an output, staged where the kernels cannot write it."""
        view = array.transpose(self._order)
        if placement.readable(view):
            return Output(array, view.reshape(self._sizes))
        staged: Array = np.empty(view.shape, self.dtype)
        return Output(array, staged.reshape(self._sizes), (view, staged))

    def _new_output(self) -> Output:
        new: Array = np.empty([self.shape[i] for i in self._order], self.dtype)
        values = new.reshape(self._sizes)
        if self._source.flags.c_contiguous:
            return Output(new, values)
        inverse = sorted(range(new.ndim), key=self._order.__getitem__)
        return Output(new.transpose(inverse), values)
