"""`BatchNorm`: the functions' results to the bit, the modes, and errors that change nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import arrays
import bncore
from bncore import BatchNorm
from bncore.arguments.arrays import cast
from layers import ACTIVATIONS, C, a_layer, assert_unchanged, data, snapshot


def test_everything_is_unchanged_is_a_test(rng):
    layer = a_layer(rng)
    before = snapshot(layer)
    layer.running_var[1] += 1.0
    with pytest.raises(AssertionError):
        assert_unchanged(layer, before)


# -------------------------------------------------------------------------- the functions' results


@pytest.mark.parametrize("affine", [True, False, "weight", "bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", arrays.FLOATS)
def test_training_is_the_functions_to_the_bit(backend, rng, dtype, activation, affine):
    x, dy, residual = data(rng, dtype)
    layer = a_layer(rng, activation=activation, negative_slope=0.2, affine=affine, eps=1e-3)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    fused = {
        "eps": 1e-3, "activation": activation, "negative_slope": 0.2, "residual": residual,
    }  # fmt: skip
    wanted_y, moments = bncore.batch_norm_train(x, layer.weight, layer.bias, **fused)
    wanted_dr = np.empty_like(x)
    weight = np.ones(C) if layer.weight is None else layer.weight  # so the sums are in float64
    wanted = bncore.batch_norm_train_backward(
        dy, x, moments, weight, bias=layer.bias, dresidual=wanted_dr, **fused
    )
    bncore.update_running_stats(mean, var, moments)

    dr = np.empty_like(x)
    np.testing.assert_array_equal(layer(x, residual), wanted_y)
    np.testing.assert_array_equal(layer.backward(dy, dresidual=dr), wanted[0])
    np.testing.assert_array_equal(dr, wanted_dr)
    for name, gradient in zip(("weight", "bias"), wanted[1:], strict=True):
        if affine in (True, name):
            found = getattr(layer, f"d{name}")
            assert found.dtype == np.float64
            np.testing.assert_array_equal(found, gradient)
        else:
            assert getattr(layer, name) is None and getattr(layer, f"d{name}") is None
    assert layer.moments == moments
    np.testing.assert_array_equal(layer.running_mean, mean)
    np.testing.assert_array_equal(layer.running_var, var)
    assert layer.num_batches_tracked == 8


PAIRS = [(None, "f8"), (None, "f4"), (None, "f2"), ("f2", "f4"), ("f4", "f8"), ("f8", "f2")]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("weight", "bias"), [*PAIRS, ("f4", ">f8"), (">f8", "f8"), ("f8", None)])
@pytest.mark.parametrize("dtype", arrays.FLOATS)
def test_each_gradient_is_its_sum_rounded_once(backend, rng, dtype, weight, bias, frozen):
    """A gradient is rounded to its own parameter's dtype, whatever the other dtypes are."""
    x, dy, residual = data(rng, dtype)
    dy *= 9000.0  # the sums are beyond float16
    affine = True if weight and bias else "weight" if weight else "bias"
    layer = a_layer(rng, affine=affine, activation="relu").freeze(frozen)
    for name, kind in [("weight", weight), ("bias", bias)]:
        if kind is not None:
            setattr(layer, name, getattr(layer, name).astype(kind))
    layer(x, residual)
    fused = {"activation": "relu", "residual": residual}
    factor = np.ones(C) if weight is None else layer.weight.astype(np.float64)
    fused["bias"] = layer.bias
    if frozen:
        given = layer.running_mean, layer.running_var, factor
        dx, *sums = bncore.batch_norm_infer_backward(dy, x, *given, **fused)
    else:
        dx, *sums = bncore.batch_norm_train_backward(dy, x, layer.moments, factor, **fused)
    np.testing.assert_array_equal(layer.backward(dy), dx)
    for name, kind, total in zip(("weight", "bias"), (weight, bias), sums, strict=True):
        if kind is not None:
            gradient = getattr(layer, f"d{name}")
            assert gradient.dtype == np.dtype(kind).newbyteorder("=")
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(gradient, total.astype(gradient.dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_frozen_and_evaluation_are_the_functions_to_the_bit(rng, activation):
    x, dy, residual = data(rng)
    layer = a_layer(rng, activation=activation)
    before = snapshot(layer)
    given = layer.running_mean.copy(), layer.running_var.copy()
    fused = {"activation": activation, "residual": residual}
    y = bncore.batch_norm_infer(x, *given, layer.weight, layer.bias, **fused)
    wanted = bncore.batch_norm_infer_backward(dy, x, *given, layer.weight, bias=layer.bias, **fused)
    np.testing.assert_array_equal(layer.eval()(x, residual), y)
    np.testing.assert_array_equal(layer.train().freeze()(x, residual), y)
    assert_unchanged(layer, before | {"_frozen": True})
    layer.freeze(False)(x)
    assert (layer.running_mean != given[0]).all()
    layer.running_mean, layer.running_var = given
    layer.freeze()(x, residual)
    layer.running_mean[:] = np.nan  # what backward needs is what forward had
    np.testing.assert_array_equal(layer.backward(dy), wanted[0])
    np.testing.assert_array_equal(layer.dweight, wanted[1])
    np.testing.assert_array_equal(layer.dbias, wanted[2])


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", ">f4", "bfloat16"])
def test_an_assigned_parameter_is_the_array_itself_in_its_own_dtype(backend, rng, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
    x, dy, _ = data(rng)
    given = np.arange(1, x.shape[1] + 1).astype(dtype)
    layer = a_layer(rng)
    layer.weight = given
    assert layer.weight is given
    y, moments = bncore.batch_norm_train(x, given.astype(np.float64), layer.bias)
    np.testing.assert_array_equal(layer(x), y)
    layer.backward(dy)
    assert layer.dweight.dtype == given.dtype.newbyteorder("=")
    want = bncore.batch_norm_train_backward(dy, x, moments, np.ones(x.shape[1]))[1]
    np.testing.assert_array_equal(layer.dweight, cast(want, given.dtype))
    assert layer.state_dict()["weight"].dtype == given.dtype


def test_a_wrong_parameter_is_refused_when_it_is_assigned(rng):
    layer = a_layer(rng)
    before = layer.weight
    for wrong, kind, text in (
        (np.ones(before.size + 1), ValueError, "weight: expected shape"),
        (np.ones((before.size, 1)), ValueError, "weight: expected 1 dimension"),
        (np.ones(before.size, int), TypeError, "weight: expected a real floating dtype, got int64"),
        (np.broadcast_to(1.0, before.shape), ValueError, "weight: expected a writable array"),
        (1.0, ValueError, "weight: expected 1 dimension"),
    ):
        with pytest.raises(kind, match=f"^{text}"):
            layer.weight = wrong
        assert layer.weight is before


def test_messages_of_python_name_the_class_of_the_user(rng):
    layer = a_layer(rng)
    x = data(rng)[0]
    for call, name in (
        (lambda: layer(x, None, x), "__call__"),
        (lambda: layer.forward(x, wrong=1), "forward"),
        (lambda: layer.backward(), "backward"),
        (lambda: BatchNorm(3, wrong=1), "__init__"),
        (lambda: layer.train(1, 2), "train"),
        (lambda: layer.load_state_dict(), "load_state_dict"),
    ):
        with pytest.raises(TypeError, match=rf"^BatchNorm\.{name}\(\) "):
            call()


def test_modes_and_their_names(rng):
    layer = a_layer(rng)
    assert (layer.training, layer.frozen) == (True, False)
    assert layer.eval() is layer and not layer.training
    assert layer.freeze() is layer and layer.frozen
    assert layer.train().training and layer.frozen  # train does not thaw
    assert not layer.freeze(False).frozen
    with pytest.raises(TypeError, match="mode: expected a bool"):
        layer.train(1)


def test_without_running_statistics_the_batch_counts_in_evaluation_too(rng):
    x, dy, _ = data(rng)
    layer = a_layer(rng, track_running_stats=False)
    assert layer.running_mean is None and layer.running_var is None
    y, moments = bncore.batch_norm_train(x, layer.weight, layer.bias)
    np.testing.assert_array_equal(layer.eval()(x), y)
    assert layer.moments is None
    with pytest.raises(RuntimeError, match="evaluation"):
        layer.backward(dy)
    np.testing.assert_array_equal(layer.train()(x), y)
    assert layer.moments == moments and layer.num_batches_tracked == 0
    with pytest.raises(ValueError, match="freeze: expected a layer with running statistics"):
        layer.freeze()
    with pytest.raises(ValueError, match="on_single: "):
        BatchNorm(track_running_stats=False, on_single="running")
    with pytest.raises(ValueError, match="on_single: expected 'raise' without running statistics"):
        layer.on_single = "running"
    assert layer.on_single == "raise"


@pytest.mark.parametrize("axis", [1, -1, 0, 2])
def test_channels_and_dtype_come_from_the_first_x(rng, axis):
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    layer = BatchNorm(axis=axis)
    assert layer.channels is None
    with pytest.raises(RuntimeError, match="weight: expected a layer that knows its channels"):
        layer.parameters()
    with pytest.raises(RuntimeError, match="running_mean: expected a layer that knows its chan"):
        layer.running_mean.sum()
    layer(x)
    assert layer.channels == x.shape[axis]
    assert [a.dtype for a in layer.parameters()] == [np.float32] * 2
    assert layer.running_var.dtype == np.float64
    layer.backward(x)
    assert [g.dtype for g in layer.gradients()] == [np.float32] * 2
    assert BatchNorm(5).running_mean.shape == (5,)


def test_outputs_go_where_they_are_wanted(rng):
    x, dy, residual = data(rng)
    layer = a_layer(rng, activation="relu")
    y, dx, dr = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    assert layer(x, residual, out=y) is y
    assert layer.backward(dy, out=dx, dresidual=dr) is dx
    other = copy.deepcopy(layer)
    np.testing.assert_array_equal(other(x, residual), y)
    np.testing.assert_array_equal(other.backward(dy, dresidual=dr), dx)
    inplace = x.copy()
    assert layer.eval()(inplace, residual, out=inplace) is inplace


# ----------------------------------------------------------------------------------------- errors


def wrong(name: str, value: object, error: type, message: str, **settings: Any) -> Any:
    return pytest.param({name: value, **settings}, error, message, id=f"{name}-{value!r}")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        wrong("channels", -1, ValueError, "channels: expected an integer >= 0, got -1"),
        wrong("channels", 3.0, TypeError, "channels: expected an integer >= 0, got 3.0"),
        wrong("axis", 1.0, TypeError, "axis: expected an integer, got 1.0"),
        wrong("eps", -1.0, ValueError, "eps: expected a finite number >= 0, got -1.0"),
        wrong("momentum", 1.5, ValueError, "momentum: expected a finite number from 0 to 1"),
        wrong("affine", "gamma", ValueError, "affine: expected True, False, 'weight' or 'bias'"),
        wrong("affine", None, TypeError, "affine: expected"),
        wrong("dtype", int, TypeError, "dtype: expected a real floating dtype, got int64"),
        wrong("dtype", "q7", TypeError, "dtype: expected a dtype, got 'q7'"),
        wrong("correction", 2, ValueError, "correction: expected a finite number from 0 to 1"),
        wrong("debias", 1, TypeError, "debias: expected a bool, got 1"),
        wrong("track_running_stats", None, TypeError, "track_running_stats: expected a bool"),
        wrong("activation", "gelu", ValueError, "activation: expected None, 'relu'"),
        wrong("negative_slope", -0.1, ValueError, "negative_slope: expected a finite number >= 0"),
        wrong("on_nonfinite", "ignore", ValueError, "on_nonfinite: expected 'propagate' or 'skip'"),
        wrong("on_nonfinite", None, TypeError, "on_nonfinite: expected 'propagate' or 'skip'"),
        wrong("on_single", "skip", ValueError, "on_single: expected 'raise' or 'running'"),
        wrong("n_threads", 0, ValueError, "n_threads: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_a_wrong_setting(settings, error, message):
    with pytest.raises(error, match=message):
        BatchNorm(**settings)
    (name,) = settings
    if name not in ("channels", "affine", "dtype", "track_running_stats"):
        layer = BatchNorm(C)
        before = snapshot(layer)
        with pytest.raises(error, match=message):  # assigned later, too
            setattr(layer, name, settings[name])
        assert_unchanged(layer, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((4, 2)), ValueError, r"x: expected 3 channels along axis 1, got shape \(4, 2\)"),
        (np.ones(3), ValueError, "x: expected at least 2 dimensions, got 1"),
        (
            np.ones((4, C), complex),
            TypeError,
            "x: expected float16, bfloat16, float32.* got complex128",
        ),
        (np.ma.ones((4, C)), TypeError, "x: expected an array without a mask"),
        (None, TypeError, "x: expected an array, got None"),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_wrong_x_changes_nothing(rng, affine, x, error, message, training):
    layer = a_layer(rng, affine=affine).train(training)
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer(x)
    assert_unchanged(layer, before)


def test_a_first_call_that_fails_finds_nothing(rng):
    x, _, residual = data(rng)
    layer = BatchNorm()
    before = snapshot(layer)
    with pytest.raises(ValueError, match="residual: expected shape"):
        layer(x, residual[:1])
    assert_unchanged(layer, before)
    layer(x[:, :2])
    assert layer.channels == 2


def test_array_likes_are_taken(rng):
    x, dy, _ = data(rng)
    layer, same = a_layer(rng), a_layer(rng)
    same.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(x.tolist()), same(x))
    np.testing.assert_array_equal(layer.backward(dy.tolist()), same.backward(dy))


def test_methods_can_be_pickled():
    for method in (bncore.BatchNorm.forward, bncore.BatchNorm.backward, bncore.BatchNorm.__call__):
        assert pickle.loads(pickle.dumps(method)) is method
