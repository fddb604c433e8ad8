"""Integers that count differently: masks give exact moments, other weights those of float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import arrays
import bncore
import tolerances
import variants
from bncore import backends
from bncore.arguments.weights import Weights
from bncore.functions import integers

SHAPE = (70, 3, 21)


@pytest.fixture(params=[v for v in variants.FOUND.present if variants.takes_weights(v)], ids=str)
def kernels(request):
    """The functions of every backend that takes weights."""
    with request.param.active():
        yield backends.current().kernels


def weighted(kernels, x, values, scale=1.0):
    mean, m2, count = np.empty((3, x.shape[1]))
    given = Weights(values, False, None, count)
    integers.moments(kernels, mean, m2, x, 2, False, scale, given)
    return count, mean, m2


def exact(x, values):
    """Count, mean and m2 of every channel, each rounded once."""
    full = np.broadcast_to(values, x.shape)
    results = []
    for channel, w in zip(x.swapaxes(0, 1), full.swapaxes(0, 1), strict=True):
        pairs = [(Fraction(float(b)), int(a)) for a, b in zip(channel.flat, w.flat, strict=True)]
        n = sum(b for b, _ in pairs)
        total, squares = sum(b * a for b, a in pairs), sum(b * a * a for b, a in pairs)
        if n:
            results.append((float(n), float(total / n), float(squares - total * total / n)))
        else:
            results.append((0.0, np.nan, 0.0))
    return tuple(map(np.array, zip(*results, strict=True)))


def drawn(rng, dtype):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, SHAPE, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32])
@pytest.mark.parametrize("channels", [1, 3], ids=["shared", "own"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_a_mask_gives_exact_moments(kernels, rng, dtype, channels, kind):
    x = drawn(rng, dtype)
    mask = (rng.random((SHAPE[0], channels, SHAPE[2])) < 0.7).astype(kind)
    if channels == 3:
        mask[:, 1] = 0
    for got, expected in zip(weighted(kernels, x, mask), exact(x, mask), strict=True):
        assert arrays.same_bits(got, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32])
@pytest.mark.parametrize("channels", [1, 3], ids=["shared", "own"])
def test_other_weights(kernels, rng, dtype, channels, monkeypatch):
    x = drawn(rng, dtype)
    values = rng.random((SHAPE[0], channels, SHAPE[2]))
    values[10:20] = 0.0
    for most in (1 << 17, 500):
        monkeypatch.setattr(integers, "WEIGHTED", most)
        count, mean, m2 = weighted(kernels, x, values)
        wanted, expected_mean, expected_m2 = exact(x, values)
        np.testing.assert_allclose(count, wanted, rtol=tolerances.MERGED)
        std = np.sqrt(expected_m2 / wanted)
        assert (abs(mean - expected_mean) <= tolerances.MERGED * std).all()
        np.testing.assert_allclose(m2, expected_m2, rtol=tolerances.MERGED)


def test_all_true_gives_the_bits_of_no_mask(kernels, rng):
    x = drawn(rng, np.uint8)
    whole = bncore.moments(x, scale=0.3)
    for values in (np.ones((70, 1, 21), np.uint8), np.ones(SHAPE), None):
        count, mean, m2 = weighted(kernels, x, values, 0.3)
        assert count.tolist() == [70 * 21] * 3
        assert arrays.same_bits(mean, whole.mean) and arrays.same_bits(m2, whole.m2)


def test_fill(kernels, rng):
    x = drawn(rng, np.uint8)
    mask = (rng.random((70, 1, 21)) < 0.5).astype(np.uint8)
    statistics = np.full(3, 100.0), np.full(3, 900.0), None, None, 0.0, 2, None, 1.0
    plain, filled = np.empty((2, *SHAPE), np.float32)
    integers.normalize(kernels, plain, x, *statistics)
    given = Weights(mask, False, -7.0, np.empty(3))
    integers.normalize(kernels, filled, x, *statistics, given)
    taken = np.broadcast_to(mask == 1, SHAPE)
    assert (filled[~taken] == -7.0).all() and arrays.same_bits(filled[taken], plain[taken])
