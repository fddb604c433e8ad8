"""What `convert` has converted in an ONNX model, and what it leaves as it is and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx

from bncore.onnxruntime import norms
from bncore.onnxruntime.norms import NORMS
from bncore.onnxruntime.transposes import ONNX_DOMAINS, attributes, everywhere

__all__ = ["DOMAIN", "NAME", "Layer", "Report", "report"]

DOMAIN = "bncore"
NAME = "BatchNormalization"
Node = Any  # onnx's classes are made at run time
Model = Any


class Layer(NamedTuple):
    """A normalizing node of a model.

    Attributes
    ----------
    name : str
        The name of its node, or of the node's first output if the node has none.
    reason : str or None
        Why `convert` leaves it as it is; None if it is bncore's.
    """

    name: str
    reason: str | None


class Report(NamedTuple):
    """What `report` has found.

    Attributes
    ----------
    converted, left : tuple of Layer
        The nodes that bncore computes, and those that it does not.
    """

    converted: tuple[Layer, ...]
    left: tuple[Layer, ...]

    def __str__(self) -> str:
        count = len(self.converted) + len(self.left)
        lines = [f"bncore computes {len(self.converted)} of {count} normalizing nodes"]
        lines += [f"  {layer.name}" for layer in self.converted]
        lines += [f"  {layer.name}: left as it is, because {layer.reason}" for layer in self.left]
        return "\n".join(lines)


def report(model: Model) -> Report:
    """Say which nodes of a model that normalize are bncore's, and why others are not.

    These are the nodes of ONNX's operators whose names end with "Normalization".

    Parameters
    ----------
    model : onnx.ModelProto
        A model, before or after `convert`; nothing in it changes.

    Returns
    -------
    Report
        Two lists of nodes; ``print`` shows both.

    Raises
    ------
    TypeError
        If `model` is not a ModelProto.

    Examples
    --------
    >>> import onnx
    >>> import bncore.onnxruntime
    >>> text = '''
    ... <ir_version: 8, opset_import: ["" : 15]>
    ... net (float[N,3,H,W] x, float[3] w, float[3] b, float[3] m, float[3] v)
    ...     => (float[N,3,H,W] y, float[3] m2, float[3] v2) {
    ...     a = BatchNormalization(x, w, b, m, v)
    ...     y, m2, v2 = BatchNormalization<training_mode = 1>(a, w, b, m, v)
    ... }'''
    >>> model = bncore.onnxruntime.convert(onnx.parser.parse_model(text))
    >>> print(bncore.onnxruntime.report(model))
    bncore computes 1 of 2 normalizing nodes
      y
      a: left as it is, because its training_mode is 0; convert(inference=True) takes it
    """
    converted, left, known = [], [], norms.ranks(checked(model))
    for owner, node in normalizing(model):
        name = node.name or node.output[0]
        if node.domain == DOMAIN:
            converted.append(Layer(name, None))
        else:
            left.append(Layer(name, _reason(node, owner, known if owner is model else {})))
    return Report(tuple(converted), tuple(left))


def _reason(node: Node, owner: Any, known: norms.Ranks) -> str:
    """Say why a node is not bncore's."""
    found = unsupported(node, owner, known)
    if found is None and node.op_type in NORMS:
        found = f"{node.op_type} is converted with norms=True alone"
    elif found is None and not is_training(node):
        found = "its training_mode is 0; convert(inference=True) takes it"
    return found or "convert has not seen it"


def checked(model: object) -> Model:
    """Return a model, or raise TypeError if it is something else."""
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto, got {type(model).__name__}")
    return model


def normalizing(model: Model) -> Iterator[tuple[Any, Node]]:
    """Yield the nodes that normalize, ONNX's and bncore's, with the model or its function."""
    for owner, nodes in [(model, model.graph.node), *((f, f.node) for f in model.functions)]:
        for node in everywhere(nodes):
            known = node.domain in ONNX_DOMAINS and node.op_type.endswith("Normalization")
            if known or (node.domain == DOMAIN and node.op_type in (NAME, *NORMS)):
                yield owner, node


def version_of(owner: Any) -> int:
    """Return the version of ONNX's operator set that a model or a function imports."""
    return max(int(e.version) for e in owner.opset_import if e.domain in ONNX_DOMAINS)


def is_training(node: Node) -> bool:
    """Tell whether a node normalizes by the statistics of its batch."""
    return bool(attributes(node).get("training_mode", 0) == 1)


def unsupported(node: Node, owner: Any, known: norms.Ranks) -> str | None:
    """Say why bncore's operator cannot take the place of a node; None if it can."""
    if node.op_type not in (NAME, *NORMS):
        return f"bncore has no {node.op_type}"
    given = attributes(node)
    epsilon, momentum = given.get("epsilon", 1e-5), given.get("momentum", 0.9)
    if not (math.isfinite(epsilon) and epsilon >= 0.0):
        return f"its epsilon is {epsilon:g}, not a finite number >= 0"
    if is_training(node) and not 0.0 <= momentum <= 1.0:
        return f"its momentum is {momentum:g}, not a number from 0 to 1"
    if "" in node.input or "" in list(node.output)[:-1]:
        return "an input or output without a name stands before others"
    if node.op_type in NORMS:
        return norms.refusal(node, version_of(owner), known)
    return None
