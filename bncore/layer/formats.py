"""Read the arrays and settings of other libraries' layers, without importing these libraries.

The functions recognize an object by its attributes.  `bncore.layer.interchange` knows what the
values mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments.bfloat16 import bfloat16_dtype
from bncore.arguments.dlpack import from_dlpack
from bncore.arguments.scalars import shown

AnyArray = npt.NDArray[Any]

# The names of gamma, beta, running mean and running variance.
OURS = ("weight", "bias", "running_mean", "running_var")
KERAS = ("gamma", "beta", "moving_mean", "moving_variance")
FLAX = ("scale", "bias", "mean", "var")
ONNX = ("scale", "B", "input_mean", "input_var")

DECIMAL = Context(prec=40, traps=[])  # exact for 1 - m, and independent of the program's context

# The dtypes by their numbers in onnx.TensorProto.
ONNX_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    16: np.dtype("<u2"),  # the bits of bfloat16
}
ONNX_BFLOAT16 = 16


def as_array(value: Any) -> AnyArray:
    """Return a tensor of any library as an array."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):
            return from_dlpack(value)
    return np.asarray(value)


def from_tensor_proto(tensor: Any) -> AnyArray:
    """Return the values of an ONNX tensor, as onnx.numpy_helper.to_array does."""
    dtype = ONNX_DTYPES.get(tensor.data_type)
    if dtype is None:
        raise TypeError(
            f"initializers: expected {tensor.name} of float16, bfloat16, float32 or float64, "
            f"got the ONNX data type {tensor.data_type}"
        )
    if tensor.raw_data:
        values: AnyArray = np.frombuffer(tensor.raw_data, dtype)
    elif dtype.itemsize == 2:  # ONNX stores the bits as integers
        values = np.array(tensor.int32_data, np.uint16).view(dtype)
    else:
        values = np.array(tensor.float_data if dtype.itemsize == 4 else tensor.double_data, dtype)
    if tensor.data_type == ONNX_BFLOAT16:
        values = values.view(bfloat16_dtype())
    return values.reshape(tuple(tensor.dims))


def new_weight(old: Any, name: str) -> float:
    """Convert a momentum that is the weight of the old value to the weight of the new batch."""
    if isinstance(old, bool) or not isinstance(old, (int, float, np.floating)):
        raise TypeError(f"{name}: expected the momentum as a number, got {shown(old)}")
    return rest(float(old))


def rest(weight: float) -> float:
    """Return 1 - weight in decimal arithmetic, so that 0.9 gives 0.1.

    Examples
    --------
    >>> rest(0.9), 1.0 - 0.9
    (0.1, 0.09999999999999998)
    """
    return float(DECIMAL.subtract(Decimal(1), Decimal(repr(weight))))


def of_mapping(source: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Return the entries whose names start with `prefix`, without it; refuse unknown names."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {shown(prefix)}")
    for name in source:
        if not isinstance(name, str):
            raise TypeError(f"source: expected strings as names, got {shown(name)}")
    found = {name[len(prefix) :]: source[name] for name in source if name.startswith(prefix)}
    expected = tuple(known)
    unknown = [prefix + name for name in found if name not in expected]
    if unknown or not found:
        raise ValueError(
            f"source: expected names of {', '.join(prefix + name for name in expected)}, "
            f"got {', '.join(unknown) or 'none of them'}"
        )
    return found


def affine(weight: object, bias: object) -> bool | str:
    """Return which parameters there are, as the argument `affine` of `BatchNorm`."""
    if bool(weight) == bool(bias):
        return bool(weight)
    return "weight" if weight else "bias"


def expect(name: str, value: object, expected: str, *attributes: str) -> None:
    """Refuse an object that lacks one of the attributes by which we recognize it."""
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def listed(name: str, values: Any) -> list[Any]:
    """Return a sequence of arrays as a list, empty for None."""
    if values is None:
        return []
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of arrays, got {shown(values)}") from None


def torch_settings(source: Any) -> dict[str, Any]:
    """Return the settings of a BatchNorm module of PyTorch, without its state."""
    expected = "a BatchNorm module or its state dictionary"
    expect("source", source, expected, "state_dict", "num_features", "eps", "momentum", "affine")
    expect("source", source, expected, "track_running_stats")
    # An InstanceNorm has all of these attributes, but computes something else.
    if any("InstanceNorm" in base.__name__ for base in type(source).__mro__):
        raise TypeError(f"source: expected {expected}, got {shown(source)}")
    if getattr(source, "cls_to_become", None) is not None:  # a lazy module before its first call
        raise ValueError(
            "source: expected a layer that knows its channels, "
            f"got {type(source).__name__} before its first call"
        )
    return {"channels": source.num_features, "eps": source.eps, "momentum": source.momentum}


def onnx_node(node: Any) -> tuple[str, list[str], dict[str, Any]]:
    """Return the operator, the names of the inputs, and the attributes that we use."""
    if isinstance(node, Mapping):
        return node.get("op_type", "BatchNormalization"), list(node.get("inputs", ())), dict(node)
    expect("node", node, "an ONNX node", "op_type", "input", "attribute")
    attributes = {a.name: a.f if a.name in ("epsilon", "momentum") else a.i for a in node.attribute}
    return node.op_type, list(node.input), attributes
