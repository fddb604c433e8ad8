"""Batch norm of chunked arrays: the results of one call on the whole array."""

from __future__ import annotations

import doctest
import importlib

import dask
import dask.array as da
import numpy as np
import pytest

import bncore
import bncore.dask
import tolerances

pytestmark = pytest.mark.needs_scale

PIECES = ((3, 9, 8), (4, 2), (7,), (5, 4))
SHAPE = (20, 6, 7, 9)


@pytest.fixture(params=[1, -1, 0], ids=lambda axis: f"axis={axis}")
def case(request, rng):
    """x, dy, weight, bias, where and the channel axis."""
    axis = request.param
    channels = SHAPE[axis]
    x, dy = rng.normal(3.0, 2.0, SHAPE), rng.normal(size=SHAPE)
    return (
        x,
        dy,
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.random(SHAPE) < 0.8,
        axis,
    )


def close(got, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerances.PIECES_FLOAT64 * scale)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_is_that_of_the_whole_batch(case, masked, recompute):
    x, dy, weight, bias, where, axis = case
    options = {"axis": axis} | ({"where": where, "fill": 0.0} if masked else {})
    lazy = da.from_array(x, chunks=PIECES)
    y, moments = bncore.dask.batch_norm_train(lazy, weight, bias, recompute=recompute, **options)
    gradients = bncore.dask.batch_norm_train_backward(
        dy, lazy, moments, weight, recompute=recompute, **options
    )
    whole_y, whole = bncore.batch_norm_train(x, weight, bias, **options)
    expected = bncore.batch_norm_train_backward(dy, x, whole, weight, **options)
    found = dask.compute(y, *gradients)
    for described, got, right in zip((y, *gradients), found, (whole_y, *expected), strict=True):
        assert described.dtype == got.dtype == right.dtype
        assert described.shape == got.shape
        close(got, right)


def test_results_have_the_chunks_of_x(rng):
    x = da.from_array(rng.normal(size=SHAPE).astype(np.float16), chunks=PIECES)
    y, moments = bncore.dask.batch_norm_train(x)
    dx, dweight, dbias = bncore.dask.batch_norm_train_backward(x, x, moments)
    assert y.chunks == dx.chunks == x.chunks
    assert dweight.chunks == dbias.chunks == (x.chunks[1],)
    assert y.dtype == dx.dtype == np.float16
    assert dweight.dtype == dweight.compute().dtype == np.float32


def test_given_moments_and_lazy_parameters(case):
    x, _, weight, bias, where, axis = case
    moments = bncore.moments(x, axis=axis)
    expected = bncore.normalize(x, moments, weight, bias, axis=axis, where=where, fill=7.0)
    lazy = [da.from_array(v, chunks=4) for v in (weight, bias)]
    for own in ((weight, bias), lazy):
        got = bncore.dask.normalize(
            da.from_array(x, chunks=PIECES), moments, *own, axis=axis, where=where, fill=7.0
        )
        assert (got.compute() == expected).all()


def test_inference_has_the_bits_of_one_call(case):
    x, residual, weight, bias, _, axis = case
    var = np.abs(bias) + 1.0
    given = {"axis": axis, "activation": "leaky_relu", "negative_slope": 0.5}
    expected = bncore.batch_norm_infer(x, bias, var, weight, bias, residual=residual, **given)
    lazy = da.from_array(x, chunks=PIECES)
    for other in (residual, da.from_array(residual, chunks=3)):
        got = bncore.dask.batch_norm_infer(lazy, bias, var, weight, bias, residual=other, **given)
        assert (got.compute() == expected).all()


def test_inference_of_pixels(rng):
    images = rng.integers(0, 256, (10, 5, 5, 3), dtype=np.uint8)
    x = da.from_array(images, chunks=(3, 5, 5, 3))
    mean, var = bncore.dask.mean_var(x, axis=(0, 1, 2), scale=1 / 255)
    y = bncore.dask.batch_norm_infer(x, mean, var, axis=-1, eps=0.0, scale=1 / 255)
    assert y.dtype == y.compute().dtype == np.float32
    np.testing.assert_allclose(
        y.compute().std((0, 1, 2), np.float64), 1.0, rtol=tolerances.FRAMEWORKS_FLOAT32
    )


@pytest.mark.parametrize("recompute, loads", [(False, 1), (True, 2)])
def test_recompute_loads_every_chunk_twice_instead_of_keeping_it(rng, recompute, loads):
    array = rng.normal(size=(12, 2))
    loaded = []

    def load(block_info=None):
        rows = block_info[None]["array-location"][0]
        loaded.append(rows)
        return array[slice(*rows)]

    x = da.map_blocks(load, chunks=((3,) * 4, (2,)), dtype=array.dtype, meta=array[:0])
    y, _ = bncore.dask.batch_norm_train(x, recompute=recompute)
    close(y.compute(scheduler="synchronous"), bncore.batch_norm_train(array)[0])
    assert sorted(loaded) == sorted([(i, i + 3) for i in range(0, 12, 3)] * loads)


def lazy_x(shape=(4, 2)):
    return da.zeros(shape, chunks=2)


@pytest.mark.parametrize("call, message", [
    (lambda: bncore.dask.batch_norm_train(lazy_x((1, 2))),
     r"Expected more than 1 value per channel when training, got input size \(1, 2\)"),
    (lambda: bncore.dask.batch_norm_train(lazy_x(), [1.0]), r"weight: expected shape \(2,\)"),
    (lambda: bncore.dask.batch_norm_train(lazy_x(), eps=-1.0), "eps: expected"),
    (lambda: bncore.dask.batch_norm_train(lazy_x(), recompute=1), "recompute: expected"),
    (lambda: bncore.dask.batch_norm_train(lazy_x((4,))), "x: expected at least 2 dimensions"),
    (lambda: bncore.dask.batch_norm_infer(lazy_x(), [0.0, 0.0], [1.0, -1.0]),
     "var: expected variances >= 0, got -1.0 for channel 1"),
    (lambda: bncore.dask.batch_norm_infer(lazy_x(), [0.0] * 2, [1.0] * 2, activation="gelu"),
     "activation: expected"),
    (lambda: bncore.dask.batch_norm_infer(lazy_x(), [0.0] * 2, [1.0] * 2, residual=lazy_x((3, 2))),
     r"residual: expected shape \(4, 2\), got \(3, 2\)"),
    (lambda: bncore.dask.normalize(lazy_x(), 3.0), "moments: expected Moments, or the lazy ones"),
    (lambda: bncore.dask.normalize(lazy_x(), bncore.Moments(2, [0.0], [0.0])),
     "moments: expected 2 channels, got 1"),
    (lambda: bncore.dask.normalize(da.zeros((4, 2), dtype=int), bncore.Moments(4, [0.0], [0.0])),
     "x: expected float16, bfloat16, float32 or float64, got int64"),
    (lambda: bncore.dask.batch_norm_train_backward(
        da.zeros((4, 2), dtype=np.float32), lazy_x(), bncore.Moments(4, [0.0] * 2, [0.0] * 2)),
     "dy: expected float64, got float32"),
])  # fmt: skip
def test_bad_arguments_are_refused_when_the_graph_is_built(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


@pytest.mark.parametrize("module", ["statistics", "batch_norm"])
def test_the_examples_run(module):
    failed, tried = doctest.testmod(importlib.import_module(f"bncore.dask.{module}"))
    assert failed == 0
    assert tried >= 8


def test_lazy_moments_of_other_channels_are_refused_when_chunks_are_computed():
    x = da.ones((4, 6), chunks=(2, 3))
    fewer = x[:, :3]
    dx = bncore.dask.batch_norm_train_backward(fewer, fewer, bncore.dask.moments(x))[0]
    for lazy in (bncore.dask.normalize(fewer, bncore.dask.moments(x)), dx):
        with pytest.raises(ValueError, match="moments: expected 3 channels, got 6"):
            lazy.compute(scheduler="sync")
