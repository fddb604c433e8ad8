"""Sixteen floats side by side, for Numba: a small vector type for `compiled_streams.py`.

A value of `Lanes` type is one LLVM vector of LANES floats, and LLVM maps it to the registers that
the processor has.  Unlike NumPy arrays, it can be prefetched and written past the caches.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16

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
    """Make streamed stores visible before later stores."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Prefetch the line of ``array[index]`` to the second-level cache; it may not exist."""

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
def fold(_: Any, lanes: Any) -> Any:
    """Add the lanes: first lane l and lane l + 8, then lanes 4, 2 and 1 apart."""

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


def _indices(lanes: Any) -> Any:
    i32 = ir.IntType(32)
    return ir.Constant(ir.VectorType(i32, len(lanes)), [ir.Constant(i32, i) for i in lanes])


@intrinsic
def _sum(_: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return a(a, b), codegen


@overload(operator.add)
def _overload_add(a: Any, b: Any) -> Any:
    def implementation(a: Any, b: Any) -> Any:
        return _sum(a, b)

    return implementation if isinstance(a, Lanes) and a == b else None
