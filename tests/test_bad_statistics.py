"""Bad input beyond single arguments: one value per channel, and invalid moments and sums."""

from __future__ import annotations

import numpy as np
import pytest

import bncore

C = 3
ONE_VALUE = [(1, 1), (1, 3), (1, 3, 1, 1), (1, 0)]


@pytest.mark.parametrize("shape", ONE_VALUE, ids=lambda shape: f"N10-N11-N12-{shape}")
def test_one_value_per_channel_is_no_batch(backend, shape):
    x, out = np.ones(shape), np.full(shape, 7.0)
    with pytest.raises(ValueError) as raised:
        bncore.batch_norm_train(x, out=out)
    assert str(raised.value) == (
        f"Expected more than 1 value per channel when training, got input size {shape}"
    )
    assert (out == 7.0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_running_variance_needs_more_values_than_the_correction(count):
    mean, var = np.zeros(C), np.ones(C)
    moments = bncore.Moments(count, np.ones(C), np.zeros(C))
    if count == 0:
        bncore.update_running_stats(mean, var, moments)
    else:
        text = r"^moments: expected count > correction = 1, got 1 for channel 0$"
        with pytest.raises(ValueError, match=text):
            bncore.update_running_stats(mean, var, moments)
    assert (mean == 0.0).all() and (var == 1.0).all()


MOMENTS = [
    pytest.param("count", (-(2**63), np.ones(3), np.ones(3)), ValueError, id="S18-count"),
    pytest.param("count", (10**400, np.ones(3), np.ones(3)), ValueError, id="count-huge"),
    pytest.param("count", (np.nan, np.ones(3), np.ones(3)), ValueError, id="count-nan"),
    pytest.param("count", (True, np.ones(3), np.ones(3)), TypeError, id="count-bool"),
    pytest.param("count", ("2", np.ones(3), np.ones(3)), TypeError, id="count-text"),
    pytest.param("count", (None, np.ones(3), np.ones(3)), TypeError, id="count-None"),
    pytest.param("count", (2j, np.ones(3), np.ones(3)), TypeError, id="count-complex"),
    pytest.param("count", (np.ones(3, bool), np.ones(3), np.ones(3)), TypeError, id="count-bools"),
    pytest.param("count", (np.ma.ones(3), np.ones(3), np.ones(3)), TypeError, id="count-masked"),
    pytest.param("count", (np.ones(2), np.ones(3), np.ones(3)), ValueError, id="count-short"),
    pytest.param("count", (np.ones((1, 3)), np.ones(3), np.ones(3)), ValueError, id="count-rank2"),
    pytest.param("mean", (2, np.ones((2, 3)), np.ones(3)), ValueError, id="S18-mean-rank2"),
    pytest.param("mean", (2, np.ones(3, int), np.ones(3)), TypeError, id="mean-int"),
    pytest.param("m2", (2, np.ones(3), np.ones(2)), ValueError, id="m2-short"),
    pytest.param("m2", (2, np.ones(3), np.ones(3, complex)), TypeError, id="m2-complex"),
    pytest.param("m2", (2, np.ones(3), np.array([1.0, -1e-9, 0.0])), ValueError, id="m2-negative"),
    pytest.param("m2", (2, np.ones(3), np.ma.ones(3)), TypeError, id="m2-masked"),
]


@pytest.mark.parametrize(("argument", "given", "error"), MOMENTS)
def test_moments_of_nonsense(argument, given, error):
    with pytest.raises(error, match=f"^{argument}: expected "):
        bncore.Moments(*given)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, -np.inf], ids=str)
def test_the_channel_of_a_wrong_count_is_named(bad):
    text = f"count: expected finite numbers >= 0, got {bad} for channel 2"
    with pytest.raises(ValueError) as raised:
        bncore.Moments([1.0, 0.0, bad, bad], np.ones(4), np.ones(4))
    assert str(raised.value) == text


def test_grad_sums_of_nonsense():
    with pytest.raises(ValueError, match=r"^sum_dy_xhat: expected shape \(3,\), got \(2,\)$"):
        bncore.GradSums(np.ones(3), np.ones(2))
    with pytest.raises(TypeError, match=r"^sum_dy: expected a real floating dtype, got int64 \("):
        bncore.GradSums(np.ones(3, int), np.ones(3))
