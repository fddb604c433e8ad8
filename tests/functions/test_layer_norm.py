"""Layer norm: the formula in extended precision, central differences, layouts."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
from bncore import layer_norm, layer_norm_backward
from differences import stencil_difference
from group_norm_formula import assert_as, formula

DTYPES = [np.float32, np.float64]
ULPS = {
    "y": tolerances.LAYER_NORM_ULP,
    "rounded dx": tolerances.GRADIENT_ULP,
    "dweight": tolerances.LAYER_NORM_SUMS_ULP,
    "dbias": tolerances.REORDERED_ULP,
}


def by_formula(dy, x, weight, bias, axis, eps):
    """The formula of group norm with one group, whose channels are all normalized elements."""
    rows = int(np.prod(x.shape[:axis]))
    flat = [None if a is None else np.asarray(a).reshape(-1) for a in (weight, bias)]
    found = formula(dy.reshape(rows, -1), x.reshape(rows, -1), *flat, 1, eps)
    return {
        name: [
            a.reshape(x.shape if name in ("y", "dx", "rounded dx") else x.shape[axis:])
            if a.ndim
            else a
            for a in parts
        ]
        for name, parts in found.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize(("shape", "axis"), [
    ((7, 5), -1), ((6, 4, 33), -1), ((6, 4, 33), 1), ((700, 300), 1), ((3, 2, 2, 9), 2),
    ((2, 200000), 1),
], ids=str)  # fmt: skip
def test_against_the_formula(rng, shape, axis, affine, dtype):
    x, dy = (rng.standard_normal((2, *shape)) + 1.0).astype(dtype)
    normalized = shape[axis:]
    weight, bias = rng.standard_normal((2, *normalized)).astype(dtype) if affine else (None, None)
    expected = by_formula(dy, x, weight, bias, axis % len(shape), 0.01)
    y, moments = layer_norm(x, weight, bias, axis=axis, eps=0.01)
    got = (y, *layer_norm_backward(dy, x, moments, weight, axis=axis, eps=0.01))
    assert (moments.count == np.prod(normalized)).all()
    for name, value in zip(("y", "rounded dx", "dweight", "dbias"), got, strict=True):
        assert_as(name, value, expected, dtype, ULPS)


def test_stencil_differences(rng):
    x, r = rng.standard_normal((2, 3, 5))
    weight, bias = rng.standard_normal((2, 5))

    def loss(x, weight, bias):
        return float((r * layer_norm(x, weight, bias, eps=0.1)[0]).sum())

    got = layer_norm_backward(r, x, layer_norm(x)[1], weight, eps=0.1)
    for position, gradient in enumerate(got):
        size = np.abs(gradient).max()
        for index in np.ndindex(gradient.shape):
            numeric = stencil_difference(loss, [x, weight, bias], position, index, 1e-2)
            assert abs(numeric - gradient[index]) <= tolerances.CENTRAL_DIFFERENCES * size


def test_backends_have_the_same_bits(rng):
    x, dy = rng.standard_normal((2, 900, 200)).astype(np.float32)
    weight, bias = arrays.parameters(rng, 200)
    found = []
    for name in ("numpy", bncore.backends.current().name):
        with bncore.use_backend(name):
            y, moments = layer_norm(x, weight, bias)
            found.append((y, *layer_norm_backward(dy, x, moments, weight)))
    assert all(map(arrays.same_bits, *found))


@pytest.mark.parametrize(
    "layout", [layout for layout in arrays.LAYOUTS if layout.axis(4) == 1], ids=str
)
def test_any_layout_and_place(rng, layout):
    x, dy = rng.standard_normal((2, 4, 3, 5, 6))
    weight, bias = rng.standard_normal((2, 6))
    y, moments = layer_norm(x, weight, bias)
    dx = layer_norm_backward(dy, x, moments, weight)[0]
    given, slope = layout.build(x), layout.build(dy)
    assert arrays.same_bits(layer_norm(given, weight, bias)[0], y)
    assert arrays.same_bits(layer_norm_backward(slope, given, moments, weight)[0], dx)
    if layout.writable:
        assert layer_norm_backward(slope, given, moments, weight, out=slope)[0] is slope
        assert layer_norm(given, weight, bias, out=given)[0] is given
        np.testing.assert_array_equal(given, y)
        np.testing.assert_array_equal(slope, dx)


@pytest.mark.parametrize("build", [
    lambda base: base,
    lambda base: base[:, ::2],
    np.asfortranarray,
    lambda base: base.astype(base.dtype.newbyteorder()),
], ids=["contiguous", "strided", "F", "swapped"])  # fmt: skip
def test_an_output_that_overlaps_partly_is_refused(rng, build):
    base = build(rng.standard_normal((7, 8)))
    x, out, before = base[:6], base[1:], base.copy()
    dy = np.ones(x.shape)
    y, moments = layer_norm(x)
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it, got"):
        layer_norm(x, out=out)
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it, got"):
        layer_norm_backward(dy, x, moments, out=out)
    np.testing.assert_array_equal(base, before)
    assert layer_norm(x, out=x)[0] is x
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_empty(shape):
    x = np.empty(shape)
    y, moments = layer_norm(x, np.ones(shape[1]))
    dx, dweight, _ = layer_norm_backward(x, x, moments)
    assert y.shape == dx.shape == shape and not dweight.any()


X = np.ones((2, 4, 3))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: layer_norm(X, np.ones(4)), ValueError, r"^weight: expected shape \(3,\), got \(4,\)$"),
    (lambda: layer_norm(X, None, np.ones(3), axis=1), ValueError, r"^bias: expected shape \(4, 3"),
    (lambda: layer_norm(X, [1, 1, 1]), TypeError, r"^weight: expected a real floating dtype"),
    (lambda: layer_norm(X, axis=0), ValueError, r"^axis: expected an axis other than 0"),
    (lambda: layer_norm(X[..., :1]), ValueError, r"^Expected more than 1 value per row"),
    (lambda: layer_norm(X[0, 0]), ValueError, r"^x: expected at least 2 dimensions, got 1$"),
    (lambda: layer_norm_backward(X, X, layer_norm(X)[1], axis=1), ValueError, r"^moments: exp"),
    (lambda: layer_norm_backward(X, X, bncore.Moments(4, np.ones(8), np.ones(8))), ValueError,
     r"^moments: expected count 3, got 4 for row 0$"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 5), 1), ((6, 4, 33), 2), ((6, 4, 33), 1)], ids=str
)
def test_against_torch(rng, shape, axis):
    import torch

    x, dy = rng.standard_normal((2, *shape)) + 2.0
    weight, bias = rng.standard_normal((2, *shape[axis:]))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    theirs = torch.nn.functional.layer_norm(tensors[0], shape[axis:], *tensors[1:], eps=0.01)
    wanted = torch.autograd.grad(theirs, tensors, torch.tensor(dy))
    y, moments = layer_norm(x, weight, bias, axis=axis, eps=0.01)
    got = layer_norm_backward(dy, x, moments, weight, axis=axis, eps=0.01)
    for a, b in zip((y, *got), (theirs.detach(), *wanted), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerances.TORCH_FLOAT64 * 10)
