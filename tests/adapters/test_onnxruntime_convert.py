"""bncore.onnxruntime.convert: which nodes of a model become bncore's, and that the model runs."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import bncore.onnxruntime
import onnxruntime_sessions as sessions
import tolerances
from bncore.adapter_compiler import MISMATCH
from onnxruntime_sessions import forward_inputs

pytestmark = pytest.mark.needs_onnxruntime
FORWARD, BACKWARD = "BatchNormalization", "BatchNormalizationGrad"
ROOT = Path(__file__).resolve().parents[2]

NODES = """
<ir_version: 8, opset_import: ["" : OPSET]>
net (float[N,3,H,W] x, float[3] w, float[3] b, float[3] m, float[3] v, bool which)
    => (float[N,3,H,W] y, float[3] m2, float[3] v2) {
    a = BatchNormalization(x, w, b, m, v)
    t, m2, v2 = BatchNormalization<training_mode = 1, momentum = 0.5>(a, w, b, m, v)
    y = If(which) <
        then_branch = one () => (float[N,3,H,W] u) {
            u, p, q = BatchNormalization<training_mode = 1>(t, w, b, m, v)
        },
        else_branch = two () => (float[N,3,H,W] u) { u = BatchNormalization(t, w, b, m, v) }
    >
}"""
OLD = """
<ir_version: 8, opset_import: ["" : 9]>
net (float[N,3] x, float[3] w, float[3] b, float[3] m, float[3] v) => (float[N,3] y) {
    y OTHERS = BatchNormalization(x, w, b, m, v)
}"""
FUNCTION = """
<ir_version: 8, opset_import: ["" : 15, "local" : 1]>
net (float[N,3] x, float[3] w) => (float[N,3] y) { y = local.norm(x, w) }
<domain: "local", opset_import: ["" : 15]>
norm (x, w) => (y) { y, m, v = BatchNormalization<training_mode = 1>(x, w, w, w, w) }"""


def net(opset=15):
    return onnx.parser.parse_model(NODES.replace("OPSET", str(opset)))


def domains(model):
    graph = model.graph
    inner = [attribute.g for attribute in graph.node[2].attribute]
    nodes = [*graph.node[:2], *(branch.node[0] for branch in inner)]
    return [node.domain for node in nodes]


def test_training_nodes_are_converted_wherever_they_are():
    model = net()
    before = onnx.ModelProto()
    before.CopyFrom(model)
    assert bncore.onnxruntime.convert(model) is model
    assert domains(model) == ["", "bncore", "bncore", ""]
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 15), ("bncore", 1)]
    onnx.checker.check_model(model)
    again = onnx.ModelProto()
    again.CopyFrom(model)
    assert bncore.onnxruntime.convert(again) == model
    assert domains(bncore.onnxruntime.convert(net(), inference=True)) == ["bncore"] * 4
    for node in (model.graph.node[1], model.graph.node[2].attribute[0].g.node[0]):
        node.domain = ""
    model.opset_import.pop()
    assert model == before


@pytest.mark.parametrize("which", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_a_converted_model_computes_the_same(rng, which, inference):
    values = forward_inputs(rng, (4, 3, 5, 6)).values()
    given = dict(zip("xwbmv", values, strict=True)) | {"which": np.array(which)}
    before = copy.deepcopy(given)
    converted = bncore.onnxruntime.convert(net(), inference=inference)
    own = sessions.session(converted).run(None, given)
    # What is inside the If is of the caller too; ONNX Runtime's own operator may write into it.
    assert all(np.array_equal(given[name], before[name]) for name in given)
    for a, b in zip(own, sessions.session(net()).run(None, given), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerances.ONNX_RTOL, atol=1e-5)


def test_functions_of_a_model(rng):
    model = bncore.onnxruntime.convert(onnx.parser.parse_model(FUNCTION))
    assert model.functions[0].node[0].domain == "bncore"
    assert "bncore" in {entry.domain for entry in model.opset_import}
    assert "bncore" in {entry.domain for entry in model.functions[0].opset_import}
    x, w = rng.normal(size=(6, 3)).astype(np.float32), np.ones(3, np.float32)
    (y,) = sessions.session(model).run(None, {"x": x, "w": w})
    expected, _ = bncore.batch_norm_train(x, w, w, eps=sessions.EPS)
    assert np.array_equal(y, expected)


@pytest.mark.parametrize(
    ("data", "parameters"),
    [(np.float16, np.float16), (np.float16, np.float32), (np.float64, np.float64)],
)
@pytest.mark.parametrize("training", [True, False])
def test_every_type_that_onnx_runtime_takes_is_converted(rng, data, parameters, training):
    """A model of float16 gets casts by ONNX Runtime; bncore's operator needs none."""
    outputs = ["y", "m2", "v2"][: 3 if training else 1]
    node = onnx.helper.make_node(FORWARD, list("xwbmv"), outputs, training_mode=int(training))
    values = dict(zip("xwbmv", forward_inputs(rng, (4, 3, 5, 6)).values(), strict=True))
    given = {n: v.astype(data if n == "x" else parameters) for n, v in values.items()}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [sessions.value(name, array) for name, array in given.items()],
        [sessions.value(n, given["x" if n == "y" else "m"]) for n in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 15)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    expected = sessions.session(copy.deepcopy(model)).run(None, given)
    bncore.onnxruntime.convert(model, inference=True)
    assert not bncore.onnxruntime.report(model).left
    atol = 1e-2 if data is np.float16 else 1e-5
    for a, b in zip(sessions.session(model).run(None, given), expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=atol, atol=atol)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("momentum = 1.5", "its momentum is 1.5, not a number from 0 to 1"),
        ("epsilon = -1.0", "its epsilon is -1, not a finite number >= 0"),
        ("names", "an input or output without a name stands before others"),
    ],
)
def test_what_is_not_supported_is_left_and_reported(attribute, reason, capsys):
    model = net()
    node = model.graph.node[1]
    node.name = "special"
    if attribute == "names":
        node.output[1] = ""
    else:
        name, value = attribute.split(" = ")
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, float(value))])
    before = node.SerializeToString()
    found = bncore.onnxruntime.report(model)
    assert not found.converted and ("special", reason) in found.left
    assert ("u", "convert has not seen it") in found.left
    bncore.onnxruntime.convert(model, verbose=True)
    assert node.SerializeToString() == before
    found = bncore.onnxruntime.report(model)
    assert [layer.name for layer in found.converted] == ["u"]
    assert [layer[0] for layer in found.left] == ["a", "special", "u"]
    printed = capsys.readouterr().out
    assert printed == f"{found}\n" and f"special: left as it is, because {reason}" in printed
    bncore.onnxruntime.convert(model, inference=True)
    assert [layer.name for layer in bncore.onnxruntime.report(model).left] == ["special"]
    with pytest.raises(TypeError, match=r"model: expected an onnx.ModelProto, got dict"):
        bncore.onnxruntime.report({})


@pytest.mark.parametrize(
    ("opset", "others", "oldest", "inference"),
    [(13, ", m2, v2", 14, False), (9, ", m2, v2", 14, True), (8, "", 9, True)],
    ids=str,
)
def test_older_meanings_are_refused(opset, others, oldest, inference):
    text = OLD.replace(" OTHERS", others).replace('"" : 9', f'"" : {opset}')
    model = onnx.parser.parse_model(text)
    expected = f"operator set {oldest} or newer for the BatchNormalization .* got {opset}"
    with pytest.raises(ValueError, match=expected):
        bncore.onnxruntime.convert(model, inference=inference)
    assert model == onnx.parser.parse_model(text)


def test_older_models_keep_what_is_not_converted():
    text = OLD.replace(" OTHERS", "").replace('"" : 9', '"" : 7')
    model = bncore.onnxruntime.convert(onnx.parser.parse_model(text))
    assert model == onnx.parser.parse_model(text)


def test_something_else_is_no_model():
    with pytest.raises(TypeError, match=r"model: expected an onnx\.ModelProto, got str"):
        bncore.onnxruntime.convert("model.onnx")


# What is known of outputs before a model runs, and where they are


@pytest.mark.parametrize(
    ("axis", "of_x"),
    [
        (1, ("N", 5, "L")),
        (1, (4, 5, 6)),
        (-1, ("N", 6, "C")),
        (-1, (4, 6, None)),
        (-1, ("N", None, 5)),
    ],
    ids=str,
)
def test_shapes_are_inferred(rng, axis, of_x):
    """Of the outputs that every node has; a shape that is known in part is none."""
    inputs = forward_inputs(rng, (4, 5, 6) if axis == 1 else (4, 6, 5), axis)
    of_y = [] if None in of_x else list(of_x)
    outputs = ["Y", "running_mean", "", "saved_mean"]
    made = sessions.model(FORWARD, inputs, outputs, {"X": of_x}, training_mode=1, axis=axis)
    found = {o.name: (o.shape, o.type) for o in sessions.session(made).get_outputs()}
    assert found["Y"] == (of_y, "tensor(float)")
    assert (found["running_mean"][1], found["saved_mean"][1]) == ("tensor(float)", "tensor(double)")
    backward = {"dY": inputs["X"]} | inputs
    del backward["B"]
    stated = {"dY": of_x, "X": of_x}
    made = sessions.model(BACKWARD, backward, ["dX", "dscale", "dB"], stated, axis=axis)
    found = {o.name: (o.shape, o.type) for o in sessions.session(made).get_outputs()}
    assert found["dX"] == (of_y, "tensor(float)")
    channels = [] if of_x[axis] is None else [of_x[axis]]
    assert found["dscale"] == found["dB"] == (channels, "tensor(float)")


SCRIPT = """
import re, sys
import numpy as np
import onnxruntime_sessions as sessions

def peak():
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM:[^0-9]*([0-9]+) kB", status.read())[1]) * 1024

shape, axis = ((16, 64, 128, 128), 1) if sys.argv[1] == "NCHW" else ((16, 128, 128, 64), 3)
parameters = {name: np.ones(64, np.float32) for name in ("scale", "B", "mean", "var")}
grown = []
for size in (2, 16):
    x, dy, y = (np.full((size, *shape[1:]), value, np.float32) for value in (1.0, 2.0, 3.0))
    dynamic = {"X": ("N", *shape[1:]), "dY": ("N", *shape[1:])}
    for op, inputs, outputs in (
        ("BatchNormalization", {"X": x} | parameters, ["Y", "m", "v"]),
        ("BatchNormalizationGrad", {"dY": dy, "X": x} | parameters, ["Y", "dscale", "dB"]),
    ):
        made = sessions.model(op, inputs, outputs, dynamic, training_mode=1, axis=axis)
        one = sessions.session(made, 2)
        binding = one.io_binding()
        for name, array in inputs.items():
            data = array.ctypes.data
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, data)
        binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        for name in outputs[1:]:
            binding.bind_output(name, "cpu")
        before = peak()
        one.run_with_iobinding(binding)
        assert not (y == 3.0).any()
        y[:] = 3.0
        if sys.argv[2] == "leaking":
            np.full(x.shape, 4.0, np.float32)
        if size == 16:
            grown.append(peak() - before)
print(max(grown))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.parametrize("call", ["as it is", "leaking"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_nothing_of_the_size_of_x_is_copied(layout, call):
    """A training step on 64 MiB, from and to memory that the caller has."""
    command = [sys.executable, "-c", SCRIPT, layout, call]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert (int(done.stdout) <= tolerances.HEAP_GROWTH_BYTES) == (call == "as it is")


CHAIN = """
import re
import numpy as np
import onnx
import bncore.onnxruntime
import onnxruntime_sessions as sessions

def peak():
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM:[^0-9]*([0-9]+) kB", status.read())[1]) * 1024

model = onnx.parser.parse_model('''
<ir_version: 8, opset_import: ["" : 15]>
net (float[16,64,128,128] x, float[64] w) => (float total) {
    a = Abs(x)
    b = BatchNormalization(a, w, w, w, w)
    c, m, v = BatchNormalization<training_mode = 1>(b, w, w, w, w)
    total = ReduceSum<keepdims = 0>(c)
}''')
one = sessions.session(bncore.onnxruntime.convert(model, inference=True), arena=False)
given = {"x": np.ones((16, 64, 128, 128), np.float32), "w": np.ones(64, np.float32)}
before = peak()
one.run(None, given)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_a_chain_of_batch_norms_needs_one_array():
    """64 MiB: y takes the memory of an x that nobody else reads."""
    command = [sys.executable, "-c", CHAIN]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 64 * 2**20 + tolerances.HEAP_GROWTH_BYTES


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_library_exports_what_onnx_runtime_calls():
    command = ["nm", "-D", "--defined-only", bncore.onnxruntime.get_library_path()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exported = re.findall(r" \w (\S+)$", done.stdout, re.MULTILINE)
    assert exported == ["RegisterCustomOps", MISMATCH]  # MISMATCH is what bncore calls
