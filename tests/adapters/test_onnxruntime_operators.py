"""bncore.onnxruntime: the operators have the bits of bncore's functions, and ONNX's own results."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import bncore
import bncore.onnxruntime
import onnxruntime_sessions as sessions
import tolerances
from arrays import same_bits
from onnx_cases import CASES
from onnxruntime_sessions import EPS, OLD, forward_inputs, run

pytestmark = pytest.mark.needs_onnxruntime

TESTS = Path(__file__).resolve().parents[1]
FORWARD, BACKWARD = "BatchNormalization", "BatchNormalizationGrad"
TRAINED = ["Y", "running_mean", "running_var", "saved_mean", "saved_var"]
GRADIENTS = ["dX", "dscale", "dB"]
LAYOUTS = {"NC": ((6, 5), 1), "NCL": ((3, 5, 7), 1), "NCHW": ((3, 5, 16, 9), 1)}
LAYOUTS |= {"NHWC": ((3, 16, 9, 5), -1), "CN": ((5, 40), 0), "NHCW": ((2, 6, 5, 3), 2)}
FUSIONS = {
    "plain": ({}, False),
    "relu": ({"activation": "relu"}, False),
    "leaky_relu-residual": ({"activation": "leaky_relu", "negative_slope": 0.25}, True),
    "residual": ({}, True),
}
every_layout = pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=list(LAYOUTS))
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
every_fusion = pytest.mark.parametrize(("fusion", "with_residual"), FUSIONS.values(), ids=FUSIONS)


def assert_bits(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert same_bits(a, b)


@every_layout
@every_dtype
@every_fusion
def test_training_has_the_bits_of_numpy(rng, shape, axis, dtype, fusion, with_residual):
    inputs = forward_inputs(rng, shape, axis, dtype)
    residual = rng.normal(size=shape).astype(dtype) if with_residual else None
    got = run(
        FORWARD, inputs | {"residual": residual}, TRAINED, training_mode=1, axis=axis, **fusion
    )
    x, scale, bias, mean, var = inputs.values()
    y, moments = bncore.batch_norm_train(
        x, scale, bias, axis=axis, eps=EPS, residual=residual, **fusion
    )
    mean, var = mean.copy(), var.copy()
    bncore.update_running_stats(mean, var, moments, momentum=1.0 - OLD, correction=0)
    assert_bits(got, [y, mean, var, moments.mean, moments.var()])


@every_layout
@every_dtype
@every_fusion
def test_inference_has_the_bits_of_numpy(rng, shape, axis, dtype, fusion, with_residual):
    inputs = forward_inputs(rng, shape, axis, dtype)
    residual = rng.normal(size=shape).astype(dtype) if with_residual else None
    got = run(FORWARD, inputs | {"residual": residual}, ["Y"], axis=axis, epsilon=0.125, **fusion)
    x, scale, bias, mean, var = inputs.values()
    one = {"axis": axis, "eps": 0.125, "residual": residual, **fusion}
    assert_bits(got, [bncore.batch_norm_infer(x, mean, var, scale, bias, **one)])


@every_layout
@every_dtype
@every_fusion
@pytest.mark.parametrize("training", [1, 0], ids=["training", "frozen"])
def test_gradients_have_the_bits_of_numpy(rng, shape, axis, dtype, fusion, with_residual, training):
    x, scale, bias, mean, var = forward_inputs(rng, shape, axis, dtype).values()
    dy = rng.normal(size=shape).astype(dtype)
    residual = rng.normal(size=shape).astype(dtype) if with_residual else None
    moments = bncore.moments(x, axis=axis)
    if training:
        mean, var = moments.mean, moments.var()
    given = {"dY": dy, "X": x, "scale": scale, "mean": mean, "var": var, "B": bias}
    outputs = [*GRADIENTS, "dresidual"] if with_residual else GRADIENTS
    attributes = {"training_mode": training, "axis": axis, **fusion}
    got = run(BACKWARD, given | {"residual": residual}, outputs, **attributes)
    dresidual = np.empty_like(x) if with_residual else None
    one = {"axis": axis, "eps": EPS, "bias": bias, "residual": residual, **fusion}
    one["dresidual"] = dresidual
    if training:
        expected = bncore.batch_norm_train_backward(dy, x, moments, scale, **one)
    else:
        expected = bncore.batch_norm_infer_backward(dy, x, mean, var, scale, **one)
    assert_bits(got, [*expected, *([dresidual] if with_residual else [])])


@pytest.mark.parametrize("correction", [0, 1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_running_statistics(rng, momentum, correction):
    inputs = forward_inputs(rng, (4, 5, 6))
    attributes = {"training_mode": 1, "momentum": momentum, "correction": correction}
    got = run(FORWARD, inputs, TRAINED[:3], **attributes)
    x, _, _, mean, var = inputs.values()
    bncore.update_running_stats(
        mean, var, bncore.moments(x), momentum=1.0 - momentum, correction=correction
    )
    assert_bits(got[1:], [mean, var])


@pytest.mark.parametrize("name", TRAINED)
def test_outputs_may_be_left_out(rng, name):
    inputs = forward_inputs(rng, (4, 5, 6))
    every = dict(zip(TRAINED, run(FORWARD, inputs, TRAINED, training_mode=1), strict=True))
    outputs = ["Y", *(other if other == name else "" for other in TRAINED[1:])]
    while outputs[-1] == "":
        outputs.pop()
    got = run(FORWARD, inputs, outputs, training_mode=1)
    assert_bits(got, [every[name] for name in dict.fromkeys(["Y", name])])


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 5)], ids=str)
def test_an_empty_batch_leaves_running_statistics(shape):
    inputs = forward_inputs(np.random.default_rng(0), shape)
    y, mean, var, *saved = run(FORWARD, inputs, TRAINED, training_mode=1)
    assert y.shape == shape
    assert_bits([mean, var], [inputs["input_mean"], inputs["input_var"]])
    assert_bits(saved, [np.zeros(3), np.zeros(3)])


@pytest.mark.parametrize("training", [0, 1])
def test_one_dimension_is_one_channel(rng, training):
    """As ONNX says of it; bncore's functions want the channel's axis."""
    inputs = forward_inputs(rng, (40, 1))
    expected = run(FORWARD, inputs, ["Y"], training_mode=training)[0]
    got = run(FORWARD, inputs | {"X": inputs["X"][:, 0]}, ["Y"], training_mode=training)
    assert_bits(got, [expected[:, 0]])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_and_concurrent_runs_change_no_bit(rng, layout):
    shape, axis = ((8, 16, 64, 64), 1) if layout == "NCHW" else ((8, 64, 64, 16), -1)
    inputs = forward_inputs(rng, shape, axis)
    made = sessions.model(FORWARD, inputs, TRAINED, training_mode=1, axis=axis)
    expected = sessions.session(made, 1).run(None, inputs)
    for threads in (2, 3):
        one = sessions.session(made, threads)
        with ThreadPoolExecutor(3) as pool:
            for got in pool.map(lambda _, s=one: s.run(None, inputs), range(6)):
                assert_bits(got, expected)


THREADS = """
import os
import numpy as np
import onnxruntime_sessions as sessions

inputs = sessions.forward_inputs(np.random.default_rng(0), (8, 16, 64, 64))
one = sessions.session(sessions.model("BatchNormalization", inputs, ["Y"]), 3)
before = len(os.listdir("/proc/self/task"))
one.run(None, inputs)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux shows them")
def test_no_threads_beside_those_of_the_session():
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_node_tests_after_convert(case):
    """Those of the standard, in a session: with its results, and the bits of bncore's functions."""
    made = onnx.ModelProto()
    made.CopyFrom(case.model)
    made.ir_version = 8
    assert bncore.onnxruntime.convert(made, inference=True) is made
    assert made.graph.node[0].domain == bncore.onnxruntime.DOMAIN
    onnx.checker.check_model(made)
    ((inputs, expected),) = case.data_sets
    names = [given.name for given in made.graph.input]
    results = sessions.session(made).run(None, dict(zip(names, inputs, strict=True)))
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=tolerances.ONNX_RTOL, atol=tolerances.ONNX_ATOL)


def test_a_training_step_in_one_graph(rng):
    """Forward, loss and backward as nodes of one model; backward reads what forward saved."""
    inputs = forward_inputs(rng, (4, 5, 6, 7))
    made = sessions.model(FORWARD, inputs, TRAINED, training_mode=1, activation="relu")
    sources = ["Y", "X", "scale", "saved_mean", "saved_var", "B"]  # the loss is sum(Y**2) / 2
    attributes = {"domain": bncore.onnxruntime.DOMAIN, "activation": "relu"}
    made.graph.node.append(onnx.helper.make_node(BACKWARD, sources, GRADIENTS, **attributes))
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in GRADIENTS)
    got = sessions.session(made).run(None, inputs)
    x, scale, bias, *_ = inputs.values()
    one = {"eps": EPS, "activation": "relu"}
    y, moments = bncore.batch_norm_train(x, scale, bias, **one)
    assert_bits(got, bncore.batch_norm_train_backward(y, x, moments, scale, bias=bias, **one))


@pytest.mark.parametrize("module", ["convert", "library", "report"])
def test_the_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"bncore.onnxruntime.{module}"))
    assert found.attempted and not found.failed


def test_the_example_of_the_page_runs(capsys):
    text = (TESTS.parent / "docs" / "onnxruntime.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    mean, std = map(float, capsys.readouterr().out.split())
    assert abs(mean) < 1e-6
    assert abs(std - 1.0) < 1e-5
    moments = bncore.moments(names["x"])
    np.testing.assert_allclose(names["mean"], 0.1 * moments.mean, rtol=1e-6)
    np.testing.assert_allclose(names["var"], 0.9 + 0.1 * moments.var(), rtol=1e-6)
