"""Batch renormalization against evaluation, training and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
from bncore import batch_renorm, batch_renorm_backward
from differences import stencil_difference


@pytest.fixture
def given(rng):
    return {
        "x": rng.standard_normal((6, 3, 4)) * 2 + 1,
        "running_mean": rng.standard_normal(3),
        "running_var": rng.uniform(0.5, 2, 3),
        "weight": rng.standard_normal(3),
        "bias": rng.standard_normal(3),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_clipping_it_is_evaluation(given, dtype):
    x = given["x"].astype(dtype)
    statistics = given["running_mean"], given["running_var"]
    for parameters in ((), (given["weight"],), (None, given["bias"]),
                       (given["weight"], given["bias"])):  # fmt: skip
        y, moments, _ = batch_renorm(x, *statistics, *parameters, r_max=1e9, d_max=1e9)
        want = bncore.batch_norm_infer(x, *statistics, *parameters)
        assert y.dtype == dtype and moments == bncore.moments(x)
        np.testing.assert_allclose(y, want, rtol=0, atol=2e-6 if dtype == np.float32 else 1e-14)


def test_clipped_away_it_is_training(given):
    x = given["x"]
    y, _, renorm = batch_renorm(
        x, given["running_mean"], given["running_var"], given["weight"], r_max=1, d_max=0
    )
    assert arrays.same_bits(y, bncore.batch_norm_train(x, given["weight"])[0])
    assert renorm.r.tolist() == [1.0] * 3 and not renorm.d.any()


def test_clipped_away_it_is_training_with_a_mask(given, rng):
    x, where = given["x"], rng.random((6, 1, 4)) < 0.7
    x[~np.broadcast_to(where, x.shape)] = np.nan
    statistics = given["running_mean"], given["running_var"]
    counted = {"where": where, "fill": 0.5}
    y, moments, _ = batch_renorm(x, *statistics, given["weight"], r_max=1, d_max=0, **counted)
    want, own = bncore.batch_norm_train(x, given["weight"], **counted)
    assert arrays.same_bits(y, want) and moments == own


def test_a_channel_without_a_value_is_not_corrected(given):
    where = np.array([[[True], [False], [True]]])
    statistics = given["running_mean"], given["running_var"]
    counted = {"where": where, "fill": 0.5}
    y, moments, renorm = batch_renorm(given["x"], *statistics, **counted)
    assert moments.count.tolist() == [24.0, 0.0, 24.0]
    assert (y[:, 1] == 0.5).all() and np.isfinite(y).all()
    assert renorm.r[1] == 1.0 and renorm.d[1] == 0.0
    for gradient in batch_renorm_backward(y, given["x"], moments, renorm, **counted):
        assert np.isfinite(gradient).all()
        assert not np.moveaxis(gradient, gradient.ndim > 1, 0)[1].any()


def test_clipping(given):
    x = np.array([[0.0, 0.0, 0.0], [20.0, 0.2, 2.0]])
    _, _, (r, d) = batch_renorm(x, [0.0, 9.0, 0.0], np.ones(3), r_max=2.0, d_max=3.0, eps=0.0)
    assert r.tolist() == [2.0, 0.5, 1.0] and d.tolist() == [3.0, -3.0, 1.0]


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_stencil_differences_with_the_correction_held(given, rng, masked, fill):
    counted = {"where": rng.random((6, 1, 4)) < 0.7, "fill": fill} if masked else {}
    r_given = rng.standard_normal(given["x"].shape)
    statistics = given["running_mean"], given["running_var"]
    options = {"r_max": 1.2, "d_max": 0.4, "eps": 0.1}
    y, moments, (r, d) = batch_renorm(
        given["x"], *statistics, given["weight"], given["bias"], **options, **counted
    )

    def loss(x, weight, bias):
        xhat, _ = bncore.batch_norm_train(x, eps=0.1, where=counted.get("where"))
        corrected = (xhat * r[:, None] + d[:, None]) * weight[:, None] + bias[:, None]
        if masked and fill is not None:
            corrected = np.where(counted["where"], corrected, fill)
        return float((r_given * corrected).sum())

    got = batch_renorm_backward(
        r_given, given["x"], moments, (r, d), given["weight"], eps=0.1, **counted
    )
    arguments = [given[name] for name in ("x", "weight", "bias")]
    assert abs(loss(*arguments) - (r_given * y).sum()) <= 1e-12 * np.abs(r_given * y).sum()
    for position, gradient in enumerate(got):
        size = np.abs(gradient).max()
        for index in np.ndindex(gradient.shape):
            numeric = stencil_difference(loss, arguments, position, index, 1e-2)
            assert abs(numeric - gradient[index]) <= tolerances.CENTRAL_DIFFERENCES * size


def test_gradients_are_in_the_types_of_parameters(given):
    x = given["x"].astype(np.float32)
    _, moments, renorm = batch_renorm(x, np.zeros(3), np.ones(3))
    dx, dweight, dbias = batch_renorm_backward(x, x, moments, renorm)
    assert dx.dtype == dweight.dtype == dbias.dtype == np.float32
    empty = np.empty((0, 3))
    y, moments, renorm = batch_renorm(empty, np.zeros(3), np.ones(3))
    assert y.shape == (0, 3) and moments.count.tolist() == [0.0] * 3
    assert not batch_renorm_backward(empty, empty, moments, renorm)[1].any()


X = np.ones((5, 3))
M = bncore.moments(X)
S = np.zeros(3), np.ones(3)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: batch_renorm(X, *S, r_max=0.5), ValueError, r"^r_max: expected a finite number >= 1"),
    (lambda: batch_renorm(X, *S, d_max=-1), ValueError, r"^d_max: expected a finite number >= 0"),
    (lambda: batch_renorm(X, [1.0], S[1]), ValueError, r"^running_mean: expected shape \(3,\)"),
    (lambda: batch_renorm(X[:1], *S), ValueError, r"^Expected more than 1 value per channel"),
    (lambda: batch_renorm_backward(X, X, M, 3), TypeError, r"^renorm: expected the pair \(r, d\)"),
    (lambda: batch_renorm_backward(X, X, M, (S[0], [1.0])), ValueError, r"^renorm d: expected sh"),
])  # fmt: skip
def test_what_does_not_fit_renorm(call, error, message):
    with pytest.raises(error, match=message):
        call()
