"""Move a batch norm before a Transpose; along another axis it gives the same result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx

__all__ = ["ONNX_DOMAINS", "attributes", "everywhere", "sink"]

ONNX_DOMAINS = ("", "ai.onnx")
Node = Any  # onnx's classes are made at run time


def everywhere(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes, and the nodes of the graphs inside them."""
    for node in nodes:
        yield node
        for graph in graphs(node):
            yield from everywhere(graph.node)


def attributes(node: Node) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def sink(owner: Any, chosen: Callable[[Node], bool]) -> None:
    """Move each Transpose that only a chosen batch norm reads behind that batch norm.

    Models that were once channels last have a Transpose before every batch norm and its inverse
    after it.  The two are then neighbours, and ONNX Runtime removes both.

    Parameters
    ----------
    owner : onnx.GraphProto or onnx.FunctionProto
        It is changed in place, and so are the graphs inside it.
    chosen : callable
        A function that tells whether a node is a batch norm that has an axis and no residual.
    """
    for node in owner.node:
        for graph in graphs(node):
            sink(graph, chosen)
    readers = Counter(name for node in everywhere(owner.node) for name in node.input)
    readers.update(name for node in owner.node for name in _outputs_inside(node))
    readers.update(getattr(value, "name", value) for value in owner.output)  # names in a function
    nodes = list(owner.node)
    makers = {name: node for node in nodes for name in node.output}
    for node in filter(chosen, owner.node):
        while readers[node.input[0]] == 1 and node.input[0] in makers:
            moved = makers[node.input[0]]
            perm = attributes(moved).get("perm")
            if moved.op_type != "Transpose" or moved.domain not in ONNX_DOMAINS or perm is None:
                break
            _exchange(owner, moved, node, perm)
            nodes.remove(moved)
            nodes.insert(nodes.index(node) + 1, moved)
            makers |= {node.output[0]: node, moved.output[0]: moved}
    if nodes != list(owner.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del owner.node[:]
        owner.node.extend(copies)


def graphs(node: Node) -> list[Any]:
    """Return the graphs inside a node, such as the branches of an If."""
    return [
        graph for a in node.attribute for graph in (*([a.g] if a.HasField("g") else []), *a.graphs)
    ]


def _outputs_inside(node: Node) -> Iterator[str]:
    """Yield the outputs of the graphs inside a node, at any depth; they may come from outside."""
    for graph in graphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _outputs_inside(inner)


def _exchange(owner: Any, moved: Node, node: Node, perm: list[int]) -> None:
    """Exchange a Transpose and the batch norm after it."""
    between, last = node.input[0], node.output[0]
    axis = perm[attributes(node).get("axis", 1)]
    kept = [a for a in node.attribute if a.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("axis", axis)])
    node.input[0], node.output[0] = moved.input[0], between
    moved.input[0], moved.output[0] = between, last
    for value in [value for value in owner.value_info if value.name == between]:
        owner.value_info.remove(value)  # it had the transposed shape
