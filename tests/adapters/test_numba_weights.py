"""What counts in bncore.numba: the bits of the NumPy functions, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
from variants import FOUND

numba = pytest.importorskip("numba", reason="Numba is not installed")
if "native" not in FOUND.names():
    pytest.skip("it calls the native extension", allow_module_level=True)
bn = pytest.importorskip("bncore.numba")


@numba.njit
def masked(x, dy, weight, mean, var, where, fill, axis):
    """Every operation with a mask, in one compiled function."""
    y, saved = bn.batch_norm_train(x, weight, axis=axis, where=where, fill=fill)
    dx, dweight, dbias = bn.batch_norm_train_backward(
        dy, x, saved, weight, axis=axis, where=where, fill=fill
    )
    inferred = bn.batch_norm_infer(x, mean, var, weight, axis=axis, where=where, fill=fill)
    frozen = bn.batch_norm_infer_backward(
        dy, x, mean, var, weight, axis=axis, where=where, fill=fill
    )
    moments = bn.moments(x, axis=axis, where=where)
    again = bn.normalize(x, moments, weight, axis=axis, where=where, fill=fill)
    sums = bn.grad_sums(dy, x, moments, axis=axis, where=where, fill=fill)
    whole = bn.grad_input(dy, x, moments, sums, weight, axis=axis, where=where, fill=fill)
    return (
        (y, dx, dweight, dbias, inferred, *frozen, again, sums.sum_dy, sums.sum_dy_xhat, whole),
        (saved.count, saved.mean, saved.m2, moments.count, moments.mean, moments.m2),
    )


def by_numpy(x, dy, weight, mean, var, where, fill, axis):
    plain = {"axis": axis, "where": where}
    given = plain | {"fill": fill}
    y, saved = bncore.batch_norm_train(x, weight, **given)
    train = bncore.batch_norm_train_backward(dy, x, saved, weight, **given)
    inferred = bncore.batch_norm_infer(x, mean, var, weight, **given)
    frozen = bncore.batch_norm_infer_backward(dy, x, mean, var, weight, **given)
    again = bncore.normalize(x, saved, weight, **given)
    sums = bncore.grad_sums(dy, x, saved, **given)
    whole = bncore.grad_input(dy, x, saved, sums, weight, **given)
    return (
        (y, *train, inferred, *frozen, again, sums.sum_dy, sums.sum_dy_xhat, whole),
        (saved.count, saved.mean, saved.m2) * 2,
    )


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [
        ((4, 3, 5), 1, (4, 1, 5)),  # shared, planes
        ((4, 5, 3), -1, (4, 5, 1)),  # shared, rows
        ((4, 3, 5), -2, (1, 3, 5)),  # per channel
        ((3, 4, 5), 0, (1, 4, 1)),
    ],
)
def test_masks_give_the_bits_of_numpy(rng, shape, axis, mask_shape):
    """One compilation: the types are the same for all."""
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    where = rng.random(mask_shape) < 0.7
    where.flat[:2] = True
    x[~np.broadcast_to(where, shape)] = np.nan
    weight, mean, var = rng.uniform(0.5, 2.0, (3, 3))
    given = x, dy, weight, mean, var, where, 0.5, axis
    for found, want in zip(masked(*given), by_numpy(*given), strict=True):
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a, b)


@numba.njit
def weighted(x, where, weights, nan_policy):
    return bn.moments(x, where=where, weights=weights, nan_policy=nan_policy)


@pytest.mark.parametrize("policy", ["propagate", "omit", "raise"])
def test_weights_give_the_bits_of_numpy(rng, policy):
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    if policy != "raise":
        x[1, 2, 3] = np.nan
    where = np.array([True, True, False, True, True])
    weights = rng.uniform(0.0, 3.0, (3, 1))
    found = weighted(x, where, weights, policy)
    want = bncore.moments(x, where=where, weights=weights, nan_policy=policy)
    for a, b in zip(found, (want.count, want.mean, want.m2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_values_are_refused(rng):
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    where, weights = np.ones(5, bool), np.ones((3, 1))
    with pytest.raises(ValueError, match=r"where: expected a shape that broadcasts against x's"):
        weighted(x, where[:4], weights, "propagate")
    with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts"):
        weighted(x, where, weights[:2], "propagate")
    for value in (-1.0, np.nan, np.inf):
        weights[1] = value
        with pytest.raises(ValueError, match=r"weights: expected finite numbers >= 0"):
            weighted(x, where, weights, "propagate")
    weights[1] = 1.0
    with pytest.raises(ValueError, match=r"nan_policy: expected 'propagate', 'omit' or 'raise'"):
        weighted(x, where, weights, "skip")
    x[2, 1, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"x: expected no NaN with nan_policy='raise', got NaN in channel 1"
    ):
        weighted(x, where, weights, "raise")
    where[0] = False
    assert np.isfinite(weighted(x, where, weights, "raise").mean).all()


def test_a_negative_variance_is_refused():
    x, ones = np.ones((4, 3), np.float32), np.ones(3)
    with pytest.raises(ValueError, match=r"var: expected variances >= 0, got a negative one"):
        bn.batch_norm_infer(x, ones, -ones)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"where": np.ones(5)}, "where: expected an array of bool"),
        ({"weights": np.ones(5, complex)}, "weights: expected an array of real numbers"),
        ({"where": np.ones((1, 4, 3, 5), bool)}, "where: expected at most x's 3 dimensions, got 4"),
    ],
)
def test_bad_types_are_refused_when_they_are_compiled(given, text):
    with pytest.raises(numba.core.errors.TypingError, match=text):
        bn.moments(np.ones((4, 3, 5), np.float32), **given)
