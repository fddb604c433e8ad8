"""16-bit data in the norms that are built on batch norm: results are rounded once.

The expected results are bncore's in float64, on the same stored values.
"""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
from arrays import SIXTEEN_BITS

SHAPE = (6, 8, 5)
FORWARD = 0.51  # ulp of the 16-bit type: half of one for the rounding, and the error of float32
GRADIENT = 0.52


def unit(expected, dtype):
    """The unit of the last place of a 16-bit type at these values."""
    digits, least = (10, -24) if dtype == np.float16 else (7, -133)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(expected)))
    return np.exp2(np.maximum(exponent - digits, least))


def errors(got, expected):
    return np.abs(got.astype(np.float64) - expected)


def ulps(got, expected):
    """The largest error in units of the last place of the 16-bit type."""
    return float((errors(got, expected) / unit(expected, got.dtype)).max())


def float32_error(terms):
    """8 units of the last place of float32 at the largest term of a gradient, which may cancel."""
    return 8 * 2.0**-24 * float(np.abs(terms).max())


def given(rng, dtype):
    x = (rng.standard_normal(SHAPE) * 1.5 + 2.0).astype(dtype)
    dy = rng.standard_normal(SHAPE).astype(dtype)
    weight = rng.choice([-1.0, 1.0], SHAPE[1]) * rng.uniform(0.5, 2.0, SHAPE[1])
    return x, dy, weight.astype(np.float32), rng.standard_normal(SHAPE[1]).astype(np.float32)


def norms(x, weight, bias):
    """Every norm with its gradient function, as calls of x alone and of dy, x and moments."""
    row_weight, row_bias = np.resize(weight, x.shape[-1]), np.resize(bias, x.shape[-1])
    tiny = weight.copy()
    tiny[[0, 3]] = 0.0, 1e-9  # their gradients take the way over a temporary array
    running = np.full(x.shape[1], 1.5), np.full(x.shape[1], 2.0)
    return {
        "group": (
            lambda x: bncore.group_norm(x, 2, weight, bias),
            lambda dy, x, m: bncore.group_norm_backward(dy, x, m, 2, weight),
        ),
        "group, small weights": (
            lambda x: bncore.group_norm(x, 4, tiny, bias),
            lambda dy, x, m: bncore.group_norm_backward(dy, x, m, 4, tiny),
        ),
        "group without a weight": (
            lambda x: bncore.group_norm(x, 4),
            lambda dy, x, m: bncore.group_norm_backward(dy, x, m, 4),
        ),
        "instance": (
            lambda x: bncore.instance_norm(x, weight, bias),
            lambda dy, x, m: bncore.instance_norm_backward(dy, x, m, weight),
        ),
        "layer": (
            lambda x: bncore.layer_norm(x, row_weight, row_bias),
            lambda dy, x, m: bncore.layer_norm_backward(dy, x, m, row_weight),
        ),
        "layer without a weight": (
            bncore.layer_norm,
            lambda dy, x, m: bncore.layer_norm_backward(dy, x, m),
        ),
        "ghost": (
            lambda x: bncore.ghost_batch_norm(x, 4, weight, bias),
            lambda dy, x, m: bncore.ghost_batch_norm_backward(dy, x, m, 4, weight),
        ),
        "renorm": (
            lambda x: bncore.batch_renorm(x, *running, weight, bias)[:2],
            lambda dy, x, m: bncore.batch_renorm_backward(
                dy, x, m, bncore.batch_renorm(x, *running)[2], weight
            ),
        ),
    }


NAMES = list(norms(np.zeros(SHAPE), *np.ones((2, SHAPE[1]))))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_norm_rounds_once(backend, rng, dtype, name, order):
    x, dy, weight, bias = given(rng, dtype)
    x, dy = x.copy(order=order), dy.copy(order=order)
    forward, backward = norms(x, weight, bias)[name]
    y, moments = forward(x)
    exact, exact_moments = forward(x.astype(np.float64))
    assert y.dtype == dtype
    assert ulps(y, exact) <= FORWARD
    dx, dweight, dbias = backward(dy, x, moments)
    exact_dx, *sums = backward(dy.astype(np.float64), x.astype(np.float64), exact_moments)
    assert dx.dtype == dtype
    allowed = GRADIENT * unit(exact_dx, dtype) + float32_error(exact_dx)
    assert (errors(dx, exact_dx) <= allowed).all()
    for got, wanted in zip((dweight, dbias), sums, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_layer_norm_is_that_of_float32_rounded_once(backend, rng, dtype):
    x, dy, weight, bias = given(rng, dtype)
    row, shift = weight[:5], bias[:5]
    y, moments = bncore.layer_norm(x, row, shift)
    wide, same = bncore.layer_norm(x.astype(np.float32), row, shift)
    assert moments == same
    assert arrays.same_bits(y, wide.astype(dtype))
    dx, *sums = bncore.layer_norm_backward(dy, x, moments, row)
    wide, *wanted = bncore.layer_norm_backward(
        dy.astype(np.float32), x.astype(np.float32), moments, row
    )
    assert arrays.same_bits(dx, wide.astype(dtype))
    assert all(map(arrays.same_bits, sums, wanted))
    target = x.copy()
    bncore.layer_norm(target, row, shift, out=target)
    assert arrays.same_bits(target, y)
    bncore.layer_norm_backward(dy, x, moments, row, out=dy)
    assert arrays.same_bits(dy, dx)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_a_folded_weight_is_rounded_once(rng, dtype):
    weight = rng.standard_normal((4, 3, 2, 2)).astype(dtype)
    mean, var = rng.standard_normal(4).astype(dtype), rng.uniform(0.5, 2.0, 4).astype(dtype)
    got = bncore.fold_into_conv(weight, None, mean, var, mean)
    exact = bncore.fold_into_conv(
        weight.astype(np.float64), None, *(a.astype(np.float64) for a in (mean, var, mean))
    )
    for one, other in zip(got, exact, strict=True):
        assert one.dtype == dtype
        assert ulps(one, other) <= 0.5
    last = weight.transpose(2, 3, 1, 0).copy(order="F")
    moved, _ = bncore.fold_into_conv(last, None, mean, var, mean, layout="HWIO")
    assert moved.strides == last.strides
    assert arrays.same_bits(moved.transpose(3, 2, 0, 1), got[0])
    scale, _ = bncore.as_scale_shift(mean, var)
    assert scale.dtype == np.float64


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_running_statistics_are_rounded_once(backend, dtype):
    """In any layout and byte order; the second step lies just above a half between two numbers."""
    half = 2.0**-11 if dtype == np.float16 else 2.0**-8
    value = 1.0 + half + 2.0**-40
    expected = 1.0 + 2 * half
    for swapped in (False, True):
        memory = np.zeros(8, np.dtype(dtype).newbyteorder(">") if swapped else dtype)
        mean, var = memory[:4][::2], memory[4:]
        var = var[::-2]
        moments = bncore.Moments(3, [value, -value], [3 * value, 3.0])
        bncore.update_running_stats(mean, var, moments, momentum=1.0, correction=0)
        assert mean.astype(np.float64).tolist() == [expected, -expected]
        assert var.astype(np.float64).tolist() == [expected, 1.0]
