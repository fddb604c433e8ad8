"""Ghost batch norm against batch norms of its parts, and errors of it and renormalization."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
from arrays import LAYOUTS
from bncore import batch_renorm, batch_renorm_backward
from bncore import ghost_batch_norm as ghost
from bncore import ghost_batch_norm_backward as ghost_backward
from bncore.arguments import layout, problem


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 4, 5, 13, 100])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "affine"])
def test_virtual_batches_are_batches(rng, size, weighted, dtype):
    x, dy = rng.standard_normal((2, 13, 3, 40)).astype(dtype)
    weight, bias = arrays.parameters(rng, 3) if weighted else (None, None)
    y, moments = ghost(x, size, weight, bias)
    dx, dweight, dbias = ghost_backward(dy, x, moments, size, weight)
    sums = np.zeros((2, 3))
    for k, start in enumerate(range(0, 13, size)):
        part = slice(start, start + size)
        want, found = bncore.batch_norm_train(x[part], weight, bias)
        assert arrays.same_bits(y[part], want) and moments[k] == found
        gradients = bncore.batch_norm_train_backward(dy[part], x[part], found, weight)
        assert arrays.same_bits(dx[part], gradients[0])
        one = bncore.grad_sums(dy[part], x[part], found)
        sums += one.sum_dy_xhat, one.sum_dy
    assert len(moments) == k + 1
    for got, want in zip((dweight, dbias), sums, strict=True):
        assert arrays.same_bits(got, want.astype(np.float64 if weighted else dtype))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.axis(4) != 0], ids=str)
def test_any_layout_and_place(rng, layout):
    x, dy = rng.standard_normal((2, 7, 3, 4, 5))
    weight, bias = arrays.parameters(rng, 3)
    axis = layout.axis(4)
    y, moments = ghost(x, 3, weight, bias)
    dx = ghost_backward(dy, x, moments, 3, weight)[0]
    given, slope = layout.build(x), layout.build(dy)
    got, found = ghost(given, 3, weight, bias, axis=axis)
    np.testing.assert_allclose(layout.plain(got), y, rtol=0, atol=1e-14)
    got = ghost_backward(slope, given, found, 3, weight, axis=axis)[0]
    np.testing.assert_allclose(layout.plain(got), dx, rtol=0, atol=1e-14)
    if layout.writable:
        assert ghost_backward(slope, given, found, 3, weight, axis=axis, out=slope)[0] is slope
        assert ghost(given, 3, weight, bias, axis=axis, out=given)[0] is given
        np.testing.assert_allclose(layout.plain(given), y, rtol=0, atol=1e-14)
        np.testing.assert_allclose(layout.plain(slope), dx, rtol=0, atol=1e-14)


def test_a_ghost_of_nothing():
    x = np.empty((0, 3))
    y, moments = ghost(x, 4)
    assert y.shape == (0, 3) and moments == []
    assert not ghost_backward(x, x, [], 4)[1].any()


X = np.ones((5, 3))
M = bncore.moments(X)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: ghost(X, 4), ValueError, r"^Expected more than 1 value per channel in every .*size 1"),
    (lambda: ghost(X, 0), ValueError, r"^size: expected an integer >= 1, got 0$"),
    (lambda: ghost(X, 5, axis=0), ValueError, r"^axis: expected an axis other than 0"),
    (lambda: ghost(X, 5, [1.0]), ValueError, r"^weight: expected shape \(3,\)"),
    (lambda: ghost_backward(X, X, [M], 3), ValueError, r"^moments: expected a list of 2 Moments"),
    (lambda: ghost_backward(X, X, M, 5), ValueError, r"^moments: .* 1 Moments, got Moments$"),
    (lambda: ghost_backward(X, X, [M, M], 3), ValueError, r"^moments: expected counts \[3, 2\]"),
    (lambda: ghost_backward(X, X, [3], 5), TypeError, r"^moments: expected Moments, got 3$"),
])  # fmt: skip
def test_what_does_not_fit_a_ghost(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_ghost_writes_nothing():
    out = np.zeros_like(X)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        ghost(X, 2, out=out)
    assert not out.any()


@pytest.mark.parametrize("given", ["new", "strided"])
@pytest.mark.parametrize("operation", ["ghost", "ghost backward", "renorm", "renorm backward"])
def test_checks_copy_nothing(rng, monkeypatch, operation, given):
    """A call makes only the copies of x's size that it needs, and no array that it drops again."""
    x, dy, into = (rng.standard_normal((64, 6, 50))[:, ::2] for _ in range(3))
    out = into if given == "strided" else None
    mean, var = np.zeros(3), np.ones(3)
    moments, renorm = batch_renorm(x, mean, var)[1:]
    parts = ghost(x, 8)[1]
    calls = {
        "ghost": lambda: ghost(x, 8, out=out),
        "ghost backward": lambda: ghost_backward(dy, x, parts, 8, out=out),
        "renorm": lambda: batch_renorm(x, mean, var, out=out),
        "renorm backward": lambda: batch_renorm_backward(dy, x, moments, renorm, out=out),
    }
    copied, staged = [], []
    block, output = layout.block, problem.Output
    monkeypatch.setattr(layout, "block", lambda *a: copied.append(a[0].size) or block(*a))
    monkeypatch.setattr(problem, "Output", lambda *a: staged.append(a[1].size) or output(*a))
    calls[operation]()
    reads = 2 if operation.endswith("backward") else 1  # dy, and x
    assert sum(copied) == reads * x.size
    # One result; ghosts make it first, and then give its parts to the calls as outputs.
    assert sum(staged) <= (2 if operation.startswith("ghost") and out is None else 1) * x.size
