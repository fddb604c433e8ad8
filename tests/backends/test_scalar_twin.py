"""The NumPy backend, the twin of the others, against `scalar_twin.py`: to the bit."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import scalar_twin
from arrays import FLOATS

EPS = 1e-5

# (outer, channels, inner), and what the additions go through there.
SHAPES = {
    (3, 2, 20): "planes, one block of short pieces",
    (2, 3, 16): "the narrowest planes",
    (5, 2, 49): "planes with a rest beside the lanes",
    (3, 2, 1700): "planes that gather into one block and begin the next",
    (2, 2, 4103): "planes longer than a block",
    (2, 1, 33000): "one channel: two segments",
    (7, 1, 3): "one channel, few values: planes",
    (6, 3, 5): "rows, not folded",
    (100, 3, 1): "rows, too few to fold",
    (256, 3, 1): "rows, folded, none short",
    (613, 3, 1): "rows, folded, the last one short",
    (150, 2, 15): "rows, folded, of several values per channel",
    (300, 257, 1): "rows, too wide to fold, two segments",
    (2100, 16, 1): "rows, folded, three segments",
    (1, 4, 1): "one value per channel",
    (0, 4, 3): "no value",
}


def assert_same(got: np.ndarray, expected: object, name: str) -> None:
    assert arrays.same_bits(got, np.asarray(expected, got.dtype)), name


@pytest.fixture
def reference():
    with bncore.use_backend("numpy"):
        yield


def test_the_shapes_take_every_way():
    kinds = {shape: scalar_twin.plan(*shape) for shape in SHAPES if shape[0]}
    segments = {
        kind: {
            len(
                list(scalar_twin.plane_blocks(plan[0], plan[2]))
                if kind == "planes"
                else scalar_twin.row_plan(*plan)[1]
            )
            for found, plan in kinds.values()
            if found == kind
        }
        for kind in ("planes", "rows")
    }
    assert segments == {"planes": {1, 2}, "rows": {1, 2, 3}}
    folded = {
        scalar_twin.row_plan(*plan)[0] > plan[1] * plan[2]
        for kind, plan in kinds.values()
        if kind == "rows"
    }
    assert folded == {True, False}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_operation(reference, rng, shape, affine, dtype):
    channels, count = shape[1], shape[0] * shape[2]
    x = (rng.standard_normal(shape) + 100.0).astype(dtype)
    if count:
        x[0, :, 0] = 1e6  # the first pivot is far off
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = arrays.parameters(rng, channels) if affine else (None, None)
    gamma, beta = (p if p is None else [float(v) for v in p] for p in (weight, bias))

    mean, m2 = scalar_twin.moments(x)
    moments = bncore.moments(x)
    assert_same(moments.mean, mean, "mean")
    assert_same(moments.m2, m2, "m2")
    if count == 0:
        return
    var = [m / count for m in m2]
    y = scalar_twin.normalize(x, mean, var, gamma, beta, EPS)
    assert_same(bncore.normalize(x, moments, weight, bias, eps=EPS), y, "normalize")
    sum_dy, sum_dy_xhat = scalar_twin.grad_sums(dy, x, mean, var, EPS)
    sums = bncore.grad_sums(dy, x, moments, eps=EPS)
    assert_same(sums.sum_dy, sum_dy, "sum_dy")
    assert_same(sums.sum_dy_xhat, sum_dy_xhat, "sum_dy_xhat")
    dx = scalar_twin.grad_input(dy, x, mean, var, sum_dy, sum_dy_xhat, count, gamma, EPS)
    assert_same(bncore.grad_input(dy, x, moments, sums, weight, eps=EPS), dx, "grad_input")
    if count > 1:
        assert_same(bncore.batch_norm_train(x, weight, bias, eps=EPS)[0], y, "train")
        got = bncore.batch_norm_train_backward(dy, x, moments, weight, eps=EPS)
        assert_same(got[0], dx, "train_backward")
    got = bncore.batch_norm_infer_backward(dy, x, moments.mean, moments.var(), weight, eps=EPS)
    assert_same(got[0], scalar_twin.infer_backward(dy, var, gamma, EPS), "infer_backward")
    assert_same(got[2], sum_dy, "dbias")
    assert_same(got[1], sum_dy_xhat, "dweight")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
@pytest.mark.parametrize("shape", [(5, 2, 49), (613, 3, 1), (6, 3, 5)], ids=str)
def test_what_is_fused(reference, rng, shape, activation, dtype):
    channels, count = shape[1], shape[0] * shape[2]
    x, dy, residual = rng.standard_normal((3, *shape)).astype(dtype)
    weight, bias = arrays.parameters(rng, channels)
    gamma, beta = ([float(v) for v in p] for p in (weight, bias))
    mean, m2 = scalar_twin.moments(x)
    var = [m / count for m in m2]
    options = {"eps": EPS, "activation": activation, "negative_slope": 0.2, "residual": residual}
    z = scalar_twin.normalize(x, mean, var, gamma, beta, EPS)
    y, moments = bncore.batch_norm_train(x, weight, bias, **options)
    assert_same(y, scalar_twin.fused(z, None, activation, 0.2, residual), "y")
    g = scalar_twin.fused(z, dy, activation, 0.2, residual)
    sums = scalar_twin.grad_sums(g, x, mean, var, EPS)
    dresidual = np.zeros_like(x)
    dx, dweight, dbias = bncore.batch_norm_train_backward(
        dy, x, moments, weight, bias=bias, dresidual=dresidual, **options
    )
    assert_same(dresidual, g, "dresidual")
    assert_same(dbias, sums[0], "dbias")
    assert_same(dweight, sums[1], "dweight")
    expected = scalar_twin.grad_input(g, x, mean, var, *sums, count, gamma, EPS)
    assert_same(dx, expected, "dx")
