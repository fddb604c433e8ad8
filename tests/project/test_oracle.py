"""The oracle against plain fractions and against numerical differentiation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import oracle
from arrays import CONSTANTS, FLOATS, VALUES


def slow_moments(values: np.ndarray) -> tuple[Fraction, Fraction]:
    """Mean and sum of squared deviations, straight from the definition."""
    exact = [Fraction(float(v)) for v in values.ravel()]
    mean = sum(exact, Fraction(0)) / len(exact)
    return mean, sum(((v - mean) ** 2 for v in exact), Fraction(0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", VALUES)
def test_moments_are_exact(rng, kind, dtype):
    x = VALUES[kind](rng, (37, 1, 4), dtype)
    got = oracle.exact_moments(x)
    assert (got.mean, got.m2) == slow_moments(x)
    assert got.count == 148


def test_moments_are_exact_over_the_whole_range_of_exponents():
    x = np.array([1.7e308, 5e-324, -1.0, 0.0, -1.7e308, 2.0**-1000, math.pi, -math.e * 1e-200])
    assert (oracle.exact_moments(x).mean, oracle.exact_moments(x).m2) == slow_moments(x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_full_mantissas_do_not_overflow_the_bins(dtype):
    """2**20 equal values with every mantissa bit set: the largest sums that a bin can meet."""
    top = np.nextafter(dtype(2), dtype(0))
    got = oracle.exact_moments(np.full(2**20, top))
    assert got.mean == Fraction(float(top))
    assert got.m2 == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_constants_have_no_variance(dtype):
    for value in CONSTANTS[dtype]:
        got = oracle.exact_moments(np.full(7, value, dtype))
        assert got.mean == Fraction(float(dtype(value)))
        assert got.var == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_finite_values_have_exact_moments(bad):
    with pytest.raises(ValueError, match="finite"):
        oracle.exact_sums(np.array([1.0, bad]))


def test_split_and_longdouble_hold_a_third():
    third = Fraction(1, 3)
    high, low = oracle.split(third)
    assert high == 1 / 3
    assert abs(Fraction(high) + Fraction(*low.as_integer_ratio()) - third) < Fraction(1, 2**117)
    assert oracle.longdouble(third) * 3 == 1


def test_relative_error_counts_every_case():
    assert oracle.relative_error(1.0, Fraction(1)) == 0
    assert oracle.relative_error(0.0, Fraction(0)) == 0
    assert oracle.relative_error(1e-300, Fraction(0)) == math.inf
    assert oracle.relative_error(math.nan, Fraction(1)) == math.inf
    assert oracle.relative_error(1.0 + 2**-52, Fraction(1)) == 2**-52


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_is_the_spacing_of_the_type(dtype):
    info = np.finfo(dtype)
    values = np.array([1, 1.5, 2, 1e30, 1e-30, info.tiny, info.smallest_subnormal], dtype)
    np.testing.assert_array_equal(oracle.ulp(values, dtype), np.spacing(values))
    assert oracle.ulp(np.zeros(1), dtype)[0] == info.smallest_subnormal
    assert oracle.ulp(info.max, dtype) == np.longdouble(2) ** (info.maxexp - 1 - info.nmant)


def test_max_ulp_measures_one_step():
    reference = np.array([1.0, 2.0, 0.0], np.longdouble)
    stepped = np.nextafter(reference.astype(np.float32), np.float32(9))
    scale = np.array([1.0, 2.0, 1.0], np.longdouble)
    assert oracle.max_ulp(reference.astype(np.float32), reference, scale) == 0
    assert oracle.max_ulp(stepped, reference, scale) == 1
    assert oracle.max_ulp(np.float32([1, 2, np.nan]), reference, scale) == math.inf


def test_max_relative_counts_an_error_without_a_scale():
    zero = np.zeros(2)
    assert oracle.max_relative(zero, zero, zero) == 0
    assert oracle.max_relative(np.array([0.0, 1e-30]), zero, zero) == math.inf
    assert oracle.max_relative(np.array([1.0, np.nan]), zero, np.ones(2)) == math.inf
    assert oracle.max_relative(np.array([0.0, 0.5]), zero, np.array([1.0, 2.0])) == 0.25


def slow_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """The formula of batch norm in extended precision, moments included; for |mean| ~ std."""
    x = x.astype(np.longdouble)
    axes = (0, *range(2, x.ndim))
    shape = (-1,) + (1,) * (x.ndim - 2)
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = (x - mean) / np.sqrt(var + eps)
    return y * weight.reshape(shape) + bias.reshape(shape)


def test_forward_is_the_formula(rng):
    x = rng.standard_normal((4, 3, 5)) + 2
    weight, bias = rng.standard_normal((2, 3))
    got = oracle.forward(x, oracle.channel_moments(x), weight, bias, 1e-3)
    error = np.abs(got.y - slow_forward(x, weight, bias, 1e-3))
    assert error.max() < 1e-17
    scale = abs(got.y[:, 0] - bias[0]) + abs(bias[0])
    np.testing.assert_allclose(got.scale[:, 0], scale, rtol=1e-15)


def test_forward_stays_exact_far_from_zero():
    """Integers around 2**52: the mean is no double, and one double for it would cost 1e-1."""
    base = 2.0**52
    x = (base + np.array([0.0, 1.0, 3.0, 4.0, 5.0])).reshape(5, 1)
    shifted = oracle.forward(x, oracle.channel_moments(x), eps=0)
    near = oracle.forward(x - base, oracle.channel_moments(x - base), eps=0)
    assert np.abs(shifted.y - near.y).max() < 1e-18


@pytest.mark.parametrize("frozen", [False, True])
def test_backward_is_the_derivative_of_forward(rng, frozen):
    """Central differences of the oracle's forward, in extended precision."""
    x, dy = rng.standard_normal((2, 3, 2, 2))
    weight, bias = rng.standard_normal((2, 2))
    moments = oracle.channel_moments(x)
    eps, step = 0.01, np.longdouble(2) ** -20
    got = oracle.backward(dy, x, moments, weight, eps, frozen=frozen)

    def loss(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.longdouble:
        if frozen:
            y = oracle.forward(x, moments, weight, bias, eps).y
        else:
            y = slow_forward(x, weight, bias, eps)
        return (dy * y).sum()

    arguments = [x.astype(np.longdouble), weight, bias]
    for position, gradient in enumerate([got.dx, got.dweight, got.dbias]):
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(a, dtype=np.longdouble) for a in arguments]
                moved[position][index] += sign * step
                ends.append(loss(*moved))
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[index]) < 1e-10


def test_backward_names_its_largest_term(rng):
    x, dy = rng.standard_normal((2, 6, 2, 3))
    got = oracle.backward(dy, x, oracle.channel_moments(x))
    frozen = oracle.backward(dy, x, oracle.channel_moments(x), frozen=True)
    assert (got.largest_term >= np.abs(frozen.dx)).all()
    assert (3 * got.largest_term >= np.abs(got.dx)).all()
    np.testing.assert_array_equal(frozen.largest_term, np.abs(frozen.dx))
