"""Masks in ghost, group, instance and layer norm, against batch norms of their parts."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
import weight_cases
from arrays import LAYOUTS, same_bits

SHAPE = (5, 6, 4, 7)
KINDS = list(weight_cases.KINDS)
BATCH_FIRST = [layout for layout in LAYOUTS if layout.axis(4) != 0]


def close(got: np.ndarray, want: np.ndarray) -> None:
    size = max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.WEIGHTED * size)


def normalized(x, dy, w, gamma, beta, fill):
    """Batch norm of one group as one channel, in plain NumPy float64; gamma and beta like x."""
    total = w.sum()
    mean = (w * x).sum() / total
    var = (w * (x - mean) ** 2).sum() / total
    a = 1 / np.sqrt(var + 1e-5)
    xhat = (x - mean) * a
    y = xhat * gamma + beta
    g = dy
    if fill is not None:
        y, g = np.where(w == 0, fill, y), np.where(w == 0, 0.0, dy)
    h = g * gamma
    dx = a * (h - w / total * (h.sum() + xhat * (h * xhat).sum()))
    return y, np.where((w == 0) & (g == 0), 0.0, dx), g * xhat, g, (total, mean, var * total)


def grouped(x, dy, w, gamma, beta, fill, groups):
    """The same for every group of channels of every sample; sums over samples and positions."""
    y, dx, dweight, dbias = (np.empty_like(x) for _ in range(4))
    found = []
    wide = x.shape[1] // groups
    for n in range(x.shape[0]):
        for k in range(groups):
            at = (n, slice(k * wide, (k + 1) * wide))
            shape = (wide,) + (1,) * (x.ndim - 2)
            parameters = (gamma[at[1]].reshape(shape), beta[at[1]].reshape(shape))
            y[at], dx[at], dweight[at], dbias[at], one = normalized(
                x[at], dy[at], w[at], *parameters, fill
            )
            found.append(one)
    axes = (0, *range(2, x.ndim))
    return y, dx, dweight.sum(axes), dbias.sum(axes), np.array(found)


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_of_every_layout(backend, rng, groups, kind, fill):
    x, dy = rng.standard_normal((2, *SHAPE)) + 1.0
    counts = weight_cases.KINDS[kind](rng, SHAPE)
    counts.w[:, :, 0, :2] *= 1.0
    weight, bias = rng.uniform(0.5, 2.0, 6), rng.standard_normal(6)
    y, dx, dweight, dbias, found = grouped(x, dy, counts.w, weight, bias, fill, groups)
    for layout in BATCH_FIRST:
        given = counts.given(layout) | {"axis": layout.axis(4), "fill": fill}
        there, slope = layout.build(x), layout.build(dy)
        got, moments = bncore.group_norm(there, groups, weight, bias, **given)
        close(layout.plain(got), y)
        for name, want in zip(("count", "mean", "m2"), found.T, strict=True):
            close(getattr(moments, name), want)
        one, *sums = bncore.group_norm_backward(slope, there, moments, groups, weight, **given)
        close(layout.plain(one), dx)
        close(sums[0], dweight)
        close(sums[1], dbias)
        if groups == 6:
            again, same = bncore.instance_norm(there, weight, bias, **given)
            assert same_bits(again, got) and same == moments
            gradients = bncore.instance_norm_backward(slope, there, moments, weight, **given)
            assert same_bits(gradients[0], one) and same_bits(gradients[1], sums[0])


def test_group_norm_with_a_weight_of_zero(backend, rng):
    """Gradients then pass through a temporary of weight * dy."""
    x, dy = rng.standard_normal((2, *SHAPE))
    counts = weight_cases.KINDS["shared_mask"](rng, SHAPE)
    weight = np.array([1.0, 0.0, 2.0, -1.0, 1e-9, 3.0])
    for fill in (None, 0.5):
        want = grouped(x, dy, counts.w, weight, np.zeros(6), fill, 2)
        given = counts.given() | {"fill": fill}
        _, moments = bncore.group_norm(x, 2, weight, **given)
        dx, dweight, dbias = bncore.group_norm_backward(dy, x, moments, 2, weight, **given)
        close(dx, want[1])
        close(dweight, want[2])
        close(dbias, want[3])


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("kind", [*KINDS, "of_rows", "of_columns"])
@pytest.mark.parametrize("dtype", arrays.FLOATS)
def test_layer_norm_of_every_layout(backend, rng, kind, fill, dtype):
    shape = (8, 5, 3, 11)
    x, dy = (rng.standard_normal((2, *shape)) + 1.0).astype(dtype)
    if kind == "of_rows":
        where = rng.random((8, 5, 1, 1)) < 0.8
        counts = weight_cases.Counts(where, None, False, np.broadcast_to(where, shape) * 1.0)
    elif kind == "of_columns":
        where = rng.random((3, 11)) < 0.8
        counts = weight_cases.Counts(where, None, False, np.broadcast_to(where, shape) * 1.0)
    else:
        counts = weight_cases.KINDS[kind](rng, shape)
    weight, bias = rng.uniform(0.5, 2.0, (3, 11)), rng.standard_normal((3, 11))
    y, moments = bncore.layer_norm(x, weight, bias, axis=2, fill=fill, **counts.given())
    dx, dweight, dbias = bncore.layer_norm_backward(
        dy, x, moments, weight, axis=2, fill=fill, **counts.given()
    )
    sums, found, rows = np.zeros((2, 3, 11)), np.empty((3, 8, 5)), counts.w.any(axis=(2, 3))
    want_y, want_dx = np.empty((2, *shape))
    for row in np.argwhere(rows):
        at = tuple(row)
        wide = x[at].astype(float), dy[at].astype(float)
        want_y[at], want_dx[at], *terms, found[:, *at] = normalized(
            *wide, counts.w[at], weight, bias, fill
        )
        sums += terms
    tolerance = tolerances.WEIGHTED if dtype == np.float64 else 1e-5
    got = np.stack([moments.count, moments.mean, moments.m2]).reshape(3, 8, 5)
    np.testing.assert_allclose(got[:, rows], found[:, rows], rtol=1e-12, atol=1e-14)
    for got, want in ((y, want_y), (dx, want_dx)):
        np.testing.assert_allclose(got[rows], want[rows], rtol=tolerance, atol=10 * tolerance)
    empty = y[~rows]
    assert (np.isnan(empty) if fill is None else empty == fill).all()
    if kind != "of_rows" or fill is not None:  # else y of a row is NaN, and so is its gradient
        np.testing.assert_allclose(dweight, sums[0], rtol=tolerance, atol=100 * tolerance)
        np.testing.assert_allclose(dbias, sums[1], rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_batches_are_batches(backend, rng, kind):
    x, dy = rng.standard_normal((2, 13, *SHAPE[1:]))
    counts = weight_cases.KINDS[kind](rng, x.shape)
    given = counts.given()
    for fill in (None, 0.5):
        y, moments = bncore.ghost_batch_norm(x, 5, **given, fill=fill)
        dx, dweight, dbias = bncore.ghost_batch_norm_backward(dy, x, moments, 5, **given, fill=fill)
        total = np.zeros((2, 6))
        for start, found in zip((0, 5, 10), moments, strict=True):
            part = slice(start, start + 5)
            own = {name: value[part] for name, value in given.items()}
            want, one = bncore.batch_norm_train(x[part], **own, fill=fill)
            assert same_bits(y[part], want) and found == one
            want, *_ = bncore.batch_norm_train_backward(dy[part], x[part], one, **own, fill=fill)
            assert same_bits(dx[part], want)
            sums = bncore.grad_sums(dy[part], x[part], one, **own, fill=fill)
            total += sums.sum_dy_xhat, sums.sum_dy
        assert same_bits(dweight, total[0]) and same_bits(dbias, total[1])


@pytest.mark.parametrize("of_type", arrays.SIXTEEN_BITS)
def test_sixteen_bits_of_groups_and_rows(backend, rng, of_type):
    """Against float32 with the same values: half a step of the type, and float32's own error."""
    x, dy = rng.standard_normal((2, 4, 6, 35)).astype(of_type)
    where = rng.random((4, 1, 35)) < 0.8
    step = 2.0**-10 if of_type == np.float16 else 2.0**-7
    weight = np.array([1.0, 0.0, 2.0, -1.0, 0.5, 3.0], np.float32)
    for fill in (None, 0.5):
        results = []
        for values, slope in ((x, dy), (x.astype("f4"), dy.astype("f4"))):
            y, m = bncore.group_norm(values, 3, weight, where=where, fill=fill)
            gradients = bncore.group_norm_backward(
                slope, values, m, 3, weight, where=where, fill=fill
            )
            z, n = bncore.layer_norm(values, where=where, fill=fill)
            more = bncore.layer_norm_backward(slope, values, n, where=where, fill=fill)
            results.append([y, *gradients, z, *more])
        for got, want in zip(*results, strict=True):
            size = np.abs(want).max()
            np.testing.assert_allclose(got.astype("f4"), want, rtol=step, atol=step * size)
