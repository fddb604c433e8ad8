"""Calls of the C functions from compiled code: one intrinsic, and the checks before it.

The machine code refers to a C function by its name, and `add_symbol` tells LLVM its address in this
process.  So a function that calls it can be cached on disk (``cache=True``), as long as this module
is imported before the cached code is loaded.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, typeof, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.numpy_support import as_dtype

from bncore import c_library
from bncore.arguments import layout

# What the body of a function says that `overload` replaces in compiled code.
ONLY_COMPILED = "this function works only inside code that Numba compiles"

for _name in c_library.get_capsules():
    llvmlite.binding.add_symbol(_name, c_library.get_address(_name))

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()

# The number of each status of bncore.h, by its name.
STATUS = {name: number for name, (number, _) in c_library.get_statuses().items()}


def _llvm_type(kind: Any) -> ir.Type:
    """Return LLVM's type for a field of a ctypes structure."""
    if issubclass(kind, ctypes.Array):
        return ir.ArrayType(_llvm_type(kind._type_), kind._length_)
    if kind is ctypes.c_double:
        return ir.DoubleType()
    if kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer):
        return _POINTER
    return ir.IntType(8 * ctypes.sizeof(kind))


# bncore_problem, field by field.
FIELDS = {name: index for index, (name, _) in enumerate(c_library.Problem._fields_)}
PROBLEM = ir.LiteralStructType([_llvm_type(kind) for _, kind in c_library.Problem._fields_])
# bncore_weights likewise.
COUNTED = {name: index for index, (name, _) in enumerate(c_library.Weights._fields_)}
WEIGHTS = ir.LiteralStructType([_llvm_type(kind) for _, kind in c_library.Weights._fields_])
DTYPES = {types.float32: 0, types.float64: 1}
SIXTEEN_BITS = (
    "Numba compiles no float16 for the CPU and knows no bfloat16: call bncore's functions outside "
    "compiled code, or convert to float32"
)

canonical = njit(layout.canonical)


def data_type(name: str, value: Any) -> Any:
    """Return the dtype of an array; refuse an array that the C functions cannot read."""
    wanted = f"{name}: expected a C-contiguous array of float32 or float64, got {value}"
    if isinstance(value, types.Array) and value.dtype in (types.float16, types.uint16):
        raise TypingError(f"{wanted}; {SIXTEEN_BITS}")
    if not isinstance(value, types.Array) or value.dtype not in DTYPES:
        raise TypingError(wanted)
    if value.layout != "C" or not value.aligned:
        raise TypingError(f"{wanted}; numpy.ascontiguousarray makes one")
    if value.ndim < 2:
        raise TypingError(f"{name}: expected 2 or more dimensions, got {value.ndim}")
    return value.dtype


def _pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return the memory of an array, NULL for None, and a number as it is."""
    if isinstance(kind, types.Array):
        return builder.bitcast(context.make_array(kind)(context, builder, value).data, _POINTER)
    return ir.Constant(_POINTER, None) if isinstance(kind, types.NoneType) else value


def _struct(builder: Any, kind: Any, places: dict[str, int], fields: dict[str, Any]) -> Any:
    """Make a struct on the stack whose other fields are zero."""
    made = cgutils.alloca_once_value(builder, ir.Constant(kind, None))
    builder.store(ir.Constant(kind, None), made)  # at every turn of a loop
    for field, value in fields.items():
        builder.store(value, cgutils.gep_inbounds(builder, made, 0, places[field]))
    return builder.bitcast(made, _POINTER)


def _weights(context: Any, builder: Any, kind: Any, given: Any) -> Any:
    """Make a bncore_weights of `Counted` and the counts, which are an array or None."""
    counted, counts = (builder.extract_value(given, index) for index in range(2))
    fields = {"size": _I32(ctypes.sizeof(c_library.Weights))}
    for index, (name, part) in enumerate(zip(kind[0].fields, kind[0].types, strict=True)):
        value = builder.extract_value(counted, index)
        fields[name] = _pointer(context, builder, part, value)
        if name == "values" and isinstance(part, types.Array):
            fields["dtype"] = _I32(int(part.dtype == types.float64))
    fields["count"] = _pointer(context, builder, kind[1], counts)
    return _struct(builder, WEIGHTS, COUNTED, fields)


@intrinsic(prefer_literal=True)
def _run(typingctx, name, x, outer, channels, inner, eps, n_threads, arguments, weights):
    """Call C function `name` on a problem and `arguments`: arrays, None for NULL, or numbers."""
    dtype = DTYPES[data_type("x", x)]
    symbol = name.literal_value
    numbers = (types.int64, types.int64, types.int64, types.float64, types.int32)
    signature = types.int32(name, x, *numbers, arguments, weights)

    def codegen(context, builder, signature, values):
        _, _, outer, channels, inner, eps, n_threads, given, counted = values
        size = _I32(ctypes.sizeof(c_library.Problem))
        fields = {"size": size, "dtype": _I32(dtype), "eps": eps, "n_threads": n_threads}
        fields |= {"outer": outer, "channels": channels, "inner": inner}
        if not isinstance(weights, types.NoneType):
            fields["weights"] = _weights(context, builder, weights, counted)
        passed = [_struct(builder, PROBLEM, FIELDS, fields)]
        for index, kind in enumerate(arguments.types):
            value = builder.extract_value(given, index)
            passed.append(_pointer(context, builder, kind, value))
        function_type = ir.FunctionType(_I32, [value.type for value in passed])
        function = cgutils.get_or_insert_function(builder.module, function_type, symbol)
        return builder.call(function, passed)

    return signature, codegen


def call(name, x, axis, eps, n_threads, arguments, weights):
    """Run a C function on x with its channels along `axis`; return its status.

    `weights` is None, or a `Counted` and the counts.
    """
    raise NotImplementedError(ONLY_COMPILED)


@overload(call, prefer_literal=True)
def _call(name, x, axis, eps, n_threads, arguments, weights):
    if not isinstance(name, types.StringLiteral):
        return None
    symbol = name.literal_value
    _require("eps", eps, (types.Float, types.Integer), "a real number")
    _require("n_threads", n_threads, types.Integer, "an integer")

    def implementation(name, x, axis, eps, n_threads, arguments, weights):
        at = place(x, axis)
        shape = canonical(x.shape, at, at + 1)
        threads = min(max(np.int64(n_threads), 0), 1 << 30)
        return _run(
            symbol, x, shape.outer, shape.channels, shape.inner, eps, threads, arguments, weights
        )

    return implementation


def _require(name: str, value: Any, kinds: Any, expected: str) -> None:
    """Refuse an argument whose type is not one of the allowed number types."""
    given = typeof(value.value) if isinstance(value, types.Omitted) else value
    if not isinstance(types.unliteral(given), kinds):
        raise TypingError(f"{name}: expected {expected}, got {given}")


@njit
def place(x, axis):
    """Return the channel axis as an index that counts from 0."""
    at = np.int64(axis)
    return at + x.ndim if at < 0 else at


def sizes_of(x, axis):
    """Check x and axis, and return the number of channels and of values per channel."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(sizes_of)
def _sizes_of(x, axis):
    data_type("x", x)
    _require("axis", axis, types.Integer, "an integer")

    def implementation(x, axis):
        at = place(x, axis)
        if at < 0 or at >= x.ndim:
            raise ValueError("axis: expected one of x's dimensions, got another number")
        shape = canonical(x.shape, at, at + 1)
        return shape.channels, shape.outer * shape.inner

    return implementation


def same_as(dy, x):
    """Refuse a dy that differs from x in shape or dtype."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(same_as)
def _same_as(dy, x):
    if data_type("dy", dy) != data_type("x", x) or dy.ndim != x.ndim:
        raise TypingError(f"dy: expected x's dtype and dimensions, {x}, got {dy}")

    def implementation(dy, x):
        if dy.shape != x.shape:
            raise ValueError("dy: expected x's shape, got another one")

    return implementation


def doubles(values, channels, message):
    """Return values per channel as C-contiguous float64, or None; `message` is for a wrong size."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(doubles, prefer_literal=True)
def _doubles(values, channels, message):
    given = values.value if isinstance(values, types.Omitted) else values
    if given is None or isinstance(given, types.NoneType):
        return lambda values, channels, message: None
    if not isinstance(message, types.StringLiteral):
        return None
    refusal = message.literal_value + ", got another number"  # a constant: quick to compile
    if not isinstance(values, types.Array) or values.dtype not in DTYPES or values.ndim != 1:
        name = message.literal_value.partition(":")[0]
        raise TypingError(
            f"{name}: expected an array of float32 or float64 of one dimension, got {values}"
        )
    as_it_is = values.dtype == types.float64 and values.layout == "C" and values.aligned

    def implementation(values, channels, message):
        if values.size != channels:
            raise ValueError(refusal)
        return values if as_it_is else values.astype(np.float64)

    return implementation


def as_parameter(gradient, weight, x):
    """Return a gradient in weight's dtype, or in x's if there is no weight."""
    raise NotImplementedError(ONLY_COMPILED)


@overload(as_parameter)
def _as_parameter(gradient, weight, x):
    dtype = as_dtype(weight.dtype if isinstance(weight, types.Array) else x.dtype)
    return lambda gradient, weight, x: gradient.astype(dtype)


_OK, _EPS, _THREADS, _MEMORY = (
    STATUS[f"BNCORE_{name}"] for name in ("OK", "ERROR_EPS", "ERROR_THREADS", "ERROR_MEMORY")
)


@njit
def checked(status):
    """Raise the exception for a status of bncore.h."""
    if status == _OK:
        return
    if status == _EPS:
        raise ValueError("eps: expected a finite number of 0 or more, got another one")
    if status == _THREADS:
        raise ValueError("n_threads: expected 1 or more, got less")
    if status == _MEMORY:
        raise MemoryError("no memory for scratch")
    raise RuntimeError("bncore: a C function refused its arguments")
