"""Norms over other groupings: formulas in extended precision, central differences, layouts."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
from arrays import LAYOUTS
from bncore.functions.sample_groups import SampleGroups
from differences import stencil_difference
from group_norm_formula import assert_as, formula

DTYPES = [np.float32, np.float64]
BATCHED = [layout for layout in LAYOUTS[:7] if layout.axis(4) != 0]  # axis 0 is the batch's


ULPS = {
    "y": tolerances.FORWARD_ULP,
    "dx": tolerances.GRADIENT_ULP,
    "dweight": tolerances.REORDERED_ULP,  # float64 sums, rounded
    "dbias": tolerances.REORDERED_ULP,
}


def weights(rng, kind, channels, dtype):
    weight, bias = arrays.parameters(rng, channels, dtype)
    if kind == "none":
        return None, None
    if kind == "zero":
        weight[1] = 0.0
    if kind == "tiny":
        weight[1] = 1e-42 if dtype == np.float32 else 1e-307
    if kind == "small":
        weight *= dtype(1e-30)
        weight[1] = 2e-6 * np.abs(weight).max()
    return weight, bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "affine", "zero", "tiny", "small"])
@pytest.mark.parametrize("groups", [1, 3, 6, None])
@pytest.mark.parametrize("layout", BATCHED, ids=str)
def test_against_the_formula(rng, layout, groups, kind, dtype):
    x, dy = (rng.standard_normal((2, 5, 6, 7, 4)) + 1.0).astype(dtype)
    weight, bias = weights(rng, kind, 6, dtype)
    expected = formula(dy, x, weight, bias, groups or 6, 0.01)
    axis = layout.axis(4)
    given, slope = layout.build(x), layout.build(dy)
    common = {"axis": axis, "eps": 0.01}
    if groups is None:
        y, moments = bncore.instance_norm(given, weight, bias, **common)
        gradients = bncore.instance_norm_backward(slope, given, moments, weight, **common)
    else:
        y, moments = bncore.group_norm(given, groups, weight, bias, **common)
        gradients = bncore.group_norm_backward(slope, given, moments, groups, weight, **common)
    assert (moments.count == 28 * 6 // (groups or 6)).all()
    assert_as("y", layout.plain(y), expected, dtype, ULPS)
    assert_as("dx", layout.plain(gradients[0]), expected, dtype, ULPS)
    assert_as("dweight", gradients[1], expected, dtype, ULPS)
    assert_as("dbias", gradients[2], expected, dtype, ULPS)


@pytest.mark.parametrize("tiny", [1e-42, 1e-200, 1e-307, 5e-324])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_weight_too_small_to_divide_by(rng, groups, dtype, tiny):
    x, dy = (rng.standard_normal((2, 5, 6, 7)) + 1.0).astype(dtype)
    weight, bias = arrays.parameters(rng, 6)
    weight[::2] = tiny
    weight[4] = -tiny
    expected = formula(dy, x, weight, bias, groups, 0.01)
    moments = bncore.group_norm(x, groups)[1]
    dx, *gradients = bncore.group_norm_backward(dy, x, moments, groups, weight, eps=0.01)
    assert_as("dx", dx, expected, dtype, ULPS)
    for name, got in zip(("dweight", "dbias"), gradients, strict=True):
        assert got.dtype == np.float64
        assert_as(name, got.astype(dtype), expected, dtype, ULPS)


@pytest.mark.parametrize("share", [1e-2, 1e-6, 1e-7, 1e-14, 1e-30])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_large_gradients_with_small_weights(rng, groups, share):
    """Sums near 1e27, divided by a weight, have to stay in float32's range."""
    x, dy = (rng.standard_normal((2, 5, 6, 7)) + 1.0).astype(np.float32)
    dy *= np.float32(1e25)
    weight = np.array([1.0, share] * 3)
    expected = formula(dy, x, weight, None, groups, 0.01)
    moments = bncore.group_norm(x, groups)[1]
    dx = bncore.group_norm_backward(dy, x, moments, groups, weight, eps=0.01)[0]
    assert_as("dx", dx, expected, np.float32, ULPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4, None])
def test_weights_that_are_all_zero(rng, groups, dtype):
    x, dy = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    zeros = np.zeros(4, dtype)
    if groups is None:
        forward, backward, given = bncore.instance_norm, bncore.instance_norm_backward, ()
    else:
        forward, backward, given = bncore.group_norm, bncore.group_norm_backward, (groups,)
    y, moments = forward(x, *given, zeros, zeros)
    dx, *gradients = backward(dy, x, moments, *given, zeros)
    assert not y.any() and not dx.any()
    plain = backward(dy, x, moments, *given)[1:]
    assert all(map(arrays.same_bits, gradients, plain))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 4, 3), (40, 4, 30, 30)], ids=str)
def test_backends_have_the_same_bits(rng, shape, groups):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    weight, bias = arrays.parameters(rng, 4)
    found = []
    for name in ("numpy", bncore.backends.current().name):
        with bncore.use_backend(name):
            y, moments = bncore.group_norm(x, groups, weight, bias)
            found.append((y, *bncore.group_norm_backward(dy, x, moments, groups, weight)))
    assert all(map(arrays.same_bits, *found))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_stencil_differences(rng, groups):
    x, r = rng.standard_normal((2, 2, 4, 3))
    weight, bias = arrays.parameters(rng, 4)

    def loss(x, weight, bias):
        return float((r * bncore.group_norm(x, groups, weight, bias, eps=0.1)[0]).sum())

    moments = bncore.group_norm(x, groups)[1]
    got = bncore.group_norm_backward(r, x, moments, groups, weight, eps=0.1)
    for position, gradient in enumerate(got):
        size = np.abs(gradient).max()
        for index in np.ndindex(gradient.shape):
            numeric = stencil_difference(loss, [x, weight, bias], position, index, 1e-2)
            assert abs(numeric - gradient[index]) <= tolerances.CENTRAL_DIFFERENCES * size


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3)], ids=str)
def test_no_copy_where_samples_follow_one_another(rng, order):
    inverse = np.argsort(order)
    x = rng.standard_normal([(3, 4, 5, 6)[i] for i in order]).transpose(inverse)
    g = SampleGroups(x, 1, 2)
    for part in g:
        assert np.shares_memory(part.by_channel(g.problem.x), x)
        assert np.shares_memory(part.by_group(g.problem.x), x)
    y, _ = bncore.group_norm(x, 2)
    assert arrays.memory_order(y) == arrays.memory_order(x)


def test_in_place(rng):
    x, dy = rng.standard_normal((2, 3, 4, 5))
    weight, bias = arrays.parameters(rng, 4)
    for groups in (1, 2, 4):
        y, moments = bncore.group_norm(x, groups, weight, bias)
        dx = bncore.group_norm_backward(dy, x, moments, groups, weight)[0]
        out = x.copy()
        assert bncore.group_norm(out, groups, weight, bias, out=out)[0] is out
        assert arrays.same_bits(out, y)
        out = dy.copy()
        assert bncore.group_norm_backward(out, x, moments, groups, weight, out=out)[0] is out
        assert arrays.same_bits(out, dx)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_an_output_that_overlaps_partly_is_refused(rng, groups, order):
    base = np.asarray(rng.standard_normal((7, 4, 3)), order=order)
    x, out, before = base[:6], base[1:], base.copy()
    dy = np.ones(x.shape)
    moments = bncore.group_norm(x, groups)[1]
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it, got"):
        bncore.group_norm(x, groups, out=out)
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it, got"):
        bncore.group_norm_backward(dy, x, moments, groups, out=out)
    with pytest.raises(ValueError, match=r"^out: expected dy itself or memory apart from it, got"):
        bncore.group_norm_backward(x, dy, moments, groups, out=out)
    np.testing.assert_array_equal(base, before)
    want = bncore.group_norm(x, groups)[0]
    assert bncore.group_norm(x, groups, out=x)[0] is x
    np.testing.assert_array_equal(x, want)


def test_samples_between_each_other_come_apart(rng):
    x = np.asfortranarray(rng.standard_normal((5, 4, 3)))
    y, moments = bncore.group_norm(x, 2)
    dx = bncore.group_norm_backward(x, x, moments, 2)[0]
    for result in (y, dx):
        assert arrays.memory_order(result) == (0, 2, 1)


def test_instance_norm_is_batch_norm_of_each_sample(rng):
    x = rng.standard_normal((3, 4, 50)).astype(np.float32)
    weight, bias = arrays.parameters(rng, 4)
    y, moments = bncore.instance_norm(x, weight, bias)
    for sample, got in enumerate(y):
        want, one = bncore.batch_norm_train(x[sample : sample + 1], weight, bias)
        assert arrays.same_bits(got[None], want)
        assert arrays.same_bits(moments.mean[4 * sample :][:4], one.mean)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3)], ids=str)
def test_empty(shape):
    x = np.empty(shape, np.float32)
    y, moments = bncore.instance_norm(x)
    assert y.shape == shape and moments.mean.size == shape[0] * shape[1]
    dx, dweight, dbias = bncore.instance_norm_backward(x, x, moments)
    assert dx.shape == shape and not dweight.any() and not dbias.any()


X = np.ones((2, 4, 3))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: bncore.group_norm(X, 3), ValueError, r"^groups: expected a divisor of 4 channels"),
    (lambda: bncore.group_norm(X, 0), ValueError, r"^groups: expected an integer >= 1, got 0"),
    (lambda: bncore.group_norm(X, None), TypeError, r"^groups: expected an integer >= 1, got None"),
    (lambda: bncore.group_norm(X, 2, axis=0), ValueError, r"^axis: expected an axis other than 0"),
    (lambda: bncore.group_norm(X, 2, [1.0]), ValueError, r"^weight: expected shape \(4,\)"),
    (lambda: bncore.group_norm(X[:, :, 0], 4), ValueError, r"^Expected more than 1 value per gro"),
    (lambda: bncore.group_norm(X[0, 0], 1), ValueError, r"^x: expected at least 2 dimensions"),
    (lambda: bncore.group_norm_backward(X, X, bncore.moments(X[:1]), 2), ValueError,
     r"^moments: expected count 6, the values per group of x, got 3 for group 0$"),
    (lambda: bncore.group_norm_backward(X, X, bncore.group_norm(X, 4)[1], 2), ValueError,
     r"^moments: expected 4 channels, got 8$"),
    (lambda: bncore.group_norm_backward(X[:1], X, bncore.group_norm(X, 2)[1], 2), ValueError,
     r"^dy: expected shape \(2, 4, 3\), got \(1, 4, 3\)$"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.needs_torch
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 6, 7)], ids=str)
def test_against_torch(rng, shape, groups):
    import torch

    x, dy = rng.standard_normal((2, *shape)) + 2.0
    weight, bias = arrays.parameters(rng, 4)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    for instance in (False, True) if groups == 4 else (False,):
        if instance:
            theirs = torch.nn.functional.instance_norm(
                tensors[0], weight=tensors[1], bias=tensors[2], eps=0.01
            )
        else:
            theirs = torch.nn.functional.group_norm(tensors[0], groups, *tensors[1:], eps=0.01)
        wanted = torch.autograd.grad(theirs, tensors, torch.tensor(dy))
        y, moments = bncore.group_norm(x, groups, weight, bias, eps=0.01)
        got = bncore.group_norm_backward(dy, x, moments, groups, weight, eps=0.01)
        for a, b in zip((y, *got), (theirs.detach(), *wanted), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerances.TORCH_FLOAT64 * 10)
