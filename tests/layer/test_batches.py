"""How unusual batches change the running statistics: not finite, of single values, empty."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import bncore
from layers import ACTIVATIONS, SHAPE, C, a_layer, assert_unchanged, data, snapshot


def test_update_stats_false_leaves_them_alone(rng):
    x, dy, _ = data(rng)
    layer = a_layer(rng)
    before = snapshot(layer)
    y = layer(x, update_stats=False)
    assert_unchanged(layer, before | {"moments": bncore.moments(x)})
    layer.backward(dy)
    np.testing.assert_array_equal(layer(x), y)
    assert layer.num_batches_tracked == 8
    with pytest.raises(TypeError, match="update_stats: expected a bool"):
        layer(x, update_stats=None)


def poisoned(rng, bad: float) -> np.ndarray:
    x = rng.normal(size=SHAPE)
    x[0, 1, 0, 0] = bad
    return x


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])  # the last one's variance overflows
def test_a_bad_batch_propagates_by_channel_is_skipped_whole_or_raises(rng, bad):
    x = poisoned(rng, bad)
    layer = a_layer(rng)
    layer(x)
    assert np.isfinite(layer.running_var).tolist() == [True, False, True]

    layer = a_layer(rng, on_nonfinite="skip")
    before = snapshot(layer)
    y = layer(x)
    assert np.isfinite(y[:, 0]).all()
    assert_unchanged(layer, before | {"moments": layer.moments})
    layer(rng.normal(size=SHAPE))
    assert layer.num_batches_tracked == 8

    layer = a_layer(rng, on_nonfinite="raise")
    before = snapshot(layer)
    for out in (None, np.full(SHAPE, 5.0)):
        for update in (True, False):
            with pytest.raises(FloatingPointError, match=r"channel 1 \(1 of 3 channels\)"):
                layer(x, out=out, update_stats=update)
        assert out is None or (out == 5.0).all()
    assert_unchanged(layer, before)
    layer.eval()(x)  # no statistics of the batch: nothing to object to
    layer.train().freeze()(x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_raise_gives_the_same_bits_with_an_output(rng, activation):
    x, _, residual = data(rng, np.float32)
    layer = a_layer(rng, on_nonfinite="raise", activation=activation)
    y = layer(x, residual)
    moments = layer.moments
    np.testing.assert_array_equal(layer(x, residual, out=np.empty_like(x)), y)
    assert layer.moments == moments
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(x[:1, :, :1, :1], out=np.empty_like(x[:1, :, :1, :1]))


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_read_only_running_statistic_is_refused_before_y_is_written(rng, name):
    x, _, _ = data(rng)
    layer = a_layer(rng)
    getattr(layer, name).flags.writeable = False
    before = snapshot(layer)
    out = np.full(SHAPE, 5.0)
    for given in (None, out):
        with pytest.raises(ValueError, match=f"{name}: expected a writable array, got a read-only"):
            layer(x, out=given)
    assert (out == 5.0).all()
    assert_unchanged(layer, before)
    layer(x, out=out, update_stats=False)
    layer.freeze()(x, out=out)


def test_raise_copies_a_strided_x_once_at_a_time(rng):
    x = rng.normal(size=(512, C, 2, 256))[:, :, 0]
    layer = a_layer(rng, on_nonfinite="raise")
    out = np.empty_like(x)
    peaks = []
    for layer.on_nonfinite in ("propagate", "raise"):
        layer(x, out=out)  # kernels are compiled
        tracemalloc.start()
        layer(x, out=out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert x.nbytes <= peaks[0]
    assert peaks[1] < peaks[0] + 0.5 * x.nbytes


def test_one_value_per_channel(rng):
    x = rng.normal(size=(1, C))
    layer = a_layer(rng)
    before = snapshot(layer)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(x)
    assert_unchanged(layer, before)

    layer.on_single = "running"
    before = snapshot(layer)
    y = layer(x)
    given = layer.running_mean, layer.running_var
    np.testing.assert_array_equal(y, bncore.batch_norm_infer(x, *given, layer.weight, layer.bias))
    assert_unchanged(layer, before)
    dx, dweight, _ = bncore.batch_norm_infer_backward(x, x, *given, layer.weight)
    np.testing.assert_array_equal(layer.backward(x), dx)
    np.testing.assert_array_equal(layer.dweight, dweight)
    layer(np.concatenate([x, -x]))
    assert layer.num_batches_tracked == 8


@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_changes_no_statistics(rng, on_nonfinite, momentum):
    layer = a_layer(rng, on_nonfinite=on_nonfinite, momentum=momentum, debias=True)
    x, dy, _ = data(rng)
    empty = x[:0]
    for seen in (False, True):
        if seen:
            layer(x)
            layer.backward(dy)
        before = snapshot(layer)
        assert layer(empty).shape == empty.shape
        out = np.empty_like(empty)
        assert layer(empty, out=out) is out
        assert_unchanged(layer, before)
        assert layer.backward(empty).shape == empty.shape  # its own, as of any forward
        assert (layer.dweight == 0.0).all() and (layer.dbias == 0.0).all()
        assert layer.moments == (bncore.moments(x) if seen else None)
