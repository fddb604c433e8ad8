"""Masks and weights in the layer: every mode, what it remembers, and calls that are refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import arrays
import bncore
import weight_cases
from arrays import same_bits

SHAPE = (6, 3, 10)
KINDS = [*weight_cases.KINDS, "omitted_nan"]


def made(rng, kind):
    x, dy = rng.standard_normal((2, *SHAPE)) + 1.0
    if kind != "omitted_nan":
        return x, dy, weight_cases.KINDS[kind](rng, SHAPE).given()
    x, counts = weight_cases.omitting(rng, x)
    return x, np.where(np.isnan(x), 0.0, dy), counts.given()


def layer_of(rng, **settings) -> bncore.BatchNorm:
    layer = bncore.BatchNorm(3, dtype=np.float64, **settings)
    layer.weight[:], layer.bias[:] = arrays.parameters(rng, 3)
    return layer


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_training_is_the_functions(backend, rng, kind, fill, activation):
    x, dy, given = made(rng, kind)
    layer = layer_of(rng, activation=activation)
    residual = rng.standard_normal(SHAPE)
    given["fill"] = fill
    y = layer(x, residual, **given)
    fused = {"activation": activation, "residual": residual}
    want, m = bncore.batch_norm_train(x, layer.weight, layer.bias, **fused, **given)
    assert same_bits(y, want) and layer.moments == m
    mean, var = np.zeros(3), np.ones(3)
    bncore.update_running_stats(mean, var, m)
    assert same_bits(layer.running_mean, mean) and same_bits(layer.running_var, var)
    dx = layer.backward(dy)
    options = {"bias": layer.bias, **fused, **given}
    gradients = bncore.batch_norm_train_backward(dy, x, m, layer.weight, **options)
    for got, one in zip((dx, layer.dweight, layer.dbias), gradients, strict=True):
        assert same_bits(got, one)


@pytest.mark.parametrize("settings", [{"on_nonfinite": "raise"}, {}], ids=str)
def test_an_output_gets_the_same_bits(backend, rng, settings):
    x, dy, given = made(rng, "full_mask")
    plain, other = layer_of(rng, **settings), None
    other = copy.deepcopy(plain)
    want, out = plain(x, **given, fill=0.0), np.empty(SHAPE)
    assert other(x, out=out, **given, fill=0.0) is out and same_bits(out, want)
    assert same_bits(other.running_var, plain.running_var)
    assert same_bits(other.backward(dy), plain.backward(dy))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_freezing_fill_and_nothing_else(backend, rng, kind):
    x, dy, given = made(rng, kind)
    layer = layer_of(rng)
    layer.running_mean, layer.running_var = rng.standard_normal(3), rng.uniform(0.5, 2.0, 3)
    before = layer.state_dict()
    statistics = layer.running_mean, layer.running_var
    plain = bncore.batch_norm_infer(x, *statistics, layer.weight, layer.bias)
    filled = bncore.batch_norm_infer(x, *statistics, layer.weight, layer.bias, **given, fill=0.5)
    for mode in (layer.eval(), layer.train().freeze()):
        assert same_bits(mode(x, **given), plain)
        assert same_bits(mode(x, **given, fill=0.5), filled)
    dx = layer.backward(dy)  # of the last call, with the fill
    options = {"bias": layer.bias, "fill": 0.5, **given}
    want = bncore.batch_norm_infer_backward(dy, x, *statistics, layer.weight, **options)
    for got, one in zip((dx, layer.dweight, layer.dbias), want, strict=True):
        assert same_bits(got, one)
    for name, value in before.items():
        assert same_bits(layer.state_dict()[name], value)


def test_without_running_statistics_evaluation_takes_the_batchs(backend, rng):
    x, _, given = made(rng, "shared_mask")
    layer = bncore.BatchNorm(3, track_running_stats=False).eval()
    assert same_bits(layer(x, **given, fill=1.0), bncore.batch_norm_train(x, **given, fill=1.0)[0])


def test_a_mask_belongs_to_one_call(backend, rng):
    x, dy, given = made(rng, "shared_mask")
    layer, plain = layer_of(rng), layer_of(rng)
    plain.weight[:], plain.bias[:] = layer.weight, layer.bias
    layer(x, **given)
    assert same_bits(layer(x), plain(x))
    assert same_bits(layer.backward(dy), plain.backward(dy))


def test_the_first_call_may_have_a_mask(backend, rng):
    x, _, given = made(rng, "full_weights")
    layer = bncore.BatchNorm()
    y = layer(x, **given)
    assert same_bits(y, bncore.batch_norm_train(x, np.ones(3), np.zeros(3), **given)[0])
    again = pickle.loads(pickle.dumps(layer))
    assert same_bits(again(x, **given), y)


@pytest.mark.parametrize("with_out", [False, True])
def test_too_few_values_for_the_running_variance_change_nothing(backend, rng, with_out):
    """With correction=1, a running variance needs more than one value, or weights above 1."""
    x = rng.standard_normal(SHAPE)
    layer = layer_of(rng)
    before = layer.state_dict()
    out = np.full(SHAPE, 7.0) if with_out else None
    where = np.zeros((6, 1, 10), bool)
    where[2, 0, 3] = True
    for given in ({"where": where}, {"weights": np.full((6, 1, 10), 0.01)}):
        text = r"^x: expected a sum of weights per channel > correction = 1, got .* for channel 0$"
        with pytest.raises(ValueError, match=text):
            layer(x, out=out, **given)
    assert out is None or (out == 7.0).all()
    for name, value in before.items():
        assert same_bits(layer.state_dict()[name], value)
    with pytest.raises(RuntimeError, match=r"^backward: expected a training forward"):
        layer.backward(x)
    layer(x, where=where, update_stats=False)
    layer.correction = 0
    layer(x, out=out, where=where)
    assert layer.num_batches_tracked == 1


SINGLE = [(2, 0, 3), (2, 1, 3), (2, 2, 3)]  # one value of each channel


@pytest.mark.parametrize("kind", ["mask", "of_one_channel", "weights", "omitted_nan", "alone"])
def test_one_value_that_counts_is_normalized_by_the_running_statistics(backend, rng, kind):
    """If on_single says so; the whole batch is, and the running statistics stay."""
    x, dy = rng.standard_normal((2, *SHAPE))
    where = np.zeros(SHAPE, bool)
    where[tuple(zip(*SINGLE, strict=True))] = True
    given = {"where": where, "fill": 0.25}
    if kind == "of_one_channel":
        where[:, 1:] = True
    elif kind == "weights":
        given = {"weights": np.where(where, 3.0, 0.0)}
    elif kind == "omitted_nan":
        x[~where] = np.nan
        given = {"nan_policy": "omit", "fill": 0.5}
    elif kind == "alone":
        x, dy, given = x[:1, :, :1], dy[:1, :, :1], {"fill": 0.5}
    layer, frozen = (layer_of(np.random.default_rng(5), on_single="running") for _ in range(2))
    for one in (layer, frozen):
        one(rng.standard_normal(SHAPE)[::-1], where=np.ones(SHAPE, bool))
        one.load_state_dict(layer.state_dict())
    before, moments = layer.state_dict(), layer.moments
    frozen.freeze()
    assert same_bits(layer(x, **given), frozen(x, **given))
    assert same_bits(layer.backward(dy), frozen.backward(dy))
    assert same_bits(layer.dweight, frozen.dweight) and layer.moments is moments
    for name, value in before.items():
        assert same_bits(layer.state_dict()[name], value)


def test_two_values_that_count_are_a_batch(backend, rng):
    x, where = rng.standard_normal(SHAPE), np.zeros(SHAPE, bool)
    where[:2, :, 0] = True
    layer, plain = (layer_of(np.random.default_rng(5), on_single=s) for s in ("running", "raise"))
    assert same_bits(layer(x, where=where), plain(x, where=where))
    assert same_bits(layer.running_var, plain.running_var) and layer.num_batches_tracked == 1
    where[1, 1] = False  # nothing counts in a channel, or one value
    for rest in (False, True):
        where[0, 1, 0] = rest
        layer(x, where=where)
        assert layer.num_batches_tracked == 2


def test_a_mask_in_the_place_of_the_residual(backend, rng):
    x, layer = rng.standard_normal(SHAPE), layer_of(rng)
    for mask in (np.ones(SHAPE, bool), [True]):
        text = r"^residual: expected .*, got bool \(pass a mask by its name, where=mask\)$"
        with pytest.raises(TypeError, match=text):
            layer(x, mask)


def test_nonfinite_values_that_do_not_count_are_no_nonfinite_batch(backend, rng):
    x = rng.standard_normal(SHAPE)
    x[0, 0, 0] = np.inf
    where = np.ones((6, 1, 10), bool)
    where[0, 0, 0] = False
    for policy in ("raise", "skip"):
        layer = layer_of(rng, on_nonfinite=policy)
        layer(x, where=where)
        assert layer.num_batches_tracked == 1 and np.isfinite(layer.running_var).all()


def test_a_channel_without_a_value_keeps_its_statistics(backend, rng):
    x = rng.standard_normal(SHAPE)
    where = np.ones(SHAPE, bool)
    where[:, 1] = False
    layer = layer_of(rng)
    y = layer(x, where=where, fill=0.0)
    assert (y[:, 1] == 0.0).all()
    assert layer.running_mean[1] == 0.0 and layer.running_var[1] == 1.0
    assert (layer.running_mean[[0, 2]] != 0.0).all()
