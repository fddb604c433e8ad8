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
    """Of sizes that differ: a plain average over batches would be another number."""
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
    assert moments.count == 45 * 5


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


@pytest.mark.parametrize("sequential", [False, True])
def test_an_error_changes_nothing(batches, sequential):
    layers = BatchNorm(3, dtype="d").eval(), BatchNorm(3, dtype="d"), BatchNorm()
    layers[0].running_mean[...] = 5.0
    before = [layer.state_dict() for layer in layers[:2]]
    with pytest.raises(ValueError, match=r"^x: expected 3 channels"):
        bncore.recalibrate(Network(*layers), [*batches, np.ones((2, 4))], sequential=sequential)
    for layer, state in zip(layers, before, strict=False):
        after = layer.state_dict()
        assert all(arrays.same_bits(after[name], state[name]) for name in state)
        assert layer.moments is None
    assert [layer.training for layer in layers] == [False, True, True]
    assert layers[2].num_batches_tracked == 0


LAYER = BatchNorm(2)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    (([], []), {}, ValueError, r"^network: expected a BatchNorm that .*, got 0 without$"),
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
