"""Running statistics of a layer in which channels have no value in some batches."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from bncore import BatchNorm, Moments
from bncore.layer import calls

X = np.ones((2, 3))
# In each batch, the mean of every channel; NaN where the channel has no value.
MEANS = np.array([
    [np.nan, 1.0, 2.0], [3.0, np.nan, 4.0], [5.0, 7.0, 6.0], [np.nan, 2.0, 8.0], [1.0, 1.0, 1.0],
])  # fmt: skip


@pytest.fixture(autouse=True)
def holes(monkeypatch):
    """Let the layer find these moments one after the other, whatever x is."""
    found = iter([Moments(np.where(np.isnan(m), 0.0, 3.0), m, 2.0 * np.abs(m)) for m in MEANS])
    monkeypatch.setattr(calls, "batch_norm_train", lambda x, *_, **__: (x, next(found)))


def batches_of(channel: int, stop: int = len(MEANS)) -> np.ndarray:
    means = MEANS[:stop, channel]
    return means[~np.isnan(means)]


def test_a_cumulative_average_is_over_the_batches_that_have_the_channel():
    layer = BatchNorm(3, momentum=None)
    for number in range(1, len(MEANS) + 1):
        layer(X)
        for c in range(3):
            seen = batches_of(c, number)
            want = seen.mean() if len(seen) else 0.0
            assert layer.running_mean[c] == pytest.approx(want, rel=1e-15)
            assert layer.running_var[c] == pytest.approx(np.abs(want) if len(seen) else 1.0)
    assert layer.num_batches_tracked == 5
    assert layer.state_dict()["num_batches_tracked"].tolist() == [3, 4, 5]


def test_a_debiased_average_contains_nothing_of_the_initial_values():
    layer = BatchNorm(3, momentum=0.25, debias=True)
    for _ in MEANS:
        layer(X)
    for c in range(3):
        seen = batches_of(c)
        weights = 0.75 ** np.arange(len(seen))[::-1]
        want = (weights * seen).sum() / weights.sum()
        assert layer.running_mean[c] == pytest.approx(want, rel=1e-15)


def test_a_moving_average_skips_what_the_channel_has_missed():
    layer = BatchNorm(3, momentum=0.25)
    for _ in MEANS:
        layer(X)
    for c in range(3):
        want = 0.0
        for mean in batches_of(c):
            want = 0.75 * want + 0.25 * mean
        assert layer.running_mean[c] == want


@pytest.mark.parametrize("way", ["state", "pickle", "copy"])
def test_the_number_of_batches_of_each_channel_is_kept(way):
    layer = BatchNorm(3, momentum=None)
    layer(X)
    layer(X)
    if way == "state":
        again = BatchNorm(momentum=None)
        again.load_state_dict(layer.state_dict())
    else:
        again = copy.deepcopy(layer) if way == "copy" else pickle.loads(pickle.dumps(layer))
    assert again.num_batches_tracked == 2
    assert again.state_dict()["num_batches_tracked"].tolist() == [1, 1, 2]
    assert layer.to_torch()[1]["num_batches_tracked"].shape == ()
    again(X)
    np.testing.assert_array_equal(again.running_mean, [4.0, 4.0, 4.0])


def test_equal_numbers_are_one_number_again():
    layer = BatchNorm(3, momentum=None)
    layer(X)
    layer.num_batches_tracked = 7
    assert layer.state_dict()["num_batches_tracked"].tolist() == 7
    layer.load_state_dict(layer.state_dict() | {"num_batches_tracked": np.array([2, 2, 2])})
    assert layer.state_dict()["num_batches_tracked"].tolist() == 2
    layer(X)
    layer.reset_running_stats()
    assert layer.state_dict()["num_batches_tracked"].tolist() == 0


@pytest.mark.parametrize("value, error, text", [
    (np.array([1, 2]), ValueError, r"expected an integer or shape \(3,\), got \(2,\)$"),
    (np.array([1, -2, 3]), ValueError, "expected integers >= 0, got -2$"),
    (np.array([1.0, 2.0, 3.0]), TypeError, "expected integers >= 0, got float64$"),
])  # fmt: skip
def test_a_wrong_number_of_batches_changes_nothing(value, error, text):
    layer = BatchNorm(3)
    layer(X)
    before = layer.state_dict()
    with pytest.raises(error, match=f"^num_batches_tracked: {text}"):
        layer.load_state_dict(layer.state_dict() | {"num_batches_tracked": value})
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


def test_a_channel_without_a_value_is_not_a_batch_with_nan():
    layer = BatchNorm(3, on_nonfinite="skip")
    layer(X)
    np.testing.assert_array_equal(layer.running_mean, [0.0, 0.1, 0.2])


def test_an_error_between_two_numbers_of_batches_leaves_everything():
    layer = BatchNorm(3, momentum=None)
    layer(X)
    before = layer.state_dict()
    layer._correction = 3.0  # the second batch has 3 values in the channels that it has
    with pytest.raises(ValueError, match=r"^moments: expected count > correction = 3, got 3 for"):
        layer(X)
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
