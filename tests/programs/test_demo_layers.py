"""The pieces of a network: what they compute, and their gradients against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import correlate2d

import bncore
from bncore.programs.demo import layers as pieces
from differences import central_difference

F64 = {"dtype": np.float64}
IMAGE = (3, 4, 6, 2)
MADE = {
    "linear": ((5, 4), lambda rng: pieces.Linear(4, 3, rng, **F64)),
    "conv 1x1": (IMAGE, lambda rng: pieces.Conv2d(2, 3, 1, rng, **F64)),
    "conv 3x3": (IMAGE, lambda rng: pieces.Conv2d(2, 3, 3, rng, **F64)),
    "conv 5x5": (IMAGE, lambda rng: pieces.Conv2d(2, 2, 5, rng, **F64)),
    "pool": (IMAGE, lambda rng: pieces.MaxPool2d()),
    "relu": (IMAGE, lambda rng: pieces.Relu()),
    "flatten": (IMAGE, lambda rng: pieces.Flatten()),
    "network": (
        IMAGE,
        lambda rng: pieces.Sequential(
            pieces.Conv2d(2, 3, 3, rng, **F64),
            bncore.BatchNorm(3, axis=-1, activation="relu"),
            pieces.MaxPool2d(),
            pieces.Flatten(),
            pieces.Linear(18, 4, rng, **F64),
            pieces.Relu(),
        ),
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_gradients(name, rng):
    shape, make = MADE[name]
    layer = make(rng)
    x = rng.normal(size=shape)
    dy = rng.normal(size=layer.forward(x).shape)

    def loss() -> float:
        return float((dy * layer.forward(x)).sum())

    loss()
    dx = layer.backward(dy.copy())
    assert len(layer.parameters()) == len(layer.gradients())
    for value, gradient in [
        (x, dx),
        *zip(layer.parameters(), [g.copy() for g in layer.gradients()], strict=True),
    ]:
        assert gradient.shape == value.shape
        for flat in rng.choice(value.size, min(value.size, 25), replace=False):
            index = np.unravel_index(flat, value.shape)
            slope = central_difference(loss, value, index)
            assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_is_scipys(size, rng):
    layer = pieces.Conv2d(2, 3, size, rng, **F64)
    x = rng.normal(size=IMAGE)
    y = layer.forward(x)
    filters = layer.weight.reshape(size, size, 2, 3)
    for image in range(IMAGE[0]):
        for output in range(3):
            wanted = sum(
                correlate2d(x[image, :, :, c], filters[:, :, c, output], mode="same")
                for c in range(2)
            )
            np.testing.assert_allclose(y[image, :, :, output], wanted, rtol=1e-12, atol=1e-12)


def test_pooling_takes_the_largest_and_gives_ties_to_the_first():
    layer = pieces.MaxPool2d()
    x = np.array([[1.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(layer.forward(x).ravel(), [3.0, 0.0])
    dx = layer.backward(np.array([5.0, 7.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(dx.reshape(2, 4), [[0, 5, 7, 0], [0, 0, 0, 0]])


def test_what_does_not_fit_is_refused(rng):
    with pytest.raises(ValueError, match=r"size: expected an odd number, got 2"):
        pieces.Conv2d(1, 1, 2, rng)
    with pytest.raises(ValueError, match=r"x: expected an even height and width, got .*\(1, 3, 4"):
        pieces.MaxPool2d().forward(np.zeros((1, 3, 4, 1)))


def test_initial_weights_have_the_scale_of_hes_rule(rng):
    layer = pieces.Conv2d(16, 64, 3, rng, scale=3.0)
    assert layer.weight.std() == pytest.approx(3 * np.sqrt(2 / 144), rel=0.02)
    assert layer.weight.dtype == np.float32


def test_softmax_loss_is_finite_for_large_scores_and_has_its_gradient(rng):
    label = rng.integers(0, 5, 7)
    score = rng.normal(size=(7, 5)) + 1e3
    loss, dscore = pieces.softmax_loss(score, label)
    assert np.isfinite(loss)
    for index in np.ndindex(score.shape):
        slope = central_difference(lambda: pieces.softmax_loss(score, label)[0], score, index)
        assert dscore[index] == pytest.approx(slope, abs=1e-6)


def test_a_step_goes_down(rng):
    net = pieces.Sequential(pieces.Linear(4, 3, rng, **F64))
    x, label = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    before, dscore = pieces.softmax_loss(net.forward(x), label)
    net.backward(dscore)
    weight = net.layers[0].weight.copy()
    pieces.step(net, 0.1)
    np.testing.assert_array_equal(net.layers[0].weight, weight - 0.1 * net.layers[0].dweight)
    assert pieces.softmax_loss(net.forward(x), label)[0] < before


def test_statistics_stay_where_they_are_asked_to(rng):
    net = pieces.Sequential(pieces.Relu(), bncore.BatchNorm(4))
    x = rng.normal(size=(9, 4))
    net.forward(x, update_stats=False)
    assert net.norms[0].num_batches_tracked == 0
    net.forward(x)
    assert net.norms[0].num_batches_tracked == 1
