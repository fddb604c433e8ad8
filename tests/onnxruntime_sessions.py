"""Models of one node of bncore's, and sessions that run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as theirs

import bncore.onnxruntime

# What ONNX Runtime raises for a node whose types no operator has.
REFUSED = (theirs.InvalidGraph, theirs.Fail, theirs.NotImplemented)
Arrays = dict[str, np.ndarray | None]  # None: the input is left out
EPS = float(np.float32(1e-5))  # attributes are float32
OLD = float(np.float32(0.9))  # ONNX's momentum, the weight of the old value


def value(name: str, array: np.ndarray, shape: Sequence[int | str | None] | None = None):
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape if shape is None else shape)


def model(
    op: str,
    inputs: Arrays,
    outputs: Sequence[str],
    shapes: dict[str, Sequence[int | str | None]] | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    """One node, named "bn", its inputs of `shapes` where the arrays' are not to be stated."""
    shapes = shapes or {}
    given = {name: array for name, array in inputs.items() if array is not None}
    named = [name if array is not None else "" for name, array in inputs.items()]
    while not named[-1]:  # ONNX Runtime 1.20 crashes at a custom operator's input of no name
        named.pop()
    node = onnx.helper.make_node(
        op, named, outputs, name="bn", domain=bncore.onnxruntime.DOMAIN, **attributes
    )
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [value(name, array, shapes.get(name)) for name, array in given.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs if name],
    )
    opsets = [onnx.helper.make_opsetid("", 15), onnx.helper.make_opsetid("bncore", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session(
    made: onnx.ModelProto, threads: int = 1, *, optimized: Path | None = None, arena: bool = True
) -> onnxruntime.InferenceSession:
    """A session, which writes the model that it made of it to `optimized`; arena: keeps memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4  # what a test expects to fail says so by its exception
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    bncore.onnxruntime.register(options)
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    op: str, inputs: Arrays, outputs: Sequence[str], threads: int = 1, **attributes: object
) -> list[np.ndarray]:
    """The outputs that are named, in order."""
    given = {name: array for name, array in inputs.items() if array is not None}
    return session(model(op, inputs, outputs, **attributes), threads).run(None, given)


def with_casts(made: onnx.ModelProto) -> onnx.ModelProto:
    """Change a model for Python, which has no bfloat16: it takes float32 and gives float64.

    Casts to bfloat16 stand before the node, and casts to float64, which are exact, behind it.
    """
    graph, types = made.graph, onnx.TensorProto
    before, after = [], []
    node = onnx.NodeProto.FromString(graph.node[0].SerializeToString())
    for given in graph.input:
        kind = given.type.tensor_type
        if kind.elem_type == types.BFLOAT16:
            kind.elem_type = types.FLOAT
            before.append(_cast(given.name, f"{given.name}16", types.BFLOAT16))
            at = list(node.input).index(given.name)
            node.input[at] = f"{given.name}16"
    for at, name in enumerate(node.output):
        if name:
            node.output[at] = f"{name}16"
            after.append(_cast(f"{name}16", name, types.DOUBLE))
    del graph.node[:]
    graph.node.extend([*before, node, *after])
    return made


def _cast(name: str, to: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [name], [to], to=kind)


def forward_inputs(rng, shape, axis=1, dtype=np.float32) -> Arrays:
    channels = shape[axis]
    names = ("scale", "B", "input_mean", "input_var")
    parameters = {name: rng.uniform(0.5, 2.0, channels).astype(dtype) for name in names}
    return {"X": rng.normal(3.0, 2.0, shape).astype(dtype), **parameters}
