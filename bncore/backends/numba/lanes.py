"""Sixteen values side by side, for Numba: a small vector type.

Numba's compiler unrolls a loop over sixteen lanes and then leaves the lanes scalar.  Here a value
of `Lanes` type is one LLVM vector of LANES floats instead, and LLVM maps it to the registers that
the CPU has, whatever their width.  Every operation is one IEEE operation per lane; nothing is
contracted or reordered.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from bncore.backends.partition import LANES

# Codegen callbacks of Numba: (context, builder, signature, arguments) -> LLVM value.


class Lanes(types.Type):  # type: ignore[misc]
    """LANES values of type `dtype`."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _vector(fe_type.dtype))


def _vector(dtype: Any) -> Any:
    return ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Point at LANES values of a contiguous 1-D array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(array_type.dtype).as_pointer())


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Read LANES values of a contiguous 1-D array, from `index`; nothing is checked."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], *args)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), codegen


@intrinsic
def store(_: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write LANES values to a contiguous 1-D array, from `index`; nothing is checked."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], *args[:2])
        builder.store(args[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def stream(_: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write LANES values past the caches; ``array[index]`` has their alignment."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], *args[:2])
        written = builder.store(args[2], address, align=LANES * array.dtype.bitwidth // 8)
        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        written.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def fence(_: Any) -> Any:
    """Let what was streamed be seen before what is written later."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Ask for the line of ``array[index]`` in the second-level cache; it need not exist."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, i32(0), i32(2), i32(1)])  # read, second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def splat(_: Any, value: Any) -> Any:
    """Put one value in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = _vector(value)
        first = builder.insert_element(
            ir.Constant(vector, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0)
        )
        return builder.shuffle_vector(first, first, _indices([0] * LANES))

    return Lanes(value)(value), codegen


@intrinsic
def widen(_: Any, lanes: Any) -> Any:
    """Convert the lanes to float64, which is exact."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fpext(args[0], _vector(types.float64))

    return Lanes(types.float64)(lanes), codegen


def _are_last(builder: Any, k: Any) -> Any:
    """Tell of each lane whether it is one of the last `k`."""
    i32 = ir.IntType(32)
    left = ir.Constant(ir.VectorType(i32, LANES), [LANES - i for i in range(LANES)])
    count = builder.insert_element(
        ir.Constant(left.type, ir.Undefined), builder.trunc(k, i32), ir.Constant(i32, 0)
    )
    return builder.icmp_signed(
        "<=", left, builder.shuffle_vector(count, count, _indices([0] * LANES))
    )


@intrinsic
def keep_last(_: Any, lanes: Any, k: Any) -> Any:
    """Put 0.0 in all lanes but the last `k`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(_vector(lanes.dtype), [0.0] * LANES)
        return builder.select(_are_last(builder, args[1]), args[0], zero)

    return lanes(lanes, types.intp), codegen


@intrinsic
def choose(_: Any, a: Any, b: Any, k: Any) -> Any:
    """Take the last `k` lanes from `b`, the others from `a`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_are_last(builder, args[2]), args[1], args[0])

    return a(a, b, types.intp), codegen


@intrinsic
def fold(_: Any, lanes: Any) -> Any:
    """Add the lanes by halves: lane l and lane l + 8, then 4, 2 and 1 apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (value,) = args
        width = LANES
        while width > 1:
            width //= 2
            low = builder.shuffle_vector(value, value, _indices(range(width)))
            high = builder.shuffle_vector(value, value, _indices(range(width, 2 * width)))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), codegen


@intrinsic
def _where_finite(_: Any, test: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        difference = builder.fsub(args[0], args[0])  # NaN for NaN and Inf, else 0
        return builder.select(builder.fcmp_ordered("ord", difference, difference), *args[1:])

    return test(test, test, test), codegen


@intrinsic
def _not_negative(_: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return value(value), codegen


@intrinsic
def positive(_: Any, z: Any, a: Any, b: Any) -> Any:
    """Take `b` where z <= 0, else `a`, which is where z is NaN, too."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), args[2], args[1])

    return z(z, a, b), codegen


def where_finite(test: Any, a: Any, b: Any) -> Any:
    """Take `a` where `test` is finite, else `b`; for one float or for Lanes."""
    raise NotImplementedError("for compiled code")


def not_negative(value: Any) -> Any:
    """Take 0.0 where `value` is negative, else `value`; for one float or for Lanes."""
    raise NotImplementedError("for compiled code")


@overload(where_finite)
def _overload_where_finite(test: Any, a: Any, b: Any) -> Any:
    def lanes(test: Any, a: Any, b: Any) -> Any:
        return _where_finite(test, a, b)

    def scalar(test: Any, a: Any, b: Any) -> Any:
        return a if math.isfinite(test) else b

    return lanes if isinstance(test, Lanes) else scalar


@overload(not_negative)
def _overload_not_negative(value: Any) -> Any:
    def lanes(value: Any) -> Any:
        return _not_negative(value)

    def scalar(value: Any) -> Any:
        return 0.0 if value < 0.0 else value

    return lanes if isinstance(value, Lanes) else scalar


def _indices(lanes: Any) -> Any:
    i32 = ir.IntType(32)
    return ir.Constant(ir.VectorType(i32, len(lanes)), [ir.Constant(i32, i) for i in lanes])


def _define(symbol: Any, instruction: str) -> None:
    """Let an arithmetic operator work on Lanes."""

    @intrinsic
    def operation(_: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return a(a, b), codegen

    @overload(symbol)
    def typed(a: Any, b: Any) -> Any:
        def implementation(a: Any, b: Any) -> Any:
            return operation(a, b)

        return implementation if isinstance(a, Lanes) and a == b else None


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")
