"""ONNX's group, instance and layer norm, as bncore.onnxruntime converts and computes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import bncore
import bncore.onnxruntime
import onnxruntime_sessions as sessions
import tolerances
from arrays import same_bits
from onnx_cases import cases
from onnxruntime_sessions import EPS, REFUSED, run

pytestmark = pytest.mark.needs_onnxruntime

NORMS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization")
EVERY = {case.name: case for name in NORMS for case in cases(name)}


def converted(model):
    """A copy that is converted."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = 8
    return bncore.onnxruntime.convert(made, norms=True)


@pytest.mark.parametrize("name", EVERY)
def test_onnx_node_tests_after_convert(name):
    """Those of the standard: Mean and InvStdDev of a layer norm among their results."""
    made = converted(EVERY[name].model)
    assert made.graph.node[0].domain == bncore.onnxruntime.DOMAIN
    onnx.checker.check_model(made)
    ((inputs, expected),) = EVERY[name].data_sets
    names = [given.name for given in made.graph.input]
    results = sessions.session(made).run(None, dict(zip(names, inputs, strict=True)))
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=tolerances.ONNX_RTOL, atol=tolerances.ONNX_ATOL)


def test_the_standard_has_tests_of_each():
    assert {case.model.graph.node[0].op_type for case in EVERY.values()} == set(NORMS)


@pytest.mark.parametrize("kinds", [
    (np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float32),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_those_of_numpy(rng, kinds, threads):
    x = rng.normal(3.0, 2.0, (5, 6, 7, 4)).astype(kinds[0])
    scale, bias = rng.normal(size=(2, 6)).astype(kinds[1])
    given = {"X": x, "scale": scale, "bias": bias}
    (y,) = run("GroupNormalization", given, ["Y"], threads, num_groups=3)
    assert same_bits(y, bncore.group_norm(x, 3, scale, bias, eps=EPS)[0])
    (y,) = run("InstanceNormalization", given, ["Y"], threads, epsilon=0.125)
    assert same_bits(y, bncore.instance_norm(x, scale, bias, eps=0.125)[0])
    row = rng.normal(size=(2, 7, 4)).astype(kinds[1])
    given = {"X": x, "Scale": row[0], "B": row[1]}
    y, mean, invstd = run("LayerNormalization", given, ["Y", "M", "I"], threads, axis=2)
    want, moments = bncore.layer_norm(x, *row, axis=2, eps=EPS)
    assert same_bits(y, want)
    assert mean.shape == invstd.shape == (5, 6, 1, 1)
    assert same_bits(mean.ravel(), moments.mean.astype(np.float32))
    assert same_bits(invstd.ravel(), moments.invstd(EPS).astype(np.float32))
    (y,) = run("LayerNormalization", {"X": x, "Scale": row[0]}, ["Y"], threads, axis=-2)
    assert same_bits(y, bncore.layer_norm(x, row[0], axis=2, eps=EPS)[0])


@pytest.mark.parametrize("shape", [(4,), (1,), (7, 1), (1, 1), (7, 4)], ids=str)
def test_scale_and_bias_are_broadcast(rng, shape):
    """As ONNX says: to the axes that are normalized."""
    x = rng.normal(size=(3, 7, 4)).astype(np.float32)
    scale, bias = rng.normal(size=(2, *shape)).astype(np.float32)
    given = {"X": x, "Scale": scale, "B": bias}
    (y,) = run("LayerNormalization", given, ["Y"], axis=1)
    full = (np.broadcast_to(one, (7, 4)) for one in (scale, bias))
    assert same_bits(y, bncore.layer_norm(x, *full, axis=1, eps=EPS)[0])


MODEL = """
<ir_version: 8, opset_import: ["" : OPSET]>
net (float[N,4,H,W] x, float[C] w, float[G] v, float[P] p, float[P,Q] q) => (OUT) {
    a = GroupNormalization<num_groups = 2>(x, v, v)
    b = InstanceNormalization(a, w, w)
    c = LayerNormalization(b, p)
    d = LayerNormalization<axis = 3>(c, p, p)
    e = LayerNormalization(d, q)
    f, m = LayerNormalization<stash_type = 16>(e, p)
    y, g = LayerNormalization<axis = 3>(c, p, p)
}"""


def network(opset):
    outs = "float[N,4,H,W] y"
    model = onnx.parser.parse_model(MODEL.replace("OPSET", str(opset)).replace("OUT", outs))
    del model.graph.node[6].output[1]
    return model


def test_what_is_converted_and_what_is_left():
    model = network(21)
    assert bncore.onnxruntime.report(model).converted == ()
    assert "a: left as it is, because GroupNormalization is converted with norms=True alone" in str(
        bncore.onnxruntime.report(bncore.onnxruntime.convert(model))
    )
    report = bncore.onnxruntime.report(bncore.onnxruntime.convert(model, norms=True))
    assert [layer.name for layer in report.converted] == ["a", "b", "c"]
    unknown = "the model does not say how many dimensions its X has"
    assert {layer.name: layer.reason for layer in report.left} == {
        "d": unknown,
        "e": "its 'q' has more dimensions than are normalized",
        "f": "its Mean and InvStdDev are not float",
        "y": unknown,
    }
    told = network(21)
    shape = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["N", 4, "H", "W"])
    told.graph.value_info.append(shape)
    report = bncore.onnxruntime.report(bncore.onnxruntime.convert(told, norms=True))
    assert [layer.name for layer in report.converted] == ["a", "b", "c", "d", "y"]


def test_old_operator_sets():
    """GroupNormalization of set 18 has a scale per group; layer norms are of set 17."""
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[2,4,3] x, float[2] v) => (float[2,4,3] y) {
        y = GroupNormalization<num_groups = 2>(x, v, v)
    }"""
    model = onnx.parser.parse_model(text)
    x = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3) ** 2
    given = {"x": x, "v": np.array([0.5, 2.0], np.float32)}
    want = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, given)[0]
    (got,) = sessions.session(converted(model)).run(None, given)
    np.testing.assert_allclose(got, want, rtol=tolerances.ONNX_RTOL, atol=1e-5)
    report = bncore.onnxruntime.report(converted(network(16)))
    reasons = {layer.name: layer.reason for layer in report.left}
    assert reasons["a"] == "its operator set is 16, below 18"
    assert reasons["c"] == "its operator set is 16, below 17"


def test_other_norms_are_named():
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    net (float[2,4] x, float[4] w) => (float[2,4] y) {
        a = RMSNormalization(x, w)
        y = LpNormalization(a)
    }"""
    report = bncore.onnxruntime.report(
        bncore.onnxruntime.convert(onnx.parser.parse_model(text), norms=True)
    )
    assert [layer.reason for layer in report.left] == [
        "bncore has no RMSNormalization", "bncore has no LpNormalization",
    ]  # fmt: skip


X = np.ones((2, 4, 3), np.float32)
W = np.ones(4, np.float32)


@pytest.mark.parametrize("op, given, attributes, message", [
    ("GroupNormalization", {"X": X, "s": W, "b": W}, {"num_groups": 3}, "expected a divisor of 4"),
    ("GroupNormalization", {"X": X, "s": W, "b": W}, {}, "num_groups: expected an int >= 1, got 0"),
    ("GroupNormalization", {"X": X, "s": W[:3], "b": W}, {"num_groups": 2}, r"scale: expected a s"),
    ("InstanceNormalization", {"X": X[0, 0], "s": W, "b": W}, {}, "expected at least 2 dimensions"),
    ("LayerNormalization", {"X": X, "s": W}, {}, r"Scale: expected a shape that broadcasts to \(3"),
    ("LayerNormalization", {"X": X, "s": W[:1]}, {"axis": 3}, "axis: expected -3 to 2 for X of"),
    ("LayerNormalization", {"X": X, "s": W[:1]}, {"epsilon": -1.0}, "epsilon: expected a finite"),
])  # fmt: skip
def test_errors_name_the_argument(op, given, attributes, message):
    kinds = (*REFUSED, sessions.theirs.InvalidArgument, sessions.theirs.RuntimeException)
    with pytest.raises(kinds, match=message):
        run(op, given, ["Y"], **attributes)


def test_nothing_is_computed_from_nothing():
    for shape in ((0, 4, 3), (2, 4, 0)):
        given = {"X": np.ones(shape, np.float32), "s": W, "b": W}
        assert run("InstanceNormalization", given, ["Y"])[0].shape == shape
