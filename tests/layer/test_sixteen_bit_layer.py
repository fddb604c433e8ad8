"""The layer with 16-bit data, and with 16-bit parameters."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pytest

import arrays
import bncore
from arrays import SIXTEEN_BITS
from bncore.arguments.arrays import cast
from bncore.layer.formats import from_tensor_proto

SHAPE = (6, 3, 5)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_parameters_are_float32_unless_asked_for(backend, rng, dtype):
    x, dy = rng.standard_normal((2, *SHAPE)).astype(dtype)
    layer = bncore.BatchNorm(activation="relu")
    y = layer(x)
    assert y.dtype == layer.backward(dy).dtype == dtype
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert layer.dweight.dtype == layer.dbias.dtype == np.float32
    assert layer.running_mean.dtype == layer.running_var.dtype == np.float64
    expected, moments = bncore.batch_norm_train(x, activation="relu")
    assert arrays.same_bits(y, expected)
    assert np.array_equal(layer.running_mean, 0.1 * moments.mean)
    assert layer.eval()(x).dtype == dtype


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("affine", [True, "weight", "bias"])
def test_parameters_of_16_bits(backend, rng, dtype, affine):
    """Each gradient has its parameter's dtype, and is rounded once from the sum in float64."""
    x, dy = rng.standard_normal((2, *SHAPE)).astype(dtype)
    layer = bncore.BatchNorm(3, dtype=dtype, affine=affine)
    exact = bncore.BatchNorm(3, dtype=np.float64, affine=affine)
    for one in (layer, exact):
        assert one(x).dtype == dtype
        assert one.backward(dy).dtype == dtype
    for got, wanted in zip(layer.gradients(), exact.gradients(), strict=True):
        assert arrays.same_bits(got, cast(wanted, dtype))
    layer.freeze()(x)
    layer.backward(dy)
    assert {gradient.dtype for gradient in layer.gradients()} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("bias", [*SIXTEEN_BITS, np.float32])
def test_a_bias_of_another_dtype_than_the_weight(backend, rng, dtype, bias):
    x, dy = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    layer = bncore.BatchNorm(3, dtype=dtype)
    layer.bias = np.zeros(3, bias)
    layer(x)
    layer.backward(dy)
    assert layer.dweight.dtype == dtype and layer.dbias.dtype == bias


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_states_are_kept_copied_and_loaded(rng, dtype):
    layer = bncore.BatchNorm(3, dtype=dtype)
    layer.weight[:] = [1.5, -2.0, 0.25]
    state = layer.state_dict()
    assert state["weight"].dtype == dtype and state["running_var"].dtype == np.float64
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        bncore.BatchNorm.from_torch(state),
    ):
        assert other.dtype == dtype
        assert arrays.same_bits(other.weight, layer.weight)
    fresh = bncore.BatchNorm()
    fresh.load_state_dict(state)
    assert fresh.weight.dtype == dtype
    # Values of float64 are rounded once: this one lies just above a half between two numbers.
    half = 2.0**-11 if dtype == np.float16 else 2.0**-8
    layer.load_state_dict(state | {"weight": np.full(3, 1.0 + half + 2.0**-40)})
    assert layer.weight.astype(np.float64).tolist() == [1.0 + 2 * half] * 3
    layer.reset()
    assert layer.weight.tolist() == [1.0] * 3
    assert f"dtype={np.dtype(dtype)}" in repr(layer)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_onnx_gets_statistics_in_float32(dtype):
    layer = bncore.BatchNorm(2, dtype=dtype)
    layer.running_var = np.full(2, 1e6)  # beyond float16
    _, initializers = layer.to_onnx()
    assert initializers["scale"].dtype == initializers["B"].dtype == dtype
    assert initializers["input_var"].dtype == np.float32
    assert initializers["input_var"].tolist() == [1e6, 1e6]


@pytest.mark.parametrize("raw", [True, False])
def test_onnx_tensors_of_bfloat16_are_read(raw):
    helper = pytest.importorskip("onnx.helper", reason="onnx is not installed")
    bfloat16 = pytest.importorskip("ml_dtypes", reason="for bfloat16").bfloat16
    values = np.array([1.5, -2.0, 3e38], bfloat16)
    content = values.tobytes() if raw else values.astype(np.float32)
    tensor = helper.make_tensor("t", 16, [3], content, raw=raw)
    assert arrays.same_bits(from_tensor_proto(tensor), values)


def test_the_name_bfloat16_needs_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"^bfloat16: expected the package ml_dtypes, .* got none"):
        bncore.BatchNorm(2, dtype="bfloat16")


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_recalibrated_statistics_are_those_of_the_data(backend, rng, dtype):
    x = (rng.standard_normal((20, 3)) + 2.0).astype(dtype)
    layer = bncore.BatchNorm(3, correction=0)
    bncore.recalibrate(layer, [x[:8], x[8:]])
    exact = bncore.moments(x, dtype=np.float64)
    np.testing.assert_allclose(layer.running_mean, exact.mean, rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, exact.var(), rtol=2.0**-22)
