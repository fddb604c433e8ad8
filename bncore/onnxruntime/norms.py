"""ONNX's group, instance and layer norm, which `convert` replaces on request."""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx

from bncore.onnxruntime.transposes import attributes, everywhere

__all__ = ["NORMS", "Ranks", "adapt", "ranks", "refusal"]

# The operators, and the first operator set in which each has today's meaning.  GroupNormalization
# had one value of scale and bias per group before operator set 21.
NORMS = {"GroupNormalization": 18, "InstanceNormalization": 6, "LayerNormalization": 17}
PER_CHANNEL = 21
Node = Any  # onnx's classes are made at run time
Ranks: TypeAlias = dict[str, int]


def ranks(model: Any) -> Ranks:
    """Return how many dimensions the tensors have of which a model's graphs say it."""
    found: Ranks = {}
    for graph in _graphs(model.graph):
        found |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                found[value.name] = len(value.type.tensor_type.shape.dim)
    for node in everywhere(model.graph.node):
        if node.op_type == "Constant" and "value" in attributes(node):
            found[node.output[0]] = len(attributes(node)["value"].dims)
    return found


def _graphs(graph: Any) -> list[Any]:
    found = [graph]
    for node in graph.node:
        for a in node.attribute:
            for inner in (*([a.g] if a.HasField("g") else []), *a.graphs):
                found += _graphs(inner)
    return found


def refusal(node: Node, version: int, known: Ranks) -> str | None:
    """Say why bncore's operator is not the same function as a node; None if it is."""
    if version < NORMS[node.op_type]:
        return f"its operator set is {version}, below {NORMS[node.op_type]}"
    if node.op_type != "LayerNormalization":
        return None
    given = attributes(node)
    if len(node.output) > 1 and given.get("stash_type", 1) != onnx.TensorProto.FLOAT:
        return "its Mean and InvStdDev are not float"
    axis = given.get("axis", -1)
    if axis >= 0:
        if node.input[0] not in known:
            return "the model does not say how many dimensions its X has"
        axis -= known[node.input[0]]
    for name in node.input[1:]:
        if name not in known:
            return f"the model does not say how many dimensions its {name!r} has"
        if known[name] > -axis:
            return f"its {name!r} has more dimensions than are normalized"
    return None


def adapt(node: Node, version: int) -> None:
    """Add the attribute that tells bncore's operator what the operator set tells ONNX's."""
    if node.op_type == "GroupNormalization" and version < PER_CHANNEL:
        node.attribute.append(onnx.helper.make_attribute("per_group", 1))
