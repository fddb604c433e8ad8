"""Masks, weights and omitted NaN against exact results: every function, layout and backend."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import oracle
import tolerances
import variants
import weight_cases
from arrays import LAYOUTS, Layout
from oracle import relative_error

SHAPE = (9, 3, 4, 7)
# Planes with more than a block, rows that are gathered, rows of many columns, several segments.
SHAPES = [(2, 2, 4111), (300, 3), (86, 5, 3), (9, 40), (3, 1, 17), (600, 16)]
KINDS = [*weight_cases.KINDS, "omitted_nan"]


def made(rng, kind: str, shape, dtype) -> tuple[np.ndarray, np.ndarray, weight_cases.Counts]:
    """Return x, dy and what counts."""
    x, dy = arrays.normal(rng, shape, dtype), arrays.normal(rng, shape, dtype, 0.0)
    if kind == "omitted_nan":
        x, counts = weight_cases.omitting(rng, x)
    else:
        counts = weight_cases.KINDS[kind](rng, shape)
    dy[(counts.w == 0) & (rng.random(shape) < 0.5)] = 0  # both kinds of values without weight
    if kind == "omitted_nan":
        dy[counts.w == 0] = 0
    return x, dy, counts


def without_nan(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), x.dtype.type(0), x)


def assert_moments(got: bncore.Moments, exact: list[oracle.ExactMoments]) -> None:
    for c, want in enumerate(exact):
        assert relative_error(got.count[c], want.count) <= tolerances.WEIGHTED
        size = max(abs(float(want.mean)), float(want.var) ** 0.5)
        assert abs(got.mean[c] - float(want.mean)) <= tolerances.MEAN * size
        assert relative_error(got.m2[c], want.m2) <= tolerances.WEIGHTED
        assert relative_error(got.var()[c], want.var) <= tolerances.WEIGHTED


def assert_all(rng, x, dy, counts: weight_cases.Counts, layout: Layout, dtype) -> None:
    """Compare every function that computes batch norm with the exact results."""
    weight, bias = arrays.parameters(rng, x.shape[1])
    exact = oracle.weighted_moments(without_nan(x), counts.w)
    given = counts.given(layout) | {"axis": layout.axis(x.ndim)}
    there, slope = layout.build(x), layout.build(dy)

    moments = bncore.moments(there, **given)
    y, found = bncore.batch_norm_train(there, weight, bias, **given)
    assert found == moments
    assert_moments(moments, exact)
    expected = oracle.forward(without_nan(x), exact, weight, bias)
    plain = layout.plain(y).astype(dtype)
    assert (np.isnan(plain) == np.isnan(x)).all()
    plain = np.where(np.isnan(x), expected.y.astype(dtype), plain)
    assert oracle.forward_error(plain, expected) <= tolerances.forward(dtype)
    assert arrays.same_bits(bncore.normalize(there, moments, weight, bias, **given), y)
    infer = bncore.batch_norm_infer(there, moments.mean, moments.var(), weight, bias, **given)
    assert arrays.same_bits(infer, y)

    for fill in (None, 0.5):
        options = given | {"fill": fill}
        dx, *sums = bncore.batch_norm_train_backward(slope, there, moments, weight, **options)
        want = weight_cases.backward(
            dy, without_nan(x), counts.w, exact, weight, filled=fill is not None
        )
        got = layout.plain(dx).astype(dtype)
        assert oracle.gradient_error(got, want) <= tolerances.gradient(dtype)
        assert oracle.sums_error(*sums, want) <= tolerances.GRADIENT_FLOAT64
        halves = bncore.grad_sums(slope, there, moments, **options)
        assert arrays.same_bits(halves.sum_dy_xhat, sums[0])
        assert arrays.same_bits(halves.sum_dy, sums[1])
        again = bncore.grad_input(slope, there, moments, halves, weight, **options)
        assert arrays.same_bits(again, dx)

    filled, _ = bncore.batch_norm_train(there, weight, bias, **given, fill=0.5)
    assert arrays.same_bits(
        layout.plain(filled), np.where(counts.w == 0, np.array(0.5, dtype), layout.plain(y))
    )
    for other in (
        bncore.normalize(there, moments, weight, bias, **given, fill=0.5),
        bncore.batch_norm_infer(
            there, moments.mean, moments.var(), weight, bias, **given, fill=0.5
        ),
    ):
        assert arrays.same_bits(other, filled)


@pytest.mark.parametrize("dtype", arrays.FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout_gives_the_exact_result(rng, layout, kind, dtype):
    assert_all(rng, *made(rng, kind, SHAPE, dtype), layout, dtype)


@variants.taking_turns(shape=SHAPES, kind=KINDS, dtype=arrays.FLOATS)
def test_any_shape_gives_the_exact_result(backend, rng, shape, kind, dtype):
    assert_all(rng, *made(rng, kind, shape, dtype), LAYOUTS[0], dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_type", arrays.SIXTEEN_BITS)
def test_sixteen_bits_are_those_of_float32_rounded_once(backend, rng, kind, of_type):
    x, dy, counts = made(rng, kind, (12, 3, 50), np.float32)
    x, dy = x.astype(of_type), dy.astype(of_type)
    wide, slope = x.astype(np.float32), dy.astype(np.float32)
    given = counts.given()
    y, moments = bncore.batch_norm_train(x, **given)
    want, exact = bncore.batch_norm_train(wide, **given)
    assert (moments.count == exact.count).all()
    np.testing.assert_allclose(moments.m2, exact.m2, rtol=96 * tolerances.EPS32)
    step = 2 * tolerances.EPS32 * 2**13 if of_type == np.float16 else 2.0**-7
    np.testing.assert_allclose(y.astype("f4"), want, rtol=step, atol=step)
    got = bncore.batch_norm_train_backward(dy, x, exact, **given)
    want = bncore.batch_norm_train_backward(slope, wide, exact, **given)
    for one, other in zip(got, want, strict=True):
        size = np.abs(other).max()
        np.testing.assert_allclose(one.astype("f4"), other, rtol=step, atol=step * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_fused_operations_are_the_separate_ones(backend, rng, kind, activation):
    """The activation's derivative times dy takes dy's place, also in what is skipped."""
    x, dy, counts = made(rng, kind, SHAPE, np.float64)
    residual = rng.standard_normal(SHAPE)
    weight, bias = arrays.parameters(rng, 3)
    fused = {"activation": activation, "residual": residual}
    for fill in (None, -2.0):
        given = counts.given() | {"fill": fill}
        y, moments = bncore.batch_norm_train(x, weight, bias, **fused, **given)
        plain, _ = bncore.batch_norm_train(x, weight, bias, **counts.given())
        z = plain + residual
        slope = 0.0 if activation == "relu" else 0.01
        with np.errstate(invalid="ignore"):
            want = np.where(z <= 0, slope * z if slope else 0.0, z)
        want = want if fill is None else np.where(counts.w == 0, fill, want)
        assert arrays.same_bits(y, want)
        dresidual = np.empty_like(x)
        options = {"bias": bias, "dresidual": dresidual, **fused, **given}
        got = bncore.batch_norm_train_backward(dy, x, moments, weight, **options)
        g = np.where(z <= 0, slope * dy if slope else 0.0, dy)
        expected = bncore.batch_norm_train_backward(g, x, moments, weight, **given)
        for one, other in zip(got, expected, strict=True):
            assert arrays.same_bits(one, other)
        assert arrays.same_bits(dresidual, g if fill is None else np.where(counts.w == 0, 0.0, g))


@pytest.mark.parametrize("filled", [False, True])
def test_given_statistics_know_weights_for_fill_alone(backend, rng, filled):
    x, dy = rng.standard_normal((2, *SHAPE))
    counts = weight_cases.KINDS["full_weights"](rng, SHAPE)
    mean, var, weight = rng.standard_normal(3), rng.uniform(0.5, 2.0, 3), rng.standard_normal(3)
    options = {"fill": 3.0} if filled else {}
    got = bncore.batch_norm_infer_backward(dy, x, mean, var, weight, **counts.given(), **options)
    kept = np.where(counts.w == 0, 0.0, dy) if filled else dy
    want = bncore.batch_norm_infer_backward(kept, x, mean, var, weight)
    assert arrays.same_bits(got[0], np.where(kept == 0, 0.0, want[0]))
    for one, other in zip(got[1:], want[1:], strict=True):
        assert arrays.same_bits(one, other)
