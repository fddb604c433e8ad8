"""ONNX Runtime: inference of a model of one BatchNormalization node, with bound arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime

from bncore.programs.bench.cases import EPS, ITEM_BYTES, LAYOUTS, Array, Case, Problem
from bncore.programs.bench.peers import Call


class OnnxRuntime:
    """Its CPU provider."""

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name

    def can(self, case: Case) -> bool:
        """Tell whether it is inference (as ONNX Runtime has only that) with channels first."""
        first = case.layout == LAYOUTS[0] and ITEM_BYTES[case.dtype] > 2
        return first and (case.operation, case.output) == ("infer", "given")

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Do nothing, because the threads belong to the session that each case makes."""
        yield

    def call(self, case: Case, p: Problem) -> Call:
        """Make a session for the model, and bind x and the output."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model(p).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for bind, name, array in (
            (binding.bind_input, "x", p.x),
            (binding.bind_output, "y", p.out),
        ):
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        def call() -> Array:
            session.run_with_iobinding(binding)
            return p.out

        return call

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Return the given output, into which it wrote."""
        return (result,)


def model(p: Problem) -> Any:
    """One node; parameters and statistics are constants, as in an exported network."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(p.dtype))
    constants = {"w": p.weight, "b": p.bias, "mean": p.running_mean, "var": p.running_var}
    node = onnx.helper.make_node("BatchNormalization", ["x", *constants], ["y"], epsilon=EPS)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "batch_norm",
        [value("x", kind, p.shape)],
        [value("y", kind, p.shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 15)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def peer(name: str) -> OnnxRuntime:
    """Make the peer."""
    return OnnxRuntime(name)
