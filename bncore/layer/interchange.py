"""Read layers of PyTorch, Keras, Flax and ONNX into a `BatchNorm`, and write them back.

`BatchNorm` has one method for each of these functions, with the documentation for users.  The
functions use only the layer's public attributes and methods.  They import none of the other
libraries: they look at the attributes of an object, or take the parts that a file holds.
docs/numerics.md has a table of the libraries' conventions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import cast
from bncore.arguments.layout import statistic_dtype
from bncore.layer.formats import (
    FLAX,
    KERAS,
    ONNX,
    OURS,
    AnyArray,
    affine,
    as_array,
    expect,
    from_tensor_proto,
    listed,
    new_weight,
    of_mapping,
    onnx_node,
    rest,
    torch_settings,
)
from bncore.layer.settings import BATCHES
from bncore.layer.state import LayerState, initial

Layer = TypeVar("Layer", bound=LayerState)
Settings = Mapping[str, Any]


# PyTorch


def from_torch(cls: type[Layer], source: Any, prefix: str, settings: Settings) -> Layer:
    """Make a layer from a BatchNorm module of PyTorch, or from its state dictionary."""
    known = (*OURS, BATCHES)
    given: dict[str, Any] = {}
    if isinstance(source, Mapping):
        found = of_mapping(source, known, prefix)
        if found.keys() == {BATCHES}:
            raise ValueError(
                f"source: expected parameters or running statistics, got {prefix}{BATCHES}"
            )
    else:
        given = torch_settings(source) | {"affine": False, "track_running_stats": False}
        state = source.state_dict()  # empty for a module without parameters and statistics
        found = of_mapping(state, known) if state else {}
        if "running_mean" in found and not source.track_running_stats:
            # Tracking was switched off later: the module still normalizes by its running
            # statistics, but no longer updates them.
            given["momentum"] = 0.0
    tracked = found.pop(BATCHES, None)
    layer = _with_arrays(cls, found, given, settings)
    if tracked is not None and layer.track_running_stats:
        layer.num_batches_tracked = as_array(tracked)
    layer.training = bool(getattr(source, "training", True))
    return layer


def to_torch(layer: LayerState) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the constructor's arguments and the state dictionary of PyTorch's layer."""
    _require_axis_1("to_torch", layer)
    arrays = _arrays("to_torch", layer, fill=bool(layer.affine))
    if layer.channels is None:
        raise RuntimeError(
            "to_torch: expected a layer that knows its channels, got one before its first call"
        )
    if layer.track_running_stats:
        arrays[BATCHES] = np.array(layer.num_batches_tracked)
    arguments = {
        "num_features": layer.channels,
        "eps": layer.eps,
        "momentum": layer.momentum,
        "affine": bool(layer.affine),
        "track_running_stats": layer.track_running_stats,
    }
    return arguments, arrays


# Keras


def from_keras(
    cls: type[Layer], source: Any, weights: Sequence[npt.ArrayLike] | None, settings: Settings
) -> Layer:
    """Make a layer from a BatchNormalization layer of Keras, or from its configuration."""
    if not isinstance(source, Mapping):
        expect("source", source, "a layer or its configuration", "get_config", "get_weights")
        weights = source.get_weights() if weights is None else weights
        source = source.get_config()
    if source.get("renorm"):
        raise ValueError("source: expected no renormalization, got renorm=True")
    axis = source.get("axis", -1)
    has = (source.get("scale", True), source.get("center", True), True, True)
    given = {
        "axis": axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis,
        "eps": source.get("epsilon", 1e-3),
        "momentum": new_weight(source.get("momentum", 0.99), "source"),
        "correction": 0,
        "affine": affine(has[0], has[1]),
    }
    names = [name for name, present in zip(OURS, has, strict=True) if present]
    arrays = listed("weights", weights)
    if arrays and len(arrays) != len(names):
        theirs = [name for name, present in zip(KERAS, has, strict=True) if present]
        raise ValueError(f"weights: expected {', '.join(theirs)}, got {len(arrays)} arrays")
    layer = _with_arrays(cls, dict(zip(names, arrays, strict=False)), given, settings)
    return layer.freeze(not source.get("trainable", True))


def to_keras(layer: LayerState) -> tuple[dict[str, Any], list[AnyArray]]:
    """Return the constructor's arguments and the weights of Keras's layer."""
    arrays = _arrays("to_keras", layer, running=True)
    arguments = {
        "axis": layer.axis,
        "momentum": _weight_of_old("to_keras", layer),
        "epsilon": layer.eps,
        "center": "bias" in arrays,
        "scale": "weight" in arrays,
        "trainable": not layer.frozen,
    }
    return arguments, list(arrays.values())


# Flax


def from_flax(
    cls: type[Layer], source: Any, variables: Mapping[str, Any] | None, settings: Settings
) -> Layer:
    """Make a layer from a BatchNorm of ``flax.linen`` and its variables, or of ``flax.nnx``."""
    if isinstance(source, Mapping):
        source, variables = None, source
    else:
        expect("source", source, "a module or its variables", "epsilon", "use_running_average")
    given = {
        "axis": getattr(source, "axis", -1),
        "eps": getattr(source, "epsilon", 1e-5),
        "momentum": new_weight(getattr(source, "momentum", 0.99), "source"),
        "correction": 0,
    }
    if variables is None:
        values = {name: getattr(source, name, None) for name in FLAX}
        if values["mean"] is None:
            raise TypeError("variables: expected those of a linen module, got None")
    else:
        found = of_mapping(variables, ("params", "batch_stats"))
        values = dict(of_mapping(found.get("batch_stats", {}), FLAX[2:]))
        values |= of_mapping(found["params"], FLAX[:2]) if found.get("params") else {}
    named = {
        name: values[their]
        for name, their in zip(OURS, FLAX, strict=True)
        if values.get(their) is not None
    }
    layer = _with_arrays(cls, named, given, settings)
    layer.training = not getattr(source, "use_running_average", False)
    return layer


def to_flax(layer: LayerState) -> tuple[dict[str, Any], dict[str, dict[str, AnyArray]]]:
    """Return the constructor's arguments and the variables of Flax's layer."""
    arrays = _arrays("to_flax", layer, running=True)
    named = {FLAX[OURS.index(name)]: array for name, array in arrays.items()}
    arguments = {
        "use_running_average": not layer.training or layer.frozen,
        "axis": layer.axis,
        "momentum": _weight_of_old("to_flax", layer),
        "epsilon": layer.eps,
        "use_bias": "bias" in named,
        "use_scale": "scale" in named,
    }
    variables = {"batch_stats": {name: named.pop(name) for name in FLAX[2:]}}
    return arguments, {"params": named, **variables} if named else variables


# ONNX


def from_onnx(cls: type[Layer], node: Any, initializers: Any, settings: Settings) -> Layer:
    """Make a layer from an ONNX BatchNormalization node and its initializers."""
    kind, inputs, attributes = onnx_node(node)
    if kind != "BatchNormalization" or len(inputs) != 5:
        raise ValueError(
            f"node: expected BatchNormalization of 5 inputs, got {kind} of {len(inputs)}"
        )
    if not attributes.get("spatial", 1):
        raise ValueError("node: expected statistics per channel, got spatial=0")
    if not isinstance(initializers, Mapping):
        initializers = {tensor.name: tensor for tensor in initializers}
    missing = [name for name in inputs[1:] if name not in initializers]
    if missing:
        raise ValueError(f"initializers: expected {', '.join(inputs[1:])}, got no {missing[0]}")
    values = (initializers[name] for name in inputs[1:])
    arrays = [from_tensor_proto(v) if hasattr(v, "raw_data") else v for v in values]
    given = {
        "eps": attributes.get("epsilon", 1e-5),
        "momentum": new_weight(attributes.get("momentum", 0.9), "node"),
        "correction": 0,
    }
    layer = _with_arrays(cls, dict(zip(OURS, arrays, strict=True)), given, settings)
    layer.training = bool(attributes.get("training_mode", 0))
    return layer


def to_onnx(
    layer: LayerState, x: str, y: str, prefix: str
) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the arguments of ``make_node`` and the initializers of a node for inference."""
    _require_axis_1("to_onnx", layer)
    arrays = _arrays("to_onnx", layer, fill=True, running=True)
    dtype = arrays["weight"].dtype
    wide = statistic_dtype(dtype)  # a variance may lie beyond the range of 16 bits
    dtypes = (dtype, dtype, wide, wide)
    initializers = {
        prefix + their: cast(arrays[name], to)
        for name, their, to in zip(OURS, ONNX, dtypes, strict=True)
    }
    node = {
        "op_type": "BatchNormalization",
        "inputs": [x, *initializers],
        "outputs": [y],
        "epsilon": layer.eps,
    }
    return node, initializers


# Helpers of all formats


def _with_arrays(
    cls: type[Layer], arrays: Mapping[str, Any], given: Settings, settings: Settings
) -> Layer:
    """Make a layer that has the source's settings and arrays.

    `given` holds the source's settings; the user's `settings` override them.
    """
    found = {name: as_array(arrays[name]) for name in OURS if arrays.get(name) is not None}
    tracks = "running_mean" in found
    implied: dict[str, Any] = {}
    if found:
        implied["affine"] = affine("weight" in found, "bias" in found)
        implied["track_running_stats"] = tracks
    layer = cls(**{**given, **implied, **settings})
    if found:
        layer.load_state_dict({**found, BATCHES: 0} if tracks else found)
    return layer


def _arrays(
    to: str, layer: LayerState, *, fill: bool = False, running: bool = False
) -> dict[str, AnyArray]:
    """Return copies of the layer's arrays, in the order of `OURS`.

    If `fill` is true, a missing weight and bias become 1 and 0.  If `running` is true, the layer
    must have running statistics.
    """
    if layer.activation is not None:
        raise ValueError(f"{to}: expected no activation, got {layer.activation!r}")
    if running and not layer.track_running_stats:
        raise ValueError(f"{to}: expected a layer with running statistics, got one without")
    arrays = layer.state_dict()
    if fill:
        like = layer.dtype or np.dtype(np.float32)
        for name in OURS[:2]:
            arrays.setdefault(name, initial(name, layer.channels or 0, like))
    return {name: arrays[name] for name in OURS if name in arrays}


def _require_axis_1(to: str, layer: LayerState) -> None:
    """Refuse a layer whose channel axis is not the one that the other library always uses."""
    if layer.axis != 1:
        raise ValueError(f"{to}: expected axis 1, got {layer.axis}")


def _weight_of_old(to: str, layer: LayerState) -> float:
    """Return the momentum of Keras and Flax, which is the weight of the old running value."""
    if layer.momentum is None:
        raise ValueError(f"{to}: expected a momentum, got None (a cumulative average)")
    return rest(float(layer.momentum))
