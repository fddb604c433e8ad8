"""16-bit data against exact arithmetic on the stored values: results, statistics, bad data.

A result is float32 arithmetic, rounded once.  So the bound of a value is half a step of its type
where it lies, and beside it what the contract allows float32, or what the gate allows in all.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import arrays
import bncore
import oracle
import tolerances
from arrays import SIXTEEN_BITS

SHAPES = [(6, 3, 700), (4100, 3), (3, 3, 2, 5)]  # planes, folded rows, a small batch
RATIOS = np.array([1.0, 10.0, 100.0])  # mean / std of the channels


def step(values, dtype):
    """The distance of neighbouring numbers of a type at these values."""
    bits, tiny = (10, -14) if dtype == np.float16 else (7, -126)
    exponent = np.frexp(np.abs(values).astype(np.longdouble))[1] - 1
    return np.ldexp(np.longdouble(1.0), np.maximum(exponent, tiny) - bits)


def worst(got, exact, scale):
    """The largest error in steps of got's type at `scale`."""
    error = np.abs(got.astype(np.longdouble) - exact)
    return float((error / step(scale, got.dtype)).max())


@cache
def problem(shape, dtype):
    rng = np.random.default_rng(5)
    means = RATIOS.reshape(-1, *[1] * (len(shape) - 2))
    x = (rng.standard_normal(shape) + means).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    return x, dy, *arrays.parameters(rng, shape[1])


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_forward(backend, dtype, shape):
    x, _, weight, bias = problem(shape, dtype)
    exact = oracle.channel_moments(x)
    expected = oracle.forward(x, exact, weight, bias)
    mean = np.array([float(channel.mean) for channel in exact])
    var = np.array([float(channel.var) for channel in exact])
    for y in (
        bncore.batch_norm_train(x, weight, bias)[0],
        bncore.batch_norm_infer(x, mean, var, weight, bias),
    ):
        assert worst(y, expected.y, expected.scale) <= tolerances.FORWARD_SIXTEEN
        half = 0.5 * np.maximum(step(expected.y, dtype), step(y.astype(np.float64), dtype))
        rest = np.abs(y.astype(np.longdouble) - expected.y) - half
        of_float32 = oracle.ulp(expected.scale, np.float32)
        assert float((rest / of_float32).max()) <= tolerances.FORWARD_ULP


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_gradients(backend, dtype, shape):
    x, dy, weight, _ = problem(shape, dtype)
    exact = oracle.channel_moments(x)
    moments = bncore.moments(x)
    expected = oracle.backward(dy, x, exact, weight)
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, moments, weight)
    error = np.abs(dx.astype(np.longdouble) - expected.dx)
    half = 0.5 * np.maximum(step(expected.dx, dtype), step(dx.astype(np.float64), dtype))
    rest = (tolerances.GRADIENT_SIXTEEN - 0.5) * step(expected.largest_term, dtype)
    of_float32 = tolerances.GRADIENT_ULP * oracle.ulp(expected.largest_term, np.float32)
    assert (error <= half + rest + of_float32).all()
    assert (
        oracle.max_relative(dbias, expected.dbias, expected.dbias_scale) <= tolerances.SUMS_SIXTEEN
    )
    error = oracle.max_relative(dweight, expected.dweight, expected.dweight_scale)
    assert error <= tolerances.SUMS_SIXTEEN
    frozen = oracle.backward(dy, x, exact, weight, frozen=True)
    dx = bncore.batch_norm_infer_backward(dy, x, moments.mean, moments.var(), weight)[0]
    assert worst(dx, frozen.dx, frozen.largest_term) <= tolerances.FORWARD_SIXTEEN


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("one_channel", [False, True], ids=["rows", "planes"])
def test_a_constant_channel_has_no_variance_and_gives_bias(backend, dtype, one_channel):
    constants = np.array([0.0, -0.0, 0.1, -1 / 3, 100.0, 60000.0, -1e-5, 6e-8], dtype)
    bias = np.arange(8.0) / 3.0
    for count in (2, 7, 17, 70, 4097):
        x = np.broadcast_to(constants, (count, 8))
        if one_channel:
            x = np.broadcast_to(constants[:, None], (1, 8, count))
        x = np.ascontiguousarray(x)
        y, moments = bncore.batch_norm_train(x, None, bias)
        assert (moments.m2 == 0.0).all()
        assert (moments.mean == constants.astype(np.float64)).all()
        expected = bias.astype(np.float32).astype(dtype).reshape((-1,) + (1,) * (x.ndim - 2))
        assert arrays.same_bits(y, np.broadcast_to(expected, x.shape))


# Bad data for squares in float32: each of these gives (channels, values) from random parameters.


def levels(rng, channels, n, count, shuffled):
    """Few different values, in a fixed order or in a random one."""
    values = rng.uniform(-2.0, 2.0, (channels, count)) * 2.0 ** rng.integers(-8, 8, (channels, 1))
    order = np.arange(n) // rng.choice([1, 2, 16], (channels, 1)) % count
    if shuffled:
        order = rng.integers(0, count, (channels, n))
    return np.take_along_axis(values, order, axis=1) + rng.standard_normal((channels, 1))


def powers(rng, channels, n):
    signs = rng.choice([-1.0, 1.0], (channels, n))
    return signs * 2.0 ** rng.integers(-8, 8, (channels, n))


def noise(rng, channels, n):
    """A constant and little noise."""
    width = 2.0 ** rng.integers(-10, -3, (channels, 1))
    return 4.0 * rng.standard_normal((channels, 1)) + width * rng.standard_normal((channels, n))


def ordered(rng, channels, n):
    return np.sort(rng.standard_normal((channels, n)) + rng.standard_normal((channels, 1)), axis=1)


def outlier(rng, channels, n):
    x = rng.standard_normal((channels, n))
    x[:, 0] = 2.0 ** rng.integers(3, 14, channels)
    return x


def first_apart(rng, channels, n):
    """The first pivot is far from all other values, which are nearly constant."""
    x = rng.standard_normal((channels, n)) * 2.0**-12 + rng.uniform(1.0, 2.0, (channels, 1))
    x[:, :16] += 2.0 ** rng.integers(-8, 8, (channels, 1))
    return x


BAD = {
    "two levels": lambda *given: levels(*given, 2, False),
    "three levels": lambda *given: levels(*given, 3, False),
    "shuffled levels": lambda *given: levels(*given, 3, True),
    "powers": powers,
    "noise": noise,
    "ordered": ordered,
    "outlier": outlier,
    "first apart": first_apart,
}


def variance_errors(kind, dtype, n, rows, seed=0):
    """The relative errors of 64 channels, in roundings of float32; against sums in float64."""
    x = BAD[kind](np.random.default_rng(seed), 64, n).astype(np.float32).astype(dtype)
    x = np.ascontiguousarray(x.T) if rows else x[np.newaxis]
    m2, exact = bncore.moments(x).m2, bncore.moments(x, dtype=np.float64).m2
    positive = exact > 0.0
    return np.abs(m2 - exact)[positive] / exact[positive] / tolerances.EPS32


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("kind", BAD)
def test_bad_data(kind, dtype):
    """A block's squares are right to 6 roundings, and at most 16 times those about its mean."""
    with bncore.use_backend("numpy"):  # all backends have the same bits
        errors = [
            variance_errors(kind, dtype, n, rows).max()
            for n in (16, 61, 128, 1000, 4096, 8192)
            for rows in (False, True)
        ]
    assert 0.0 < max(errors) <= tolerances.VARIANCE_BAD_SIXTEEN


def test_the_worst_data_found():
    """What docs/numerics.md states, of 20 seeds, 8 sizes and both layouts of each kind."""
    error = variance_errors("first apart", np.float16, 200, True, seed=6).max()
    assert 17.5 <= error <= 17.7


def test_the_sums_of_bad_data_in_float64_are_exact(backend):
    """What the test above measures against."""
    x = first_apart(np.random.default_rng(1), 3, 5000).astype(np.float16)[np.newaxis]
    moments = bncore.moments(x, dtype=np.float64)
    for m2, exact in zip(moments.m2, oracle.channel_moments(x), strict=True):
        assert oracle.relative_error(m2, exact.m2) <= tolerances.VARIANCE_OUTLIER


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("mean", [0.0, 0.3, 0.7])
def test_an_infinite_gradient_gives_infinite_sums(backend, dtype, mean):
    """As in float32: nothing makes NaN of it where x is not the mean."""
    x, dy = np.full((1, 1, 64), 2.0), np.ones((1, 1, 64))
    dy[0, 0, 5] = np.inf
    given = np.array([mean]), np.ones(1)
    x, dy = x.astype(dtype), dy.astype(dtype)
    _, dweight, dbias = bncore.batch_norm_infer_backward(dy, x, *given, None)
    assert dweight == np.inf
    assert dbias == np.inf
