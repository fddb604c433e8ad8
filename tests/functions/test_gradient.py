"""Gradients against extended precision and central differences; identities; composition."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arrays
import bncore
import operations
import oracle
import tolerances
import variants
from arrays import EDGE_SHAPES, FLOATS, LAYOUTS, VALUES
from differences import stencil_difference

RATIOS = (1.0, 1e2, 1e4, 1e6)
LARGE = [(4, 4, 157, 160), (100480, 4)]  # 1e5 values per channel, as planes and as rows


@cache
def large_case(shape, dtype, with_weight):
    rng = np.random.default_rng(5)
    ratios = np.array(RATIOS if dtype == np.float32 else (0.0, 1.0, 10.0, 100.0))
    x = rng.standard_normal(shape) + ratios.reshape((-1,) + (1,) * (len(shape) - 2))
    dy = rng.standard_normal(shape) + np.linspace(-1, 1, shape[1]).reshape(
        (-1,) + (1,) * (len(shape) - 2)
    )
    x, dy = x.astype(dtype), dy.astype(dtype)
    weight = arrays.parameters(rng, shape[1])[0] if with_weight else None
    return dy, x, weight, oracle.backward(dy, x, oracle.channel_moments(x), weight)


@pytest.mark.parametrize("with_weight", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("shape", LARGE, ids=["planes", "rows"])
def test_gate_float32(backend, shape, with_weight):
    """mean/std 1, 1e2, 1e4, 1e6, in ulp of the largest term."""
    dy, x, weight, expected = large_case(shape, np.float32, with_weight)
    moments = bncore.moments(x)
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, moments, weight)
    assert oracle.gradient_error(dx, expected) <= tolerances.GRADIENT_ULP
    assert oracle.sums_error(dweight, dbias, expected) <= 2 * tolerances.EPS32


@pytest.mark.parametrize("with_weight", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("shape", LARGE, ids=["planes", "rows"])
def test_gate_float64(backend, shape, with_weight):
    dy, x, weight, expected = large_case(shape, np.float64, with_weight)
    moments = bncore.moments(x)
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, moments, weight)
    assert oracle.gradient_error(dx, expected) <= tolerances.GRADIENT_FLOAT64
    assert oracle.sums_error(dweight, dbias, expected) <= tolerances.GRADIENT_FLOAT64


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("kind", "eps"),
    [
        *[(kind, 1e-5) for kind in ("normal", "alternating", "sorted", "tiny_spread")],
        # The ends of the range. With eps = 0 a subnormal std has no finite inverse, so not there.
        *[("huge", 0.0), ("huge", 1e-5), ("tiny", 0.0), ("subnormal", 1e-5), ("subnormal", 1e-30)],
    ],
)
def test_edge_shapes(dtype, kind, eps):
    rng = np.random.default_rng(13)
    for shape in EDGE_SHAPES:
        case = operations.replace(operations.make_case(rng, shape, dtype, kind), eps=eps)
        if case.x.size > 20000:
            continue  # the gates have size; these are about edges
        exact = oracle.channel_moments(case.x)
        expected = oracle.backward(case.dy, case.x, exact, case.weight, eps)
        for variant in variants.FOUND.present:
            with variant.active():
                got = operations.train_backward(operations.replace(case))
            error = oracle.gradient_error(got["dx"], expected)
            assert error <= tolerances.gradient(dtype), (shape, variant)
            error = oracle.sums_error(got["dweight"], got["dbias"], expected)
            assert error <= tolerances.GRADIENT_FLOAT64, (shape, variant)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_frozen_statistics(backend, rng, dtype, eps):
    """infer_backward: mean and var are constants, so dx is dy scaled."""
    case = operations.make_case(rng, (6, 4, 37), dtype)
    given = [
        oracle.ExactMoments(1, Fraction(m), Fraction(v))
        for m, v in zip(case.mean, case.var, strict=True)
    ]
    expected = oracle.backward(case.dy, case.x, given, case.weight, eps, frozen=True)
    dx, dweight, dbias = bncore.batch_norm_infer_backward(
        case.dy, case.x, case.mean, case.var, case.weight, eps=eps
    )
    frozen = oracle.Forward(expected.dx, np.abs(expected.dx), np.zeros(()))
    assert oracle.forward_error(dx, frozen) <= tolerances.forward(dtype)
    assert oracle.sums_error(dweight, dbias, expected) <= tolerances.GRADIENT_FLOAT64


# Weights of the sixth-order central difference at steps 1, 2, 3.
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "infer"])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 4)], ids=str)
def test_stencil_differences(backend, rng, shape, frozen):
    """The gradient of sum(r * y), from bncore's own forward."""
    x, r = rng.standard_normal((2, *shape))
    weight, bias = arrays.parameters(rng, shape[1])
    mean, var = rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
    eps = 0.1

    def loss(x, weight, bias):
        if frozen:
            y = bncore.batch_norm_infer(x, mean, var, weight, bias, eps=eps)
        else:
            y, _ = bncore.batch_norm_train(x, weight, bias, eps=eps)
        return float((r * y).sum())

    if frozen:
        got = bncore.batch_norm_infer_backward(r, x, mean, var, weight, eps=eps)
    else:
        got = bncore.batch_norm_train_backward(r, x, bncore.moments(x), weight, eps=eps)
    for position, gradient in enumerate(got):
        size = np.abs(gradient).max()
        for index in np.ndindex(gradient.shape):
            numeric = stencil_difference(loss, [x, weight, bias], position, index, 1e-2)
            assert abs(numeric - gradient[index]) <= tolerances.CENTRAL_DIFFERENCES * size


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
@pytest.mark.parametrize("shape", [(16, 4, 12, 13), (3000, 4)], ids=str)
def test_identities(backend, rng, shape, eps, dtype):
    """sum(dx) = 0 and sum(dx * xhat) = weight * invstd * sum(dy * xhat) * eps / (var + eps).

    The second is 0 for eps = 0. Bounds are relative to the sums of absolute values.
    """
    case = operations.make_case(rng, shape, dtype)
    moments = case.moments
    dx, dweight, _ = bncore.batch_norm_train_backward(
        case.dy, case.x, moments, case.weight, eps=eps
    )
    tolerance = tolerances.IDENTITY_FLOAT32 if dtype == np.float32 else tolerances.IDENTITY_FLOAT64
    exact = oracle.channel_moments(case.x)
    xhat = oracle.centered(case.x, exact, eps).xhat
    axes = (0, *range(2, len(shape)))
    wide = dx.astype(np.longdouble)
    scale = np.abs(wide).sum(axis=axes)
    assert (np.abs(wide.sum(axis=axes)) <= tolerance * scale).all()
    var = moments.var()
    left_over = case.weight * moments.invstd(eps) * dweight * eps / (var + eps)
    scale = np.abs(wide * xhat).sum(axis=axes) + np.abs(left_over)
    assert (np.abs((wide * xhat).sum(axis=axes) - left_over) <= tolerance * scale).all()


def float_types():
    return st.sampled_from(FLOATS)


@st.composite
def shapes(draw):
    rank = draw(st.integers(2, 5))
    longest = {2: 300, 3: 40, 4: 9, 5: 5}[rank]
    return tuple(draw(st.integers(1, longest)) for _ in range(rank))


@given(
    shape=shapes(),
    dtype=float_types(),
    layout=st.sampled_from(LAYOUTS),
    eps=st.sampled_from([1e-5, 1e-2, 1.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_layout(shape, dtype, layout, eps, weighted, seed):
    """Forward and backward are within their gates, and results have x's memory order."""
    if shape[0] * int(np.prod(shape[2:])) < 2:
        return
    rng = np.random.default_rng(seed)
    plain = operations.make_case(
        rng, shape, dtype, parameter_dtype=np.float64 if weighted else None
    )
    case = operations.replace(plain.laid_out(layout), eps=eps)
    exact = oracle.channel_moments(plain.x)
    forward = oracle.forward(plain.x, exact, plain.weight, plain.bias, eps)
    backward = oracle.backward(plain.dy, plain.x, exact, plain.weight, eps)
    for variant in variants.FOUND.present:
        with variant.active():
            results = operations.run_all(operations.replace(case))
        y, dx = results["train.y"], results["train_backward.dx"]
        for result in (y, dx):
            assert arrays.memory_order(result) == arrays.memory_order(case.x), variant
        error = oracle.forward_error(layout.plain(y), forward)
        assert error <= tolerances.forward(dtype), variant
        error = oracle.gradient_error(layout.plain(dx), backward)
        assert error <= tolerances.gradient(dtype), variant
        assert arrays.same_bits(y, results["normalize.y"]), variant
        assert arrays.same_bits(dx, results["grad_input.dx"]), variant


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("parameter_dtype", [None, np.float16, np.float32, np.float64])
def test_parameter_gradients_are_the_sums_in_their_type(backend, rng, dtype, parameter_dtype):
    case = operations.make_case(rng, (9, 5, 11), dtype, parameter_dtype=parameter_dtype)
    _, dweight, dbias = bncore.batch_norm_train_backward(case.dy, case.x, case.moments, case.weight)
    expected = parameter_dtype or dtype
    assert dweight.dtype == dbias.dtype == expected
    assert arrays.same_bits(dweight, case.sums.sum_dy_xhat.astype(expected))
    assert arrays.same_bits(dbias, case.sums.sum_dy.astype(expected))


@pytest.mark.parametrize("dtype", FLOATS)
def test_micro_batches_make_the_whole(backend, rng, dtype):
    """Merged moments, added sums and one grad_input per piece give the whole batch's gradient."""
    x, dy = VALUES["normal"](rng, (2, 30, 4, 25), dtype)
    weight, _ = arrays.parameters(rng, 4)
    cuts = [7, 8, 22]
    xs, dys = np.split(x, cuts), np.split(dy, cuts)
    merged = bncore.moments(xs[0])
    for piece in xs[1:]:
        merged = merged.merge(bncore.moments(piece))
    sums = bncore.grad_sums(dys[0], xs[0], merged)
    for g, piece in zip(dys[1:], xs[1:], strict=True):
        sums = sums + bncore.grad_sums(g, piece, merged)
    pieces = [
        bncore.grad_input(g, piece, merged, sums, weight) for g, piece in zip(dys, xs, strict=True)
    ]
    expected = oracle.backward(dy, x, oracle.channel_moments(x), weight)
    dx = np.concatenate(pieces)
    assert oracle.gradient_error(dx, expected) <= tolerances.gradient(dtype)
    error = oracle.sums_error(sums.sum_dy_xhat, sums.sum_dy, expected)
    assert error <= tolerances.GRADIENT_FLOAT64


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spoiled", ["x", "dy"])
@pytest.mark.parametrize("shape", [(9, 4, 40), (2100, 4)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(backend, rng, dtype, spoiled, shape):
    clean = operations.make_case(rng, shape, dtype)
    expected = operations.run_all(clean)
    others = np.arange(4) != 2
    for spoiler in (np.nan, np.inf, -np.inf):
        array = getattr(clean, spoiled).copy()
        array[5, 2] = spoiler
        got = operations.run_all(operations.replace(clean, **{spoiled: array}))
        assert not np.isfinite(got["train_backward.dx"][:, 2]).any()
        for key, value in got.items():
            keep = (slice(None), others) if value.ndim > 1 else others
            assert arrays.same_bits(value[keep], expected[key][keep]), key


@pytest.mark.parametrize("shape", arrays.EMPTY_SHAPES, ids=str)
def test_empty_batches_have_zero_gradients(backend, shape):
    x = np.empty(shape, np.float32)
    for dx, dweight, dbias in (
        bncore.batch_norm_train_backward(x, x, bncore.moments(x)),
        bncore.batch_norm_infer_backward(x, x, np.zeros(shape[1]), np.ones(shape[1])),
    ):
        assert dx.shape == shape
        np.testing.assert_array_equal(dweight, np.zeros(shape[1], np.float32))
        np.testing.assert_array_equal(dbias, np.zeros(shape[1], np.float32))
