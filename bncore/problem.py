"""The one place that validates arguments, explains what is wrong, and finds the canonical shape.

Any array that is one contiguous block of memory, in whatever order its axes lie there, is
(outer, channels, inner): the channel axis splits the block.  The order comes from the strides,
not from the shape, so an NCHW-shaped view of NHWC memory is (N*H*W, C, 1) and is not copied.

Every message reads "<argument>: expected <what>, got <what>".  Functions here write to nothing
that the caller owns, except `Output.finish`, which is called last.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Stat: TypeAlias = npt.NDArray[np.float64]

NATIVE_DTYPES: dict[str, np.dtype[Any]] = {"f": np.dtype(np.float32), "d": np.dtype(np.float64)}

# The work that np.shares_memory may do before the answer counts as "yes".
OVERLAP_WORK: Any = 1 << 16


# Scalars


def shown(value: object) -> str:
    """Describe a value in a message: scalars as they are, anything else by its type."""
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    return type(value).__name__


def integer(name: str, value: object, expected: str) -> int:
    """Return `value` as an int; a bool is none."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def integer_at_least(name: str, value: object, least: int) -> int:
    """Return `value` as an int that is not below `least`."""
    number = integer(name, value, f"an integer >= {least}")
    if number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    return number


def real(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float between `low` and `high`, both included."""
    # The exact type first: asking an abstract class takes longer than all else here.
    known = type(value) is float or type(value) is int
    if not known and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name}: expected a real number, got {shown(value)}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
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
    """Return `axis` counted from 0."""
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
    """Return the axes that `axis` names: all for None, else one integer or a tuple of them."""
    if axis is None:
        return tuple(range(ndim))
    expected = "None, an integer or a tuple of integers"
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(one_axis(one, ndim, expected) for one in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis: expected every axis once, got {axis}")
    return axes


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
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
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
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def writable_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return `value`, an array that will be written in place."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {shown(value)}")
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {shown(value)}")
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    reach = value.itemsize
    for stride, size in sorted(zip(map(abs, value.strides), value.shape, strict=True)):
        if size > 1:
            if value.size and stride < reach:
                raise ValueError(
                    f"{name}: expected an array whose elements do not overlap, "
                    f"got strides {value.strides}"
                )
            reach += stride * (size - 1)
    return value


def share_memory(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays have a byte in common; what is too hard to tell counts as yes."""
    try:
        return np.shares_memory(a, b, max_work=OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def same_elements(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether the arrays are the same elements of memory in the same order."""
    if a is b:
        return True
    return (
        a.shape == b.shape
        and a.itemsize == b.itemsize
        and a.ctypes.data == b.ctypes.data
        and all(
            size <= 1 or s == t for size, s, t in zip(a.shape, a.strides, b.strides, strict=True)
        )
    )


# Memory order and the canonical shape


def memory_order(array: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the axes, slowest in memory first: the order that NumPy's order="K" keeps.

    The place of an axis of size 1 means nothing, since no step is taken along it.
    """
    axes = range(array.ndim)
    if array.flags.c_contiguous:
        return tuple(axes)
    if array.flags.f_contiguous:
        return tuple(reversed(axes))
    strides = array.strides
    return tuple(sorted(axes, key=lambda i: -abs(strides[i])))


def block(array: Array, order: tuple[int, ...]) -> Array:
    """Return the axes in this order as a C-contiguous native array; copied where it is not that."""
    view = array.transpose(order)
    if view.flags.c_contiguous and view.flags.aligned and view.dtype.isnative:
        return view
    return np.array(view, dtype=NATIVE_DTYPES[view.dtype.char], order="C")


class Output:
    """Where a result goes: `values` for the kernel, and the array that the caller gets."""

    __slots__ = ("_array", "_copy", "values")

    def __init__(
        self, array: Array, values: Array, copy: tuple[Array, Array] | None = None
    ) -> None:
        self._array = array
        self._copy = copy
        self.values = values

    def finish(self) -> Array:
        """Fill the caller's array where the kernel did not write to it, and return it."""
        if self._copy is not None:
            np.copyto(*self._copy)
        return self._array


class Parameter(NamedTuple):
    """A per-channel argument: float64 values for the kernel, and the array that they came from."""

    values: Stat
    source: Array


class NoParameter(NamedTuple):
    """A per-channel argument that was left out."""

    values: None = None
    source: None = None


class Problem:
    """x as (outer, channels, inner), and what has to agree with it.

    Attributes
    ----------
    x : (outer, channels, inner) array, C-contiguous, aligned, native-endian
        x's own memory where it is one contiguous block, else one copy in x's memory order.
    shape, dtype : x's shape as given, and its dtype in native byte order
    channels, count : number of channels, and of values per channel
    """

    __slots__ = ("_axis", "_order", "_sizes", "_source", "channels", "count", "dtype", "shape", "x")

    def __init__(self, x: object, axis: object) -> None:
        array = data_array("x", x)
        if array.ndim < 2:
            raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
        channel_axis = one_axis(axis, array.ndim)
        order = memory_order(array)
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
        self._source = array
        self.x: Array = block(array, order).reshape(self._sizes)

    @property
    def empty(self) -> bool:
        """Whether x holds no value, so that no kernel has anything to do."""
        return self.x.size == 0

    def require_batch(self) -> None:
        """Refuse one value per channel: its variance says nothing."""
        if self.count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {self.shape}"
            )

    def gradient(self, dy: object) -> tuple[Array, Array]:
        """Return dy in x's canonical shape, and as given; another memory order is copied once."""
        array = data_array("dy", dy)
        if array.shape != self.shape:
            raise ValueError(f"dy: expected shape {self.shape}, got {array.shape}")
        if array.dtype.char != self.dtype.char:
            raise TypeError(f"dy: expected {self.dtype}, got {array.dtype}")
        return block(array, self._order).reshape(self._sizes), array

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
    ) -> Output:
        """Return where y or dx goes: into `out`, or into a new array in x's memory order.

        `out` may be x or dy itself, the same elements in the same order; any other overlap with
        an input would change the input while it is read.
        """
        if out is None:
            return self._new_output()
        array = writable_array("out", out)
        if array.dtype.char != self.dtype.char:
            raise TypeError(f"out: expected {self.dtype}, got {array.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"out: expected shape {self.shape}, got {array.shape}")
        whole = [self._source] if dy is None else [self._source, dy]
        for source in whole:
            if not same_elements(array, source) and share_memory(array, source):
                raise ValueError(
                    "out: expected x itself or memory apart from it, got a partial overlap"
                    if source is self._source
                    else "out: expected dy itself or memory apart from it, got a partial overlap"
                )
        for parameter in parameters:
            if parameter.source is not None and share_memory(array, parameter.source):
                raise ValueError("out: expected memory apart from the parameters, got an overlap")
        view = array.transpose(self._order)
        if view.flags.c_contiguous and view.flags.aligned and view.dtype.isnative:
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
