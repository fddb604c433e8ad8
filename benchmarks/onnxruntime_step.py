"""Time bncore.onnxruntime's operator against ONNX Runtime's own.

    python benchmarks/onnxruntime_step.py [--threads 1,2] [--repeats N] [--write]

BatchNormalization in training (forward) and inference, on the shapes of ResNet-50 at batch 32.
ONNX Runtime's operator has its channels first: channels last it stands between two Transposes, as
converters of models write it, and bncore.onnxruntime.convert takes these away.  Both sessions read
and write the same memory, bound to them, and take turns in one process, after the results are
compared; medians.  Then the time of a run with next to nothing to compute, and the error of y far
from 0.  --write puts the tables into docs/onnxruntime.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.progress import track

import bncore.onnxruntime
from bncore.programs.bench.cases import EPS, LAYOUTS, SHAPES, named
from bncore.programs.bench.tables import Table, counted
from steps import NETWORK, Times, made_on, medians, put, ratio_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "onnxruntime.md"
OWN, THEIRS = "bncore.onnxruntime", "ONNX Runtime"
KINDS = ("training", "inference")
SMALL = (1, 64, 1, 2)
MEANS = (0.0, 10.0, 1000.0)
SPINNING = 0.02  # seconds; for a while after a call the threads of its session still look for work
PERMUTATIONS = ((0, 3, 1, 2), (0, 2, 3, 1))  # NHWC to NCHW, and back
Arrays = dict[str, np.ndarray]


def constants(channels: int) -> Arrays:
    """Parameters and running statistics."""
    rng = np.random.default_rng(channels)
    names = ("scale", "B", "mean", "var")
    return {name: rng.uniform(0.5, 2.0, channels).astype(np.float32) for name in names}


def model(shape: tuple[int, ...], kind: str, layout: str, own: bool) -> onnx.ModelProto:
    """From X to Y, and to running statistics in training; all else is constant."""
    training = kind == "training"
    last = layout == LAYOUTS[1]
    given = constants(shape[-1] if last else shape[1])
    outputs = ["Y", "new_mean", "new_var"] if training else ["Y"]
    inner = ["moved", "normalized"] if last else ["X", "Y"]
    node = onnx.helper.make_node(
        "BatchNormalization",
        [inner[0], *given],
        [inner[1], *outputs[1:]],
        epsilon=EPS,
        training_mode=int(training),
    )
    nodes = [node]
    if last:
        moves = [("X", "moved"), ("normalized", "Y")]
        before, after = (
            onnx.helper.make_node("Transpose", [a], [b], perm=perm)
            for (a, b), perm in zip(moves, PERMUTATIONS, strict=True)
        )
        nodes = [before, node, after]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "batch_norm",
        [value("X", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    made.ir_version = 8
    if own:
        bncore.onnxruntime.convert(made, inference=True)
    return made


def call(made: onnx.ModelProto, x: np.ndarray, y: np.ndarray, threads: int) -> Callable[[], Any]:
    """A session's run with x and y bound to it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    bncore.onnxruntime.register(options)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_input("X", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    for output in session.get_outputs()[1:]:
        binding.bind_output(output.name, "cpu")

    def run() -> list[np.ndarray]:
        session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()[1:]]

    return run


def pair(
    shape: tuple[int, ...], kind: str, layout: str, threads: int, repeats: int
) -> dict[str, float]:
    """Seconds of both, after they have computed the same."""
    if layout == LAYOUTS[1]:
        shape = (shape[0], *shape[2:], shape[1])
    x = np.random.default_rng(0).normal(3.0, 2.0, shape).astype(np.float32)
    y = np.empty_like(x)
    calls, results = {}, []
    for name in (THEIRS, OWN):
        calls[name] = call(model(shape, kind, layout, name == OWN), x, y, threads)
        y[:] = np.nan
        results.append([*calls[name](), y.copy()])
        if threads > 1:
            calls[f"rest after {name}"] = lambda: time.sleep(SPINNING)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    return medians(calls, repeats)


def times(threads: int, repeats: int, console: Console) -> Times:
    """Seconds by operation and layout, shape, and whose operator it is."""
    found: Times = {f"{kind}, {layout}": {} for layout in LAYOUTS for kind in KINDS}
    cases = [(k, layout, s) for layout in LAYOUTS for k in KINDS for s in SHAPES[NETWORK]]
    for kind, layout, shape in track(cases, counted(threads), console=console):
        taken = pair(shape, kind, layout, threads, repeats)
        found[f"{kind}, {layout}"][named(shape)] = taken
    return found


def small_table(repeats: int) -> Table:
    """What a run costs where there is next to nothing to compute."""
    table = Table("small", [f"a run, {named(SMALL)}", *KINDS])
    taken = [pair(SMALL, kind, LAYOUTS[0], 1, 10 * repeats) for kind in KINDS]
    for name in (THEIRS, OWN):
        table.lines.append([name, *(f"{column[name] * 1e6:.0f} µs" for column in taken)])
    return table


def formula(x: np.ndarray, given: Arrays) -> np.ndarray:
    """Batch norm in training, channels first."""
    axes = (0, 2, 3)
    deviation = x - x.mean(axes, keepdims=True)
    scale, bias = (given[name][:, None, None] for name in ("scale", "B"))
    return deviation / np.sqrt((deviation**2).mean(axes, keepdims=True) + EPS) * scale + bias


def error_table() -> Table:
    """The largest error of y in training, by how far the mean is from 0."""
    table = Table("error", ["error of y, mean / std", *(f"{mean:g}" for mean in MEANS)])
    shape = SHAPES[NETWORK][1]
    normal = np.random.default_rng(0).normal(size=shape)
    errors: dict[str, list[float]] = {THEIRS: [], OWN: []}
    for mean in MEANS:
        x = (normal + mean).astype(np.float32)
        y = np.empty_like(x)
        exact = formula(x.astype(np.float64), constants(shape[1]))
        for name, found in errors.items():
            call(model(shape, "training", LAYOUTS[0], name == OWN), x, y, 1)()
            found.append(float(np.abs(y - exact).max()))
    for name, found in errors.items():
        table.lines.append([name, *(f"{error:.1e}" for error in found)])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True)
    tables = [
        ratio_table({threads: times(threads, options.repeats, console)}, OWN, THEIRS)
        for threads in map(int, options.threads.split(","))
    ]
    tables += [small_table(options.repeats), error_table()]
    text = "\n\n".join([*(table.markdown() for table in tables), made_on("onnxruntime")])
    print(text)
    if options.write:
        put(PAGE, "step", text)


if __name__ == "__main__":
    main()
