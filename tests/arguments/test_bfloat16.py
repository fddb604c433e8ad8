"""bfloat16: recognized without ml_dtypes, and rounded once, as exact arithmetic does."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import bncore
from bncore.arguments import bfloat16
from bncore.arguments.arrays import cast
from bncore.arguments.float_environment import silent_arithmetic

ml_dtypes = pytest.importorskip("ml_dtypes", reason="for bfloat16")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FINITE = np.arange(0x7F80, dtype=np.uint16)  # the bits of every finite number >= 0


def values_of(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def near(values):
    """float64 at, and on either side of, all numbers and all halves between them."""
    above = np.append(values[1:], 2.0**128)
    halves = (values + above) / 2
    points = np.concatenate([values, halves])
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, 0.0)])


def nearest_even(value: float, bits: int) -> int:
    """Find the bits of the nearest number by exact comparison, starting from a neighbour."""
    candidates = range(max(bits - 1, 0), min(bits + 2, 0x7F81))

    def distance(candidate):
        number = 2.0**128 if candidate == 0x7F80 else float(values_of(np.uint16([candidate]))[0])
        return abs(Fraction(value) - Fraction(number)), candidate & 1

    return min(candidates, key=distance)


def test_every_rounding_of_float64():
    points = near(values_of(FINITE))
    below = np.searchsorted(values_of(FINITE), points, side="right") - 1
    got = bfloat16.rounded(points)
    # Everything against the neighbours' halves, in float64, which holds them.
    lower = values_of(FINITE)[below]
    upper = np.append(values_of(FINITE), 2.0**128)[below + 1]
    half = (lower + upper) / 2
    up = (points > half) | ((points == half) & (below % 2 == 1))
    assert np.array_equal(got, below + up)
    assert np.array_equal(bfloat16.rounded(-points), (below + up) | 0x8000)


@pytest.mark.parametrize(
    "value", [1.0, 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-45, 3e-41, 3.4e38]
)
def test_some_roundings_against_fractions(value):
    (got,) = bfloat16.rounded(np.array([value])).tolist()
    assert got == nearest_even(value, got)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="longdouble is float64 here")
def test_longdouble_is_rounded_once():
    """Also where rounding to float64 first would end between two numbers of bfloat16."""
    tiny = np.longdouble(2) ** -60
    half = np.longdouble(1) + np.longdouble(2) ** -8
    given = np.array([half + tiny, half, half - tiny, -half - tiny, half + 2.0**-7 - tiny])
    got = cast(given, BFLOAT16).astype(np.float64)
    assert got.tolist() == [1 + 2.0**-7, 1.0, 1.0, -1 - 2.0**-7, 1 + 2.0**-7]


def test_special_values():
    given = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300, -0.0, 1e-300])
    with silent_arithmetic():
        got = bfloat16.rounded(given).view(BFLOAT16).astype(np.float64)
    assert np.array_equal(got, [np.inf, -np.inf, np.nan, np.inf, -np.inf, 0, 0], equal_nan=True)
    assert np.signbit(got[5])
    # NaNs of float32 whose upper half alone would be an infinity, and whose lower half would carry.
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    bits = bfloat16.rounded_float32(nans)
    assert bits.tolist() == [0x7FC0, 0xFFC0, 0x7FFF, 0xFFFF]


def test_float32_is_rounded_as_ml_dtypes_does(rng):
    values = rng.integers(0, 2**32, 100000, np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    got = bfloat16.rounded_float32(values)
    with np.errstate(all="ignore"):
        assert np.array_equal(got, values.astype(BFLOAT16).view(np.uint16))


@pytest.mark.parametrize("order", ["=", ">"])
def test_casts_in_either_byte_order(order):
    dtype = BFLOAT16.newbyteorder(order)
    stored = cast(np.array([1.5, -2.0, 1 + 2.0**-8 + 2.0**-40]), dtype)
    assert stored.dtype == dtype
    assert cast(stored, np.float64).tolist() == [1.5, -2.0, 1 + 2.0**-7]
    assert bfloat16.bits(stored).tolist() == [0x3FC0, 0xC000, 0x3F81]


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_gradients_are_rounded_once(backend, dtype):
    """Also where rounding to float32 first would end between two numbers of 16 bits."""
    step = 2.0**-10 if dtype == np.float16 else 2.0**-7
    sums = np.array([1 + step / 2 + 2.0**-40, 1 + 3 * step / 2 - 2.0**-40, 1 + step / 2, 1e6, 1e39])
    sums = np.concatenate([sums, -sums, [np.nan, 1e-7, 2.0**-133]])[None]
    weight = np.ones(sums.shape[1], dtype)
    for dy in (sums, sums.copy(order="F")[:, ::-1][:, ::-1]):
        got = bncore.batch_norm_infer_backward(dy, dy, *np.ones((2, weight.size)), weight)[2]
        with silent_arithmetic():
            half = sums[0].astype(np.float16)
            expected = half if dtype == np.float16 else bfloat16.rounded(sums[0]).view(BFLOAT16)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("strided", [False, True])
def test_the_dtype_of_adapters_needs_no_ml_dtypes(backend, rng, strided):
    """The same bits as with ml_dtypes' dtype, in results of the private one."""
    x = rng.standard_normal((6, 4, 5)).astype(BFLOAT16)
    weight, mean, var = rng.random((3, 4)).astype(BFLOAT16)
    results = []
    for dtype in (BFLOAT16, bfloat16.PRIVATE):
        given = x.view(dtype)[:, :, ::2] if strided else x.view(dtype)
        parameters = [a.copy().view(dtype) for a in (weight, mean, var)]
        y, moments = bncore.batch_norm_train(given, parameters[0], residual=given)
        dx, dweight, _ = bncore.batch_norm_train_backward(y, given, moments, parameters[0])
        bncore.update_running_stats(*parameters[1:], moments)
        results.append((y, dx, dweight, *parameters))
    for a, b in zip(*results, strict=True):
        assert (a.dtype, b.dtype) == (BFLOAT16, bfloat16.PRIVATE)
        assert np.array_equal(bfloat16.bits(a), bfloat16.bits(b))


def test_other_dtypes_of_ml_dtypes_are_refused(backend):
    for name in ("float8_e4m3fn", "float8_e5m2"):
        x = np.ones((4, 3), getattr(ml_dtypes, name))
        with pytest.raises(TypeError, match=f"^x: expected float16, bfloat16, .* got {name}"):
            bncore.moments(x)
    x = np.zeros((4, 3), "V2")  # two bytes, as bfloat16 has, but no number
    with pytest.raises(TypeError, match=f"^x: expected float16, bfloat16, .* got .*{x.dtype}"):
        bncore.moments(x)


def test_arrays_that_have_to_agree(backend):
    x, half = np.ones((4, 3), BFLOAT16), np.ones((4, 3), np.float16)
    ones = np.ones(3)
    for other in (half, x.astype(np.float32)):
        with pytest.raises(TypeError, match=r"^out: expected bfloat16, got float"):
            bncore.batch_norm_infer(x, ones, ones, out=other)
        with pytest.raises(TypeError, match=r"^residual: expected bfloat16, got float"):
            bncore.batch_norm_train(x, residual=other)
        with pytest.raises(TypeError, match=r"^dy: expected bfloat16, got float"):
            bncore.grad_sums(other, x, bncore.moments(x))
    with pytest.raises(TypeError, match=r"^out: expected float16, got bfloat16"):
        bncore.batch_norm_infer(half, ones, ones, out=x)
    with pytest.raises(ValueError, match=r"^negative_slope: expected .* to 3.40282e\+38, got 1e"):
        bncore.batch_norm_train(x, activation="leaky_relu", negative_slope=1e39)


def test_ml_dtypes_is_not_imported():
    """Neither by the package, nor to recognize an array or a dtype."""
    code = (
        "import sys, numpy as np, bncore\n"
        "bncore.batch_norm_train(np.ones((4, 3), np.float16))\n"
        "bncore.BatchNorm(dtype=np.float16)(np.ones((4, 3), np.float16))\n"
        "assert 'ml_dtypes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
