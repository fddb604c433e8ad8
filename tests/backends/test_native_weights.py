"""Weights in the native backend: what must not change a bit, for every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import arrays
import variants
from bncore.arguments.weights import Weights

pytestmark = pytest.mark.skipif(
    "native" not in variants.FOUND.names(), reason="the extension was not built"
)

# (outer, channels, inner)
SHAPES = [(5, 3, 49), (9, 2, 3000), (2, 1, 40000), (40, 5, 7), (700, 24, 1), (600, 300, 1)]
DTYPES = [np.float32, np.float64, np.float16, np.uint16]
KINDS = list(itertools.product(("shared", "own"), (np.uint8, np.float64)))


def stored(values, dtype):
    """Round to dtype; uint16 are the bits of bfloat16."""
    if dtype is np.uint16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def case(rng, shape, dtype):
    x, dy = (stored(rng.standard_normal(shape) + 0.5, dtype) for _ in range(2))
    return x, dy, rng.standard_normal((2, shape[1])), rng.uniform(0.5, 2.0, (2, shape[1]))


def results(x, dy, parameters, statistics, weights, threads=1):
    """Every result of the backend's functions, those of two numbers per channel side by side."""
    native = variants.native_module()
    weight, bias = parameters
    mean, var = statistics
    given = mean, var, weight, 1e-3, threads
    moments, trained, sums, backward, frozen = np.full((5, 2, x.shape[1]), 7.0)
    y, trained_y, dx, given_dx, frozen_dx = np.zeros((5, *x.shape), x.dtype)
    native.moments(*moments, x, threads, False, weights)
    native.normalize(y, x, mean, var, weight, bias, 1e-3, threads, None, weights)
    native.train(trained_y, *trained, x, weight, bias, 1e-3, threads, None, weights)
    native.grad_sums(*sums, dy, x, mean, var, 1e-3, threads, weights)
    native.grad_input(given_dx, dy, x, mean, var, *parameters, var, *given[2:], weights)
    if weights is not None:
        weights.count[:] = x.size // x.shape[1]
    native.train_backward(dx, *backward, dy, x, *given, None, weights)
    native.infer_backward(frozen_dx, *frozen, dy, x, *given, None, weights)
    sums_of_all = moments, trained, sums, backward, frozen
    return {
        **{f"sums {i}": values for i, values in enumerate(sums_of_all)},
        **{f"array {i}": a for i, a in enumerate((y, trained_y, dx, given_dx, frozen_dx))},
    }


def one_nan(values):
    """A copy in which every NaN has the same bits, also of bfloat16."""
    if values.dtype != np.uint16:
        return arrays.one_nan(values)
    return np.where((values & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), values)


def assert_same(got, expected, where=...):
    for name, values in expected.items():
        part = where if name.startswith("array") else ...
        one, other = one_nan(got[name][part]), one_nan(values[part])
        assert arrays.same_bits(one, other), name


@pytest.fixture(params=[v for v in variants.FOUND.present if v.name == "native"], ids=str)
def variant(request):
    with request.param.active():
        yield


def weights_like(shape, kind, values):
    places, dtype = kind
    full = np.broadcast_to(values, shape if places == "own" else (shape[0], 1, shape[2]))
    return np.ascontiguousarray(full, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_1_change_no_bit(rng, variant, shape, dtype):
    given = case(rng, shape, dtype)
    plain = results(*given, None)
    for kind in KINDS:
        for omit, fill in ((False, None), (True, 3.0)):
            weights = Weights(weights_like(shape, kind, 1), omit, fill, np.empty(shape[1]))
            assert_same(results(*given, weights), plain)
    assert_same(results(*given, Weights(None, True, None, np.empty(shape[1]))), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_bit_depends_on_what_has_no_weight(rng, variant, shape, dtype):
    x, dy, *parameters = case(rng, shape, dtype)
    for kind in KINDS:
        places = shape if kind[0] == "own" else (shape[0], 1, shape[2])
        mask = rng.random(places) < 0.8
        weights = Weights(weights_like(shape, kind, mask), False, None, np.empty(shape[1]))
        kept = np.broadcast_to(mask, shape)
        still = np.where(kept, dy, stored(np.zeros(()), dtype))
        expected = results(x, still, *parameters, weights)
        for garbage in (np.nan, np.inf, -1e38):
            with np.errstate(over="ignore"):
                other = np.where(kept, x, stored(np.full((), garbage), dtype))
            assert_same(results(other, still, *parameters, weights), expected, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nans_are_omitted_as_a_mask_omits_them(rng, variant, shape, dtype):
    x, dy, *parameters = case(rng, shape, dtype)
    mask = np.ascontiguousarray(rng.random(shape) < 0.9)
    x = np.where(mask, x, stored(np.full((), np.nan), dtype))
    masked = Weights(mask.astype(np.uint8), False, -2.0, np.empty(shape[1]))
    omitted = Weights(None, True, -2.0, np.empty(shape[1]))
    expected = results(x, dy, *parameters, masked)
    assert_same(results(x, dy, *parameters, omitted), expected)
    assert_same(results(x, dy, *parameters, omitted, threads=3), expected)


@pytest.mark.parametrize("fill", [None, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_channel_without_weight(rng, variant, shape, fill):
    x, _, parameters, _ = case(rng, shape, np.float32)
    weights = Weights(np.zeros(shape, np.uint8), False, fill, np.empty(shape[1]))
    mean, m2 = np.full((2, shape[1]), 7.0)
    y = np.zeros_like(x)
    variants.native_module().train(y, mean, m2, x, *parameters, 1e-3, 2, None, weights)
    assert np.isnan(mean).all() and not m2.any() and not weights.count.any()
    assert np.isnan(y).all() if fill is None else (y == fill).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_integers_count_as_repeated_rows(rng, variant, dtype):
    x = rng.standard_normal((500, 12, 1)).astype(dtype)
    times = rng.integers(0, 4, 500)
    weights = Weights(times.astype(np.float64).reshape(-1, 1, 1), False, None, np.empty(12))
    mean, m2, repeated_mean, repeated_m2 = np.empty((4, 12))
    native = variants.native_module()
    native.moments(mean, m2, x, 1, False, weights)
    native.moments(repeated_mean, repeated_m2, np.repeat(x, times, axis=0), 1)
    assert (weights.count == times.sum()).all()
    np.testing.assert_allclose(mean, repeated_mean, rtol=1e-12)
    np.testing.assert_allclose(m2, repeated_m2, rtol=1e-12)
