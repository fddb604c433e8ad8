"""From ONNX's BatchNormalization to bncore's in a whole model."""

from __future__ import annotations

from typing import Any

import onnx

from bncore.onnxruntime.transposes import ONNX_DOMAINS, attributes, everywhere, sink

__all__ = ["DOMAIN", "convert"]

DOMAIN = "bncore"
NAME = "BatchNormalization"
# Since which operator sets BatchNormalization means the same: with one output, with more.
OLDEST, OLDEST_TRAINING = 9, 14
Node = Any  # onnx's classes are made at run time
Model = Any


def convert(model: Model, *, inference: bool = False) -> Model:
    """Put bncore's operator in the place of ONNX's BatchNormalization, in the model itself.

    Nodes keep their names and attributes; their domain becomes ``"bncore"``.  A Transpose that only
    such a node reads moves to behind it, since the node takes its channels along any axis: with the
    inverse Transpose that follows where a model was channels last, ONNX Runtime removes it.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place: its graph, the graphs inside it, and its functions.
    inference : bool, default False
        Whether nodes without ``training_mode=1`` are converted too.  ONNX Runtime joins many of
        these to the convolutions before them, so leave it at that where they are.

    Returns
    -------
    onnx.ModelProto
        `model`, which needs `register` for the sessions that load it.

    Raises
    ------
    TypeError
        If `model` is no ModelProto.
    ValueError
        If a node is of an operator set in which it means something else: below 14 with outputs
        besides Y, below 9 without.  Nothing has been changed then.

    Examples
    --------
    >>> import onnx
    >>> import bncore.onnxruntime
    >>> text = '''
    ... <ir_version: 8, opset_import: ["" : 15]>
    ... step (float[N,3,H,W] x, float[3] w, float[3] b, float[3] m, float[3] v)
    ...     => (float[N,3,H,W] y, float[3] m2, float[3] v2) {
    ...     y, m2, v2 = BatchNormalization<training_mode = 1>(x, w, b, m, v)
    ... }'''
    >>> model = bncore.onnxruntime.convert(onnx.parser.parse_model(text))
    >>> model.graph.node[0].domain
    'bncore'
    """
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto, got {type(model).__name__}")
    found = [
        (owner, [node for node in everywhere(nodes) if _wanted(node, owner, inference)])
        for owner, nodes in [(model, model.graph.node), *((f, f.node) for f in model.functions)]
    ]
    for owner, wanted in found:
        for node in wanted:
            node.domain = DOMAIN
        if wanted:
            _import(owner)
            _import(model)
            sink(owner.graph if owner is model else owner, _is_plain)
    return model


def _import(owner: Any) -> None:
    """Make bncore's operators known to a model or a function."""
    if all(entry.domain != DOMAIN for entry in owner.opset_import):
        owner.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _is_plain(node: Node) -> bool:
    """Tell whether a node is bncore's batch norm, without a residual."""
    return node.op_type == NAME and node.domain == DOMAIN and len(node.input) == 5


def _wanted(node: Node, owner: Any, inference: bool) -> bool:
    """Tell whether a node is to be converted; refuse it if it is one whose meaning is another."""
    if node.op_type != NAME or node.domain not in ONNX_DOMAINS:
        return False
    version = max(e.version for e in owner.opset_import if e.domain in ONNX_DOMAINS)
    training = attributes(node).get("training_mode", 0) == 1
    several = len([name for name in node.output if name]) > 1
    oldest = OLDEST_TRAINING if several else OLDEST
    if version < oldest and (inference or several):
        raise ValueError(
            f"model: expected operator set {oldest} or newer for the BatchNormalization "
            f"{node.name!r} with {len(node.output)} outputs, got {version}; "
            "onnx.version_converter makes a newer model"
        )
    return inference or training
