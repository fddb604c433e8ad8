"""float32 data are summed about 0 where their mean is near 0, and about pivots elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import oracle
from bncore.backends.numba import sums

SHAPES = [(3, 2, 5000), (40, 2, 49), (3000, 2)]  # planes of many and of few values; rows
NEAR, FAR = 0.0, 1e6


# docs/numerics.md: the squares about a first pivot of 0 may be 4097 times those about the mean.
FIRST_AROUND_0, ELSEWHERE = 1.2e-10, 1e-13


def far_after_the_first(values):
    values[1:] += FAR


def near_after_the_first_block(values):
    values[: len(values) // 2] += FAR


def back_and_forth(values):
    values[:] += np.where(np.arange(len(values)) // 300 % 2, FAR, NEAR)


def at_the_limit(values):
    """The mean is 3.87 std, where sums change from one way to the other."""
    values[:] += 15.0**0.5


def positive(values):
    values[:] = np.abs(values)


KINDS = [far_after_the_first, near_after_the_first_block, back_and_forth, at_the_limit, positive]


def data(rng, kind, shape):
    """Fill every channel, in the order of its values, with data of this kind."""
    channels = []
    for _ in range(shape[1]):
        values = rng.standard_normal(np.prod(shape) // shape[1])
        values[:2] = -1.0, 1.0
        kind(values)
        channels.append(values.astype(np.float32).reshape(shape[0], *shape[2:]))
    return np.stack(channels, axis=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_variance_and_mean(backend, rng, kind, shape):
    x = data(rng, kind, shape)
    moments = bncore.moments(x)
    exact = oracle.channel_moments(x)
    for mean, var, channel in zip(moments.mean, moments.var(), exact, strict=True):
        bound = FIRST_AROUND_0 if kind is far_after_the_first else ELSEWHERE
        assert oracle.relative_error(var, channel.var) <= bound
        difference = float(oracle.Fraction(float(mean)) - channel.mean)
        assert abs(difference) <= 1e-14 * (abs(mean) + var**0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 2.0, 3.8, 4.0, 1e6])
def test_gradient_sums(backend, rng, shape, shift):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    x += np.float32(shift)
    dy -= dy.mean()  # so that the sum of dy nearly cancels
    moments = bncore.moments(x)
    found = bncore.grad_sums(dy, x, moments, eps=1e-5)
    axes = (0, *range(2, x.ndim))
    wide = (slice(None), *(np.newaxis,) * (x.ndim - 2))
    d = x.astype(np.longdouble) - moments.mean[wide]
    products = dy * d * moments.invstd(1e-5)[wide]
    error = np.abs(found.sum_dy_xhat - products.sum(axis=axes))
    assert (error <= 1e-14 * np.abs(products).sum(axis=axes)).all()
    assert (np.abs(found.sum_dy - dy.sum(axis=axes, dtype=np.longdouble)) <= 1e-11).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_infinite_gradient_stays_in_its_channel(backend, rng, shape):
    """Near 0 the sum of products is NaN: x * Inf - mean * Inf.  No other channel changes."""
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    moments = bncore.moments(x)
    clean = bncore.grad_sums(dy, x, moments)
    dy[1, 0] = np.inf
    found = bncore.grad_sums(dy, x, moments)
    assert found.sum_dy[0] == np.inf and not np.isfinite(found.sum_dy_xhat[0])
    assert found.sum_dy[1] == clean.sum_dy[1] and found.sum_dy_xhat[1] == clean.sum_dy_xhat[1]


def test_the_first_pivot():
    """It is 0 where the first float32 values have both signs, or where one of them is 0."""
    for values, pivot in (([-1, 3], 0), ([1, 3], 2), ([0, 3], 0), ([-5, -1], -3), ([-0.0, -4], 0)):
        assert sums.first_pivot(np.float32(values), False) == pivot
        assert sums.first_pivot(np.float64(values), False) == np.mean(values)


@pytest.mark.parametrize("mean, moved", [(3.8, 0.0), (-3.8, 0.0), (3.9, 3.9), (-3.9, -3.9)])
def test_the_pivot_moves_to_0_where_the_mean_is_near(mean, moved):
    """1000 values with a variance of 1: the limit is the root of 15, or 3.873."""
    n = 1000.0
    for pivot in (0.0, 1.0, mean):
        d = mean - pivot
        state = sums.flush(
            (0.0, pivot, 0.0, 0.0), n * d, n * (1.0 + d * d), n, np.float32([0]), False
        )
        assert state[1] == pytest.approx(moved, rel=1e-15)
        offset = state[2] / n
        assert state[1] + offset == pytest.approx(mean, rel=1e-14)
        assert state[3] / n - offset * offset == pytest.approx(1.0, rel=1e-13)
        state = sums.flush(
            (0.0, pivot, 0.0, 0.0), n * d, n * (1.0 + d * d), n, np.float64([0]), False
        )
        assert state[1] == pytest.approx(mean, rel=1e-15)
