"""Standardization: against NumPy and scikit-learn's rule, constant features, and back again."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
from arrays import LAYOUTS
from bncore import destandardize, standardize


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("dtype", arrays.FLOATS)
def test_a_table_of_features(backend, rng, dtype, correction):
    x = (rng.standard_normal((200, 7)) * rng.uniform(0.1, 50.0, 7) + 30.0).astype(dtype)
    y, moments = standardize(x, correction=correction)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(0)) / wide.std(0, ddof=correction)
    assert y.dtype == dtype and moments == bncore.moments(x)
    eps = tolerances.EPS32 if dtype == np.float32 else tolerances.EPS64
    np.testing.assert_allclose(y, want, rtol=8 * eps, atol=64 * eps)
    back = destandardize(y, moments, correction=correction)
    assert back.dtype == dtype
    size = np.abs(wide).max(0)
    assert (np.abs(back - wide) <= 8 * eps * size).all()


@pytest.mark.parametrize("dtype", [*arrays.FLOATS, np.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 7.0, 100.0, 6e4, -1e-7])
def test_a_constant_feature_becomes_0(backend, dtype, value):
    x = np.full((1001, 3), value, dtype)
    x[:, 1] = np.arange(1001) % 7
    for correction in (0, 1):
        y, moments = standardize(x, correction=correction)
        assert (y[:, [0, 2]] == 0.0).all() and np.isfinite(y).all()
        back = destandardize(y, moments, correction=correction)
        assert (back[:, [0, 2]] == x[:, [0, 2]]).all()
    # Other data are divided by 1, so that they keep their distance, as in scikit-learn.
    other, same = standardize(x[:2] + dtype(1), moments)
    assert same == moments
    distance = (x[:2] + dtype(1)).astype(np.float64)[:, 0] - float(x[0, 0])
    np.testing.assert_allclose(other[:, 0].astype(np.float64), distance, rtol=2**-10)


def test_one_row_and_no_row(backend):
    y, moments = standardize(np.array([[3.0, -1.0]]))
    assert (y == 0.0).all() and (destandardize(y, moments) == [[3.0, -1.0]]).all()
    y, moments = standardize(np.array([[3.0, -1.0]]), correction=1)
    assert (y == 0.0).all()
    y, moments = standardize(np.empty((0, 2)))
    assert y.shape == (0, 2) and (moments.count == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout(backend, rng, layout):
    x = rng.standard_normal((6, 3, 4, 5)) + 2.0
    axis = layout.axis(4)
    there = layout.build(x)
    y, moments = standardize(there, axis=axis)
    want = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(layout.plain(y), want, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(layout.plain(destandardize(y, moments, axis=axis)), x, rtol=1e-13)
    if layout.writable:
        assert standardize(there, out=there, axis=axis)[0] is there
        assert destandardize(there, moments, out=there, axis=axis) is there
        np.testing.assert_allclose(layout.plain(there), x, rtol=1e-13)


def test_gaps_become_the_mean(backend, rng):
    x = rng.standard_normal((50, 4)) * 3.0 + 5.0
    holes = rng.random(x.shape) < 0.3
    holes[:, 3] = True
    x[holes] = np.nan
    y, moments = standardize(x, nan_policy="omit", fill=0.0)
    assert (y[holes] == 0.0).all() and np.isfinite(y).all()
    for c in range(3):
        seen = x[~holes[:, c], c]
        np.testing.assert_allclose(
            y[~holes[:, c], c], (seen - seen.mean()) / seen.std(), rtol=1e-12
        )
    assert moments.count[3] == 0
    again, _ = standardize(x, moments, nan_policy="omit", fill=0.0)
    assert arrays.same_bits(again, y)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: standardize(np.zeros(3)), ValueError, "^x: expected at least 2 dim"),
    (lambda: standardize(np.zeros((3, 2)), axis=2), ValueError, "^axis: expected "),
    (lambda: standardize(np.zeros((3, 2), complex)), TypeError, "^x: expected float16"),
    (lambda: standardize(np.zeros((3, 2)), 3), TypeError, "^moments: expected Moments, got 3"),
    (lambda: standardize(np.zeros((3, 2)), bncore.moments(np.zeros((3, 4)))), ValueError,
     "^moments: expected 2 channels, got 4"),
    (lambda: standardize(np.zeros((3, 2)), correction="1"), TypeError, "^correction: expected "),
    (lambda: standardize(np.zeros((3, 2)), out=np.zeros((3, 3))), ValueError, "^out: expected "),
    (lambda: destandardize(np.zeros(3), bncore.moments(np.zeros((3, 2)))), ValueError,
     "^x: expected at least 2 dim"),
    (lambda: destandardize(np.zeros((3, 2)), None), TypeError, "^moments: expected Moments"),
])  # fmt: skip
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
