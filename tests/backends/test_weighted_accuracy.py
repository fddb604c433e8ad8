"""Weighted moments, outputs and gradients against exact rational arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import gates
import oracle
import tolerances
import weighted
from arrays import FLOATS

pytestmark = pytest.mark.usefixtures("weights_taken")

SHAPES = [(5, 3, 49), (1, 2, 4103), (613, 3, 1), (70, 5, 3)]
KINDS = [kind for kind in weighted.KINDS if kind != "late"]


EXACT = {}  # every backend is measured on the same data


def exact(case):
    x, w = weighted.in_numbers(case.x), case.w
    key = gates.digest(x), gates.digest(w)
    if key not in EXACT:
        EXACT[key] = oracle.weighted_moments(x, w)
    return EXACT[key]


def assert_moments(got, name, expected):
    for c, exactly in enumerate(expected):
        assert oracle.relative_error(got[f"{name}.count"][c], exactly.count) <= tolerances.WEIGHTED
        size = max(abs(float(exactly.mean)), float(exactly.var) ** 0.5)
        error = abs(float(oracle.Fraction(float(got[f"{name}.mean"][c])) - exactly.mean))
        assert error <= tolerances.MEAN * size
        assert oracle.relative_error(got[f"{name}.m2"][c], exactly.m2) <= tolerances.WEIGHTED


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_outputs_and_gradients(backend, rng, shape, kind, dtype):
    for fill in (None, 0.5):
        case = weighted.make_case(rng, shape, dtype, kind, fill)
        expected, got, w = exact(case), weighted.run(case), case.w
        assert_moments(got, "moments", expected)
        counts = w != 0.0
        x, dy = np.where(counts, case.x, 0.0).astype(dtype), case.dy
        forward = oracle.forward(x, expected, case.weight, case.bias, weighted.EPS)
        error = oracle.forward_error(got["train.y"], forward, counts)
        assert error <= tolerances.forward(dtype)
        if fill is not None:
            assert (got["train.y"][~counts] == fill).all()
        # where x is NaN and does not count, no exact gradient reaches it
        lost = np.isnan(case.x) & (fill is None) & (dy != 0.0)
        case = case.with_values("dy", lost, 0.0)
        got, dy = weighted.run(case), case.dy
        seen = dy if fill is None else np.where(counts, dy, 0.0).astype(dtype)
        x = np.where(np.isnan(case.x), 0.0, case.x).astype(dtype)
        backward = oracle.backward(seen, x, expected, case.weight, weighted.EPS, weights=w)
        for name in ("steps", "train_backward"):
            assert oracle.gradient_error(got[f"{name}.dx"], backward) <= tolerances.gradient(dtype)
            sums = got[f"{name}.dweight"], got[f"{name}.dbias"]
            assert oracle.sums_error(*sums, backward) <= tolerances.GRADIENT_FLOAT64


@pytest.mark.parametrize("kind", ["mask", "numbers", "omit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mean_far_from_0(backend, rng, shape, kind):
    case = weighted.make_case(rng, shape, np.float64, kind, mean=1e6)
    got = weighted.run(case)
    assert_moments(got, "moments", exact(case))
    assert_moments(got, "train", exact(case))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5, 3, 49), (613, 3, 1)], ids=str)
def test_whole_numbers_are_so_many_copies(backend, rng, shape, dtype):
    times = rng.integers(0, 4, (shape[0], 1, 1))
    case = weighted.make_case(rng, shape, dtype, "mask")
    case = case.with_values("x", case.w == 0.0, 1.0)
    values = np.array(np.broadcast_to(times, weighted.shared(shape)), np.float64)
    given = case.given._replace(values=values, count=np.empty(shape[1]))
    copies = np.repeat(case.x, times.ravel(), axis=0)
    mean, m2, plain_mean, plain_m2 = np.empty((4, shape[1]))
    kernels = bncore.backends.current().kernels
    kernels.moments(mean, m2, case.x, 1, False, given)
    kernels.moments(plain_mean, plain_m2, copies, 1)
    assert (given.count == copies.size / shape[1]).all()
    np.testing.assert_allclose(mean, plain_mean, rtol=tolerances.WEIGHTED)
    np.testing.assert_allclose(m2, plain_m2, rtol=tolerances.WEIGHTED)


def loss(case, x, dy, count):
    """The sum of dy * y of a weighted call."""
    mean, m2, y = np.empty(len(count)), np.empty(len(count)), np.empty_like(x)
    given = case.given._replace(count=count)
    parameters = case.weight, case.bias, weighted.EPS, 1, None, given
    bncore.backends.current().kernels.train(y, mean, m2, x, *parameters)
    return float((dy * y).sum())


@pytest.mark.parametrize("fill", [None, 0.5], ids=["formula", "fill"])
@pytest.mark.parametrize("kind", ["mask", "numbers shared", "numbers"])
def test_differences(backend, rng, kind, fill):
    """Sixth-order central differences of the loss, at values of every weight."""
    shape = (6, 2, 5)
    case = weighted.make_case(rng, shape, np.float64, kind, fill)
    case = case.with_values("x", np.isnan(case.x), 2.0)
    dx, count = weighted.run(case)["train_backward.dx"], np.empty(shape[1])
    size, step = np.abs(dx).max(), 1e-2
    for index in np.ndindex(shape):
        slope = 0.0
        for k, factor in ((1, 0.75), (2, -0.15), (3, 1 / 60)):
            for sign in (1, -1):
                x = case.x.copy()
                x[index] += sign * k * step
                slope += sign * factor * loss(case, x, case.dy, count) / step
        assert abs(slope - dx[index]) <= tolerances.CENTRAL_DIFFERENCES * size, index
