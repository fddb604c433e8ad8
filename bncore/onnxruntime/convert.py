"""Replace ONNX's normalizing operators by bncore's in a whole model."""

from __future__ import annotations

from typing import Any

import onnx

from bncore.onnxruntime.norms import NORMS, adapt, ranks
from bncore.onnxruntime.report import (
    DOMAIN,
    NAME,
    checked,
    is_training,
    normalizing,
    report,
    unsupported,
    version_of,
)
from bncore.onnxruntime.transposes import sink

__all__ = ["DOMAIN", "convert"]

# The first operator sets in which BatchNormalization has today's meaning: with one output, with
# more outputs.
OLDEST, OLDEST_TRAINING = 9, 14
Node = Any  # onnx's classes are made at run time
Model = Any


def convert(
    model: Model, *, inference: bool = False, norms: bool = False, verbose: bool = False
) -> Model:
    """Replace ONNX's BatchNormalization by bncore's operator, in the model itself.

    Nodes keep their names and attributes; their domain becomes ``"bncore"``.  bncore's node takes
    its channels along any axis.  If only such a node reads the result of a Transpose, the Transpose
    therefore moves behind the node.  In a model that was channels last, the inverse Transpose
    follows there, and ONNX Runtime removes both.  A node that bncore's operator cannot replace
    stays as it is; `report` says which, and why.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place: its graph, the graphs inside it, and its functions.
    inference : bool, default False
        Whether to convert nodes without ``training_mode=1`` too.  ONNX Runtime fuses many of these
        with the convolutions before them, so do not convert them in models with such convolutions.
    norms : bool, default False
        Whether to convert GroupNormalization, InstanceNormalization and LayerNormalization, too.
        A layer norm's scale and bias need shapes that the model states.
    verbose : bool, default False
        Whether to print the report.

    Returns
    -------
    onnx.ModelProto
        `model`, which needs `register` for the sessions that load it.

    Raises
    ------
    TypeError
        If `model` is not a ModelProto.
    ValueError
        If a node's operator set gives it another meaning: below 14 if it has more outputs than Y,
        below 9 if it does not.  Nothing has been changed in that case.

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
    found = [(owner, node) for owner, node in normalizing(checked(model)) if node.domain != DOMAIN]
    known, owners = ranks(model), {}
    for owner, node in found:
        if node.op_type == NAME:
            _check_meaning(node, owner, inference)
    for owner, node in found:
        wanted = norms if node.op_type in NORMS else inference or is_training(node)
        if wanted and unsupported(node, owner, known if owner is model else {}) is None:
            node.domain = DOMAIN
            adapt(node, version_of(owner))
            owners[id(owner)] = owner
    for owner in owners.values():
        _import(owner)
        _import(model)
        sink(owner.graph if owner is model else owner, _is_plain)
    if verbose:
        print(report(model))
    return model


def _import(owner: Any) -> None:
    """Add bncore's operator set to a model or a function."""
    if all(entry.domain != DOMAIN for entry in owner.opset_import):
        owner.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _is_plain(node: Node) -> bool:
    """Tell whether a node is bncore's batch norm, without a residual."""
    return node.op_type == NAME and node.domain == DOMAIN and len(node.input) == 5


def _check_meaning(node: Node, owner: Any, inference: bool) -> None:
    """Raise ValueError if a node's operator set gives it another meaning."""
    version = version_of(owner)
    several = len([name for name in node.output if name]) > 1
    oldest = OLDEST_TRAINING if several else OLDEST
    if version < oldest and (inference or several):
        raise ValueError(
            f"model: expected operator set {oldest} or newer for the BatchNormalization "
            f"{node.name!r} with {len(node.output)} outputs, got {version}; "
            "onnx.version_converter makes a newer model"
        )
