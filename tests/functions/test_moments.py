"""Counts, means and sums of squares: accuracy, constants, values that are not finite, merging."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import arrays
import bncore
import oracle
import tolerances
from arrays import CONSTANTS, EDGE_SHAPES, FLOATS, VALUES
from gates import GATE_LAYOUTS, GATE_ORDERS, gate_case


def variance_error(moments: bncore.Moments, exact: list[oracle.ExactMoments]) -> float:
    """Largest relative error of a channel's variance."""
    pairs = zip(moments.var(), exact, strict=True)
    return max(oracle.relative_error(var, channel.var) for var, channel in pairs)


def mean_error(moments: bncore.Moments, exact: list[oracle.ExactMoments]) -> float:
    """Largest error of a channel's mean, relative to the larger of |mean| and std."""
    errors = []
    for mean, channel in zip(moments.mean, exact, strict=True):
        scale = max(abs(float(channel.mean)), float(channel.var) ** 0.5)
        difference = abs(float(oracle.Fraction(float(mean)) - channel.mean))
        errors.append(difference / scale if scale else difference)
    return max(errors)


@pytest.mark.parametrize("layout", GATE_LAYOUTS, ids=str)
@pytest.mark.parametrize("order", GATE_ORDERS)
def test_gate_variance_float32(backend, order, layout):
    """1e6 values per channel at mean/std 1, 1e2, 1e4, 1e6; also outlier first and sorted."""
    case = gate_case(order)
    moments = bncore.moments(case.in_layout(layout), axis=layout.axis(4))
    assert (moments.count == 10**6).all()
    error = variance_error(moments, case.exact)
    assert error <= tolerances.VARIANCE_FLOAT32
    assert error <= tolerances.VARIANCE_ACCUMULATED
    assert mean_error(moments, case.exact) <= tolerances.MEAN


@cache
def edge_case(shape, kind, dtype):
    x = VALUES[kind](np.random.default_rng(7), shape, dtype)
    return x, oracle.channel_moments(x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "shifted", "outlier_first", "alternating", "huge"])
def test_edge_shapes(backend, kind, dtype):
    tolerance, mean_tolerance = tolerances.VARIANCE_ACCUMULATED, tolerances.MEAN
    if kind == "outlier_first":
        tolerance = tolerances.VARIANCE_OUTLIER
        mean_tolerance = tolerances.MEAN_OUTLIER
    for shape in EDGE_SHAPES:
        x, exact = edge_case(shape, kind, dtype)
        moments = bncore.moments(x)
        assert (moments.count == exact[0].count).all(), shape
        assert variance_error(moments, exact) <= tolerance, shape
        assert mean_error(moments, exact) <= mean_tolerance, shape


@pytest.mark.parametrize("dtype", FLOATS)
def test_agrees_with_numpy(backend, rng, dtype):
    x = VALUES["normal"](rng, (6, 4, 9, 11), dtype)
    moments = bncore.moments(x)
    axes = (0, 2, 3)
    np.testing.assert_allclose(moments.mean, x.mean(axes, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(moments.var(), x.var(axes, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(
        moments.var(correction=1), x.var(axes, dtype=np.float64, ddof=1), rtol=1e-13
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("correction", [0, 1])
def test_mean_var_is_the_moments_rounded_once(backend, rng, dtype, correction):
    x = VALUES["shifted"](rng, (50, 4, 21), dtype)
    moments = bncore.moments(x)
    mean, var = bncore.mean_var(x, axis=(0, 2), correction=correction, keepdims=True)
    assert mean.dtype == var.dtype == dtype
    assert mean.shape == var.shape == (1, 4, 1)
    np.testing.assert_array_equal(mean.ravel(), moments.mean.astype(dtype))
    np.testing.assert_array_equal(var.ravel(), moments.var(correction=correction).astype(dtype))


CONSTANT_COUNTS = [*range(2, 71), 4097, 100003]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("one_channel", [False, True], ids=["rows", "planes"])
def test_a_constant_channel_has_no_variance(backend, dtype, one_channel):
    """For any constant and count, the mean is the constant and the variance is exactly 0."""
    constants = np.array(CONSTANTS[dtype], dtype)
    for count in CONSTANT_COUNTS:
        x = np.broadcast_to(constants, (count, len(constants)))
        if one_channel:
            x = np.broadcast_to(constants[:, None], (1, len(constants), count))
        moments = bncore.moments(np.ascontiguousarray(x))
        np.testing.assert_array_equal(moments.m2, 0, err_msg=str(count))
        np.testing.assert_array_equal(moments.mean, constants, err_msg=str(count))
        np.testing.assert_array_equal(moments.var(), 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_peers_constant_cases(backend, dtype):
    """Other libraries got these wrong: a column of 1e6 times ±100, and 2e6 ones on axis 0."""
    hundred = np.tile(np.array([100, -100], dtype), (10**6, 1))
    np.testing.assert_array_equal(bncore.mean_var(hundred, axis=0), [[100, -100], [0, 0]])
    ones = np.ones((2 * 10**6, 2), dtype)
    np.testing.assert_array_equal(bncore.mean_var(ones, axis=0), [[1, 1], [0, 0]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_variance_is_never_negative(backend, rng, dtype):
    """Values a few ulp apart, far from zero: the textbook formula gives negative variances here."""
    info = np.finfo(dtype)
    for scale in (1.0, 1e4, 1e8, 1e15, float(info.tiny) * 8):
        base = np.full((97, 40), scale, dtype)
        steps = rng.integers(0, 2, base.shape) * np.spacing(dtype(scale))
        x = (base + steps * (rng.random(40) < 0.7)).astype(dtype)
        for array in (x, np.ascontiguousarray(x.T)[None]):
            moments = bncore.moments(array)
            assert (moments.m2 >= 0).all()
            assert (moments.var(correction=1) >= 0).all()
            exact = oracle.channel_moments(array)
            assert all(m2 > 0 for m2, e in zip(moments.m2, exact, strict=True) if e.m2 > 2**-1000)


SPOILERS = {
    "nan": [np.nan],
    "inf": [np.inf],
    "-inf": [-np.inf],
    "both": [np.inf, -np.inf],
}


@pytest.mark.parametrize("spoiler", SPOILERS)
@pytest.mark.parametrize("shape", [(9, 4, 40), (5, 4, 5000), (2100, 4), (9, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_stays_in_its_channel(backend, rng, dtype, shape, spoiler):
    clean = VALUES["normal"](rng, shape, dtype)
    expected = bncore.moments(clean)
    others = np.arange(4) != 2
    for place in (0.0, 0.3, 1.0):
        x = clean.copy()
        channel = x[:, 2].reshape(-1)
        at = int(place * (channel.size - len(SPOILERS[spoiler])))
        channel[at : at + len(SPOILERS[spoiler])] = SPOILERS[spoiler]
        x[:, 2] = channel.reshape(x[:, 2].shape)
        got = bncore.moments(x)
        assert arrays.same_bits(got.mean[others], expected.mean[others])
        assert arrays.same_bits(got.m2[others], expected.m2[others])
        assert not np.isfinite(got.mean[2])
        assert np.isnan(got.m2[2])


@pytest.mark.parametrize("inf", [np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(9, 4, 40), (5, 4, 5000), (2100, 4, 1), (9, 4, 3)], ids=str)
def test_an_inf_among_the_first_values_makes_no_pivot(backend, rng, shape, inf):
    """With every backend the mean is that Inf or NaN, m2 is NaN, and training gives NaN."""
    clean = VALUES["normal"](rng, shape, np.float32)
    for image, inner in ((0, 0), (0, 2), (1, 0), (7, 0), (3, 15)):
        x = clean.copy()
        x[image % shape[0], 2, inner % shape[2]] = inf
        y, moments = bncore.batch_norm_train(x)
        assert moments.mean[2] == inf or np.isnan(moments.mean[2])
        assert np.isnan(moments.m2[2]) and np.isnan(moments.var()[2])
        assert np.isnan(y[:, 2]).all()
        with bncore.use_backend("numpy"):
            reference = bncore.moments(x)
        assert moments == reference
        assert np.isfinite(np.delete(moments.m2, 2)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 3, 50), (700, 5)], ids=str)
def test_pieces_merge_to_the_whole(backend, rng, shape, dtype):
    x = VALUES["normal"](rng, shape, dtype)
    exact = oracle.channel_moments(x)
    for cuts in ([1], [13, 14], [0, 5, 5, 17, 39]):
        pieces = [bncore.moments(piece) for piece in np.split(x, cuts)]
        for ordered in (pieces, pieces[::-1]):
            merged = ordered[0]
            for piece in ordered[1:]:
                merged = merged.merge(piece)
            assert (merged.count == exact[0].count).all()
            assert variance_error(merged, exact) <= tolerances.MERGED
            assert mean_error(merged, exact) <= tolerances.MEAN


def test_one_value_has_no_spread(backend):
    moments = bncore.moments(np.array([[3.5, -1.0]]))
    assert (moments.count == 1).all()
    np.testing.assert_array_equal(moments.mean, [3.5, -1.0])
    np.testing.assert_array_equal(moments.m2, 0)


@pytest.mark.parametrize("shape", arrays.EMPTY_SHAPES, ids=str)
def test_no_values_no_moments(backend, shape):
    moments = bncore.moments(np.empty(shape, np.float32))
    values = int(np.prod([n for a, n in enumerate(shape) if a != 1]))
    assert (moments.count == values).all()
    np.testing.assert_array_equal(moments.mean, np.full(shape[1], np.nan))
    np.testing.assert_array_equal(moments.m2, np.zeros(shape[1]))
    if values == 0:
        assert np.isnan(moments.var()).all()
