"""Masks and weights of data in pieces: micro-batches, streams, recalibration."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import tolerances
import weight_cases
from arrays import LAYOUTS

SHAPE = (24, 3, 50)
KINDS = [*weight_cases.KINDS, "omitted_nan"]
PIECES = [slice(0, 7), slice(7, 8), slice(8, 24)]


def made(rng, kind):
    x, dy = rng.standard_normal((2, *SHAPE)) + 1.0
    if kind != "omitted_nan":
        return x, dy, weight_cases.KINDS[kind](rng, SHAPE)
    x, counts = weight_cases.omitting(rng, x)
    return x, np.where(np.isnan(x), 0.0, dy), counts


def close(got, want):
    size = np.nanmax(np.abs(want))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.WEIGHTED * size)


def assert_moments(got: bncore.Moments, want: bncore.Moments) -> None:
    for name in ("count", "m2"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=tolerances.WEIGHTED
        )
    assert (np.abs(got.mean - want.mean) <= tolerances.WEIGHTED * want.std()).all()


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_the_whole_batch(backend, rng, kind, fill):
    x, dy, counts = made(rng, kind)
    weight, bias = arrays.parameters(rng, 3)
    given = counts.given()
    y, m = bncore.batch_norm_train(x, weight, bias, fill=fill, **given)
    dx, *sums = bncore.batch_norm_train_backward(dy, x, m, weight, fill=fill, **given)
    policy = {"nan_policy": given.pop("nan_policy")} if counts.omit_nan else {}
    batch = bncore.MicroBatches(weight, bias, fill=fill, **policy)
    parts = {name: [value[i] for i in PIECES] for name, value in given.items()}
    pieces, slopes = [x[i] for i in PIECES], [dy[i] for i in PIECES]
    got = np.concatenate(list(batch.forward(pieces, **parts)))
    assert (np.isnan(got) == np.isnan(y)).all()
    close(np.nan_to_num(got), np.nan_to_num(y))
    assert_moments(batch.moments, m)
    close(np.concatenate(list(batch.backward(slopes, pieces, **parts))), dx)
    close(batch.dweight, sums[0])
    close(batch.dbias, sums[1])


def test_micro_batches_of_padded_pieces(backend, rng):
    """Sequences of different lengths in pieces of different widths."""
    lengths = [[3, 9, 5], [2, 2], [1, 7, 4, 4]]
    values = [[rng.standard_normal((2, n)) for n in piece] for piece in lengths]
    pieces, where = [], []
    for piece in values:
        width = max(one.shape[1] for one in piece)
        padded = np.full((len(piece), 2, width), np.nan)
        for i, one in enumerate(piece):
            padded[i, :, : one.shape[1]] = one
        pieces.append(padded)
        where.append(~np.isnan(padded[:, :1]))
    batch = bncore.MicroBatches(fill=0.0)
    y = list(batch.forward(pieces, where=where))
    flat = np.concatenate([one for piece in values for one in piece], axis=1).T
    want, m = bncore.batch_norm_train(flat)
    assert (batch.moments.count == 37).all()
    assert_moments(batch.moments, m)
    got = np.concatenate([np.moveaxis(one, 1, 2)[w[:, 0]] for one, w in zip(y, where, strict=True)])
    close(got, want)
    assert all(
        (one[np.broadcast_to(~w, one.shape)] == 0).all() for one, w in zip(y, where, strict=True)
    )


def test_micro_batches_report_what_does_not_fit(backend, rng):
    x = rng.standard_normal((6, 2))
    where = np.ones((6, 1), bool)
    batch = bncore.MicroBatches()
    with pytest.raises(ValueError, match="zip"):
        batch.forward([x, x], where=[where])
    with pytest.raises(TypeError, match=r"^where: expected an iterable that starts anew"):
        batch.forward([x], where=iter([where]))
    with pytest.raises(TypeError, match=r"^where: expected bool"):
        batch.forward([x], where=[where * 1.0])
    list(batch.forward([x, x], where=[where, where]))
    batch.add_gradient(x, x, where=where)
    with pytest.raises(RuntimeError, match=r"^add_gradient: expected pieces of 12 values"):
        batch.grad_input(x, x)
    one = bncore.MicroBatches()
    one.add(x[:1], where=True)
    assert (one.normalize(x[:1], where=True) == 0.0).all()
    with pytest.raises(ValueError, match=r"^nan_policy: expected"):
        bncore.MicroBatches(nan_policy="drop")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_streams_give_the_moments_of_the_whole(rng, layout, kind):
    shape = (6, 5, 7, 90)
    x = rng.standard_normal(shape)
    if kind == "omitted_nan":
        x, counts = weight_cases.omitting(rng, x)
    else:
        counts = weight_cases.KINDS[kind](rng, shape)
    there = layout.build(x)
    options = counts.given(layout) | {"axis": layout.axis(4)}
    want = bncore.moments(there, **options)
    for size in (4096, 5000, 1 << 14):
        assert_moments(bncore.stream_moments(there, block_bytes=size, **options), want)
    assert bncore.stream_moments(there, **options) == want


def test_a_mapped_file_with_gaps(backend, rng, tmp_path):
    x = rng.standard_normal((3000, 8))
    x[rng.random(x.shape) < 0.2] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    want = bncore.moments(x, nan_policy="omit")
    assert_moments(bncore.stream_moments(mapped, block_bytes=4096, nan_policy="omit"), want)
    with pytest.raises(ValueError, match=r"^x: expected no NaN with nan_policy='raise'"):
        bncore.stream_moments(mapped, block_bytes=4096, nan_policy="raise")
    chunks = (bncore.moments(x[i : i + 700], nan_policy="omit") for i in range(0, 3000, 700))
    assert_moments(bncore.merged_moments(chunks), want)


@pytest.mark.parametrize("sequential", [False, True])
def test_recalibration_by_values_that_count(backend, rng, sequential):
    batches = [(rng.standard_normal((n, 4, 9)), rng.random((n, 1, 9)) < 0.6) for n in (5, 8, 3)]
    layer = bncore.BatchNorm(4)
    (found,) = bncore.recalibrate(
        layer, batches, forward=lambda b: layer(b[0], where=b[1]), sequential=sequential
    )
    kept = np.concatenate([np.moveaxis(x, 1, 2)[w[:, 0]] for x, w in batches])
    assert_moments(found, bncore.moments(kept))
    np.testing.assert_allclose(layer.running_mean, kept.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer.running_var, kept.var(0, ddof=1), rtol=1e-12)


def test_merged_moments_count_each_piece_by_its_own_mask(rng):
    x, where = rng.standard_normal((9, 3, 4)), rng.random((9, 1, 4)) < 0.7
    weights = rng.uniform(0.5, 2.0, 4)
    x[~np.broadcast_to(where, x.shape)] = np.nan
    cuts = slice(0, 2), slice(2, 7), slice(7, 9)
    first = bncore.moments(x[cuts[0]], where=where[cuts[0]], weights=weights)
    pieces = (first, *(x[cut] for cut in cuts[1:]))
    found = bncore.merged_moments(
        iter(pieces),
        where=(None, *(where[cut] for cut in cuts[1:])),
        weights=(None, weights, weights),
        nan_policy="raise",
    )
    assert_moments(found, bncore.moments(x, where=where, weights=weights))
    with pytest.raises(ValueError, match=r"where: expected None for Moments, got an array"):
        bncore.merged_moments([first], where=[where])
    with pytest.raises(ValueError, match=r"where: expected one item for each piece, got 1$"):
        bncore.merged_moments(pieces, where=[None])
    with pytest.raises(ValueError, match=r"weights: expected one item .*, got more than 3$"):
        bncore.merged_moments(pieces, weights=[None] * 4)
    with pytest.raises(TypeError, match=r"weights: expected an iterable of arrays, got 1"):
        bncore.merged_moments(pieces, weights=1)
