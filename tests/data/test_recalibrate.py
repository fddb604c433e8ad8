"""Recalibrated statistics are those of all values that the layers saw."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
from bncore import BatchNorm
from tolerances import MERGED


class Scale:
    """A layer without statistics."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return np.maximum(x * self.factor, 0.0)


class Network:
    def __init__(self, *layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x


@pytest.fixture
def batches(rng):
    """Batches of different sizes, so that a plain average over batches would be wrong."""
    return [rng.standard_normal((n, 3, 5)) * n + n for n in (2, 3, 40)]


def assert_population(layer, x, correction=1):
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=(0, 2)), rtol=MERGED)
    np.testing.assert_allclose(layer.running_var, x.var(axis=(0, 2), ddof=correction), rtol=MERGED)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer(batches, correction, built, training):
    layer = BatchNorm(3 if built else None, correction=correction).train(training)
    (moments,) = bncore.recalibrate(layer, iter(batches))
    assert_population(layer, np.concatenate(batches), correction)
    assert layer.num_batches_tracked == 3 and layer.training is training
    assert (moments.count == 45 * 5).all()


def test_old_statistics_leave_no_trace(batches):
    layer = BatchNorm(3)
    layer.running_mean[...] = np.nan
    layer.running_var[...] = np.inf
    bncore.recalibrate(layer, batches)
    assert_population(layer, np.concatenate(batches))


def test_layers_in_a_row_see_batch_statistics(batches):
    first, second = BatchNorm(3), BatchNorm(3)
    bncore.recalibrate(Network(first, Scale(2.0), second), batches)
    assert_population(first, np.concatenate(batches))
    seen = [2.0 * np.maximum(bncore.batch_norm_train(x)[0], 0.0) for x in batches]
    assert_population(second, np.concatenate(seen))


def test_sequential_layers_see_what_evaluation_shows_them(batches):
    first, second = BatchNorm(3), BatchNorm(3)
    network = Network(first, Scale(2.0), second)
    bncore.recalibrate(network, batches, sequential=True)
    assert_population(first, np.concatenate(batches))
    first.eval()
    assert_population(second, np.concatenate([2.0 * np.maximum(first(x), 0.0) for x in batches]))
    again = BatchNorm(3), BatchNorm(3)
    bncore.recalibrate(Network(again[0], Scale(2.0), again[1]), batches)
    assert not np.allclose(again[1].running_var, second.running_var, rtol=1e-3)


def test_layers_are_found_wherever_they_are():
    a, b, c, d = (BatchNorm(2) for _ in range(4))
    loop: list = [a]
    loop.append(loop)
    network = [Network(b, "text", np.ones(3)), {"left": (c, None), "right": loop}, Network(d), b]
    assert [*bncore.batch_norms(network)] == [b, c, a, d]
    assert [*bncore.batch_norms(a)] == [a]
    assert [*bncore.batch_norms(3)] == []


class Fresh:
    """Something that makes a new object around each layer whenever it is asked."""

    def __init__(self, layers, attribute):
        self._layers, self._attribute = layers, attribute

    def __iter__(self):
        if self._attribute:
            raise AssertionError("layers are asked for before items")
        return ([layer] for layer in self._layers)

    def __getattr__(self, name):
        if name == "layers" and self._attribute:
            return ([layer] for layer in self._layers)
        raise AttributeError(name)


@pytest.mark.parametrize("wrap", [
    lambda layers: {str(i): layer for i, layer in enumerate(layers)}.items(),
    lambda layers: enumerate(layers),
    lambda layers: Fresh(layers, attribute=False),
    lambda layers: Fresh(layers, attribute=True),
    lambda layers: Fresh([Fresh([layer], attribute=True) for layer in layers], attribute=False),
], ids=["items", "enumerate", "iter", "layers", "nested"])  # fmt: skip
def test_layers_are_found_in_objects_made_on_the_fly(wrap):
    layers = [BatchNorm(2) for _ in range(8)]
    assert [*bncore.batch_norms(wrap(layers))] == layers


def test_what_is_left_alone(batches):
    used, frozen, unused = BatchNorm(3), BatchNorm(3).freeze(), BatchNorm(3)
    without = BatchNorm(3, track_running_stats=False)
    network = [frozen, without, used, unused]
    unused.moments = bncore.moments(batches[0])  # of an earlier call
    result = bncore.recalibrate(
        network, batches, forward=lambda x: without(frozen(x) * 0.0 + used(x))
    )
    assert [moments is None for moments in result] == [True, True, False, True]
    assert_population(used, np.concatenate(batches))
    for layer in (frozen, unused):
        assert layer.running_mean.tolist() == [0.0] * 3 and layer.num_batches_tracked == 0


def test_bad_batches_are_skipped_where_the_layer_skips_them(batches):
    layer = BatchNorm(3, on_nonfinite="skip")
    bncore.recalibrate(layer, [*batches, np.full((2, 3, 5), np.nan)])
    assert_population(layer, np.concatenate(batches))
    assert layer.num_batches_tracked == 3


@pytest.fixture
def pending(batches):
    """Layers before a backward: with batch statistics, with running statistics, or without."""
    layers = BatchNorm(3), BatchNorm(3).freeze(), BatchNorm(3, track_running_stats=False)
    Network(*layers).forward(batches[0])
    return layers


def held(layer):
    """Return the arrays that a layer keeps for backward."""
    return layer._saved


@pytest.mark.parametrize("sequential", [False, True])
def test_the_call_before_is_still_the_last_one(batches, pending, sequential):
    before = [(layer.moments, held(layer)) for layer in pending]
    dy = np.ones_like(batches[0])
    x, (mean, var) = [held(layer).x for layer in pending], held(pending[1]).statistics
    want = [
        bncore.batch_norm_train_backward(dy, x[0], pending[0].moments, np.ones(3))[0],
        bncore.batch_norm_infer_backward(dy, x[1], mean.copy(), var.copy(), np.ones(3))[0],
        bncore.batch_norm_train_backward(dy, x[2], pending[2].moments, np.ones(3))[0],
    ]
    bncore.recalibrate(Network(*pending), batches[1:], sequential=sequential)
    for layer, (moments, saved), dx in zip(pending, before, want, strict=True):
        assert layer.moments is moments and held(layer) is saved
        assert arrays.same_bits(layer.backward(dy), dx)


def test_no_batch_is_held(batches):
    layers = BatchNorm(3), BatchNorm(), BatchNorm(3, track_running_stats=False)
    bncore.recalibrate(Network(*layers), batches)
    for layer in layers:
        assert layer.moments is None
        with pytest.raises(RuntimeError, match=r"^backward: .* got none$"):
            layer.backward(batches[-1])


@pytest.mark.parametrize("sequential", [False, True])
def test_an_error_changes_nothing(batches, pending, sequential):
    layers = BatchNorm(3, dtype="d").eval(), *pending, BatchNorm(), BatchNorm(3)
    layers[0].running_mean[...] = 5.0
    before = [dict(vars(layer)) for layer in layers]
    arrays_before = [{k: v.copy() for k, v in each.items() if isinstance(v, np.ndarray)}
                     for each in before]  # fmt: skip
    with pytest.raises(ValueError, match=r"^x: expected 3 channels"):
        bncore.recalibrate(Network(*layers), [*batches, np.ones((2, 4))], sequential=sequential)
    for layer, state, values in zip(layers, before, arrays_before, strict=True):
        after = vars(layer)
        assert after.keys() == state.keys()
        assert all(after[name] is state[name] for name in state if name != "_num_batches_tracked")
        assert after["_num_batches_tracked"] == state["_num_batches_tracked"]
        assert all(arrays.same_bits(after[name], values[name]) for name in values)
    assert layers[4].channels is None and layers[4].dtype is None
    assert layers[0].moments is None and layers[1].moments is not None
    dx = layers[1].backward(np.ones_like(batches[0]))
    assert dx.shape == batches[0].shape


@pytest.mark.parametrize("sequential", [False, True])
def test_an_empty_batch_counts_nothing(batches, sequential):
    layer = BatchNorm(3)
    given = [np.empty((0, 3, 5)), *batches, np.empty((0, 3, 5))]
    (moments,) = bncore.recalibrate(layer, given, sequential=sequential)
    assert_population(layer, np.concatenate(batches))
    assert layer.num_batches_tracked == 3 and (moments.count == 45 * 5).all()


def test_empty_batches_alone_leave_the_statistics():
    layer = BatchNorm(3)
    layer.running_mean[...] = 5.0
    assert bncore.recalibrate(layer, [np.empty((0, 3, 5))] * 2) == [None]
    assert layer.running_mean.tolist() == [5.0] * 3 and layer.num_batches_tracked == 0
    assert layer.training and layer.moments is None


LAYER = BatchNorm(2)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    (([], []), {}, ValueError, r"^network: expected a BatchNorm .*, got none \(attributes .*\)$"),
    ((BatchNorm(2).freeze(), []), {}, ValueError, r"^network: .*, got 1 without$"),
    (([LAYER], []), {}, TypeError, r"^network: expected one with a callable forward, got list$"),
    ((LAYER, []), {"forward": 3}, TypeError, r"^forward: expected a callable, got 3$"),
    ((LAYER, 3), {}, TypeError, r"^batches: expected an iterable, got 3$"),
    ((LAYER, []), {}, ValueError, r"^batches: expected at least one batch, got none$"),
    ((LAYER, iter([])), {"sequential": True}, TypeError, r"^batches: .* for sequential=True, got "),
    ((LAYER, []), {"sequential": 1}, TypeError, r"^sequential: expected a bool, got 1$"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        bncore.recalibrate(*arguments, **options)
    assert LAYER.training and LAYER.num_batches_tracked == 0
