"""Moments, mean and variance of chunked arrays: right values, and nothing computed too early."""

from __future__ import annotations

import subprocess
import sys

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
from dask.core import get_dependencies

import bncore
import bncore.dask
import oracle
import tolerances
from allocations import bytes_of_large
from arrays import same_bits
from bncore.dask import chunks
from bncore.extras import pip_install

pytestmark = pytest.mark.needs_scale

PIECES = ((11, 1, 17, 11), (4, 2), (7,), (5, 4))
SHAPE = (40, 6, 7, 9)


def never(block):
    raise AssertionError("a chunk was computed while the graph was built")


def lazy_trap(shape=(40, 6), dtype=np.float32):
    """An array whose chunks must not be computed."""
    return da.map_blocks(never, da.zeros(shape, chunks=(10, 3)), meta=np.empty((0, 0), dtype))


def gaps(rng, x, share=0.1):
    x = x.copy()
    x[rng.random(x.shape) < share] = np.nan
    return x


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2, 3), (1,), (3, 0), ()], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int16], ids=str)
def test_mean_and_variance_are_those_of_the_whole_array(rng, dtype, axis, keepdims):
    array = rng.normal(5.0, 2.0, SHAPE).astype(dtype)
    lazy = bncore.dask.mean_var(da.from_array(array, chunks=PIECES), axis=axis, keepdims=keepdims)
    found = dask.compute(*lazy)
    whole = bncore.mean_var(array.astype(np.float64), axis=axis, keepdims=keepdims)
    result = np.dtype(dtype if np.dtype(dtype).kind == "f" else np.float64)
    rtol = max(np.finfo(result).eps, tolerances.MERGED) + tolerances.VARIANCE_BAD_SIXTEEN * (
        tolerances.EPS32 if dtype == np.float16 else 0.0
    )
    for described, got, expected in zip(lazy, found, whole, strict=True):
        assert described.dtype == described._meta.dtype == got.dtype == result
        assert described.shape == np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(np.float64(got), expected, rtol=rtol)


@pytest.mark.parametrize("rows", [(7, 500, 1, 3000, 492), (1,) * 20 + (3980,), (4000,)], ids=str)
def test_the_variance_of_float32_far_from_zero_is_right(rng, rows):
    """Mean/std is 1e4, one value of ten is missing, and a chunk may have any size."""
    array = gaps(rng, rng.normal(1e4, 1.0, (4000, 3)).astype(np.float32))
    x = da.from_array(array, chunks=(rows, (2, 1)))
    mean, var = bncore.dask.mean_var(x, axis=0, nan_policy="omit", dtype=np.float64)
    exact = [oracle.exact_moments(column[~np.isnan(column)]) for column in array.T]
    for got, channel in zip(var.compute(), exact, strict=True):
        assert oracle.relative_error(got, channel.var) <= tolerances.VARIANCE_ACCUMULATED
    for got, channel in zip(mean.compute(), exact, strict=True):
        assert oracle.relative_error(got, channel.mean) <= tolerances.MEAN


@pytest.mark.parametrize("given", [
    {"where": "whole"}, {"where": "row"}, {"weights": "whole"}, {"weights": "row"},
    {"where": "row", "weights": "whole"}, {"nan_policy": "omit", "weights": "column"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("lazy", [False, True])
def test_what_counts_is_divided_as_x_is(rng, given, lazy):
    array = gaps(rng, rng.normal(size=SHAPE)) if "nan_policy" in given else rng.normal(size=SHAPE)
    shapes = {"whole": SHAPE, "row": (1, 6, 1, 9), "column": (7, 9)}
    arrays = {
        name: rng.random(shapes[kind]) < 0.6 if name == "where" else rng.random(shapes[kind])
        for name, kind in given.items()
        if name != "nan_policy"
    }
    own = {name: da.from_array(v, chunks=5) if lazy else v for name, v in arrays.items()}
    policy = {"nan_policy": given.get("nan_policy", "propagate")}
    moments = bncore.dask.moments(da.from_array(array, chunks=PIECES), **own, **policy).compute()
    whole = bncore.moments(array, **arrays, **policy)
    for name in ("count", "mean", "m2"):
        got, expected = getattr(moments, name), getattr(whole, name)
        np.testing.assert_allclose(
            got, expected, rtol=tolerances.WEIGHTED, atol=tolerances.VARIANCE_FLOAT64
        )


def test_moments_are_merged_with_every_digit(rng):
    """Merging in the order of the tree by hand gives the same object."""
    array = rng.normal(1e6, 1.0, (64, 3))
    found = bncore.dask.moments(da.from_array(array, chunks=(8, 3)), split_every=2).compute()
    states = [bncore.moments(array[i : i + 8]) for i in range(0, 64, 8)]
    while len(states) > 1:
        states = [a.merge(b) for a, b in zip(states[::2], states[1::2], strict=True)]
    assert found == states[0]
    assert same_bits(found._low, states[0]._low)


@pytest.mark.parametrize("split_every, most", [(2, 4), (3, 4), (8, 4), (9, 9), ({0: 4}, 8)])
def test_no_task_merges_more_states_than_asked(split_every, most):
    """Two axes have several chunks here, and at least two neighbours along each of them meet."""
    x = da.zeros((64, 4, 64), chunks=(2, 2, 2))
    graph = dict(bncore.dask.moments(x, split_every=split_every).__dask_graph__())
    merges = [key for key in graph if "partial" in str(key) or "aggregate" in str(key)]
    assert max(len(get_dependencies(graph, key)) for key in merges) == most


def test_nothing_is_computed_when_the_graph_is_built():
    x, dy = lazy_trap(), lazy_trap()
    mask = lazy_trap(dtype=np.bool_)
    moments = bncore.dask.moments(x, where=mask)
    bncore.dask.mean_var(x, axis=0, weights=mask)
    bncore.dask.normalize(x, moments)
    y, moments = bncore.dask.batch_norm_train(x)
    bncore.dask.batch_norm_train_backward(dy, x, moments, recompute=True)
    mean, var = bncore.dask.mean_var(x, axis=0)
    infer = bncore.dask.batch_norm_infer(x, mean, var)
    assert y.dtype == infer.dtype == np.float32
    assert y.chunks == infer.chunks == x.chunks
    with pytest.raises(AssertionError, match="a chunk was computed"):
        y.compute(scheduler="synchronous")


def test_bfloat16_and_sums_in_float64(rng):
    array = rng.normal(100.0, 1.0, (600, 2)).astype(ml_dtypes.bfloat16)
    x = da.from_array(array, chunks=(100, 2))
    lazy = bncore.dask.mean_var(x, axis=0), bncore.dask.mean_var(x, axis=0, dtype=np.float64)
    for (_, var), dtype in zip(lazy, (array.dtype, np.float64), strict=True):
        assert var.dtype == var.compute().dtype == dtype
    exact = [oracle.exact_moments(column.astype(np.float64)) for column in array.T]
    for got, channel in zip(lazy[1][1].compute(), exact, strict=True):
        assert oracle.relative_error(got, channel.var) <= tolerances.VARIANCE_ACCUMULATED


def test_chunks_of_unknown_size(rng):
    array = rng.normal(size=(60, 4))
    x = da.from_array(array, chunks=(7, 2))
    some = x[x[:, 0] > 0.0]
    mask = (x > -1.0)[x[:, 0] > 0.0]
    kept = array[array[:, 0] > 0.0]
    moments = bncore.dask.moments(some, where=mask).compute()
    assert (moments.count == (kept > -1.0).sum(0)).all()
    with pytest.raises(TypeError, match="where: expected a Dask array"):
        bncore.dask.moments(some, where=kept > -1.0)
    y, _ = bncore.dask.batch_norm_train(some)
    np.testing.assert_allclose(
        y.compute(), bncore.batch_norm_train(kept)[0], atol=tolerances.PIECES_FLOAT64
    )


def test_empty_arrays_and_empty_chunks(rng):
    array = rng.normal(size=(9, 2))
    x = da.from_array(array, chunks=((0, 4, 0, 5), 2))
    np.testing.assert_allclose(bncore.dask.moments(x).compute().m2, bncore.moments(array).m2)
    none = bncore.dask.moments(da.zeros((0, 2), chunks=3)).compute()
    assert none == bncore.moments(np.zeros((0, 2)))


def test_a_chunk_is_read_where_it_is(rng):
    chunk = rng.normal(size=(4, 8, 4096))
    copied = bytes_of_large(
        lambda: chunks.moments_of(
            chunk, None, None, axis=(0, 2), keepdims=False, in_float64=False, scale=None,
            nan_policy="propagate",
        ), chunk.nbytes // 64,
    )  # fmt: skip
    assert copied == 0


@pytest.mark.parametrize("axes", [(0, 3, 1, 2), (3, 2, 1, 0)], ids=str)
def test_the_bits_do_not_depend_on_whether_a_chunk_travelled(rng, axes):
    """The memory order of a chunk that travels before or after a transposition differs."""
    array = rng.normal(size=(5, 6, 7, 8)).astype(np.float32)
    x = da.from_array(array, chunks=(2, 3, 7, 8)).transpose(axes)
    here = bncore.dask.moments(x).compute(scheduler="synchronous")
    away = bncore.dask.moments(x).compute(
        scheduler="processes", num_workers=1, optimize_graph=False
    )
    assert here == away


def test_one_thread_for_each_task(rng, monkeypatch):
    asked = []
    real = chunks.reduced_moments

    def spy(*args, n_threads, **options):
        asked.append(n_threads)
        return real(*args, n_threads=n_threads, **options)

    monkeypatch.setattr(chunks, "reduced_moments", spy)
    bncore.dask.moments(da.zeros((8, 2), chunks=(2, 2))).compute(scheduler="threads")
    assert asked == [1] * 4


def test_tasks_have_names_that_say_what_they_do():
    x = da.zeros((64, 4), chunks=(2, 2))
    y, moments = bncore.dask.batch_norm_train(x)
    gradients = bncore.dask.batch_norm_train_backward(x, x, moments)
    keys = {k for part in (y, *gradients) for k in part.__dask_graph__()}
    names = {dask.utils.key_split(key) for key in keys}
    own = {name for name in names if name.startswith("bncore-")}
    assert own >= {
        "bncore-moments", "bncore-moments-partial", "bncore-moments-aggregate", "bncore-normalize",
        "bncore-grad-sums", "bncore-grad-sums-aggregate", "bncore-grad-input", "bncore-dweight",
    }  # fmt: skip
    assert names - own <= {"zeros", "zeros_like", "arange", "ones_like", "array"}


def test_the_same_call_has_the_same_keys():
    x = da.zeros((64, 4), chunks=(2, 2))
    first, again = (bncore.dask.mean_var(x, axis=0)[1] for _ in range(2))
    assert first.name == again.name != bncore.dask.mean_var(x, axis=0, ddof=1)[1].name


@pytest.mark.parametrize("arguments, message", [
    ({"x": np.zeros((4, 2))}, "x: expected a Dask array, got ndarray"),
    ({"x": da.zeros((4, 2), dtype=complex)}, "x: expected float16, bfloat16"),
    ({"axis": 2}, "axis: expected"),
    ({"where": np.zeros((3, 2), bool)}, "where: expected a shape that broadcasts"),
    ({"where": da.zeros((4, 2))}, "where: expected bool, got float64"),
    ({"weights": np.array([[1.0, -1.0]])}, "weights: expected finite numbers >= 0, got -1.0"),
    ({"nan_policy": "drop"}, "nan_policy: expected"),
    ({"split_every": 1}, "split_every: expected an integer >= 2, got 1"),
    ({"scale": 2.0}, "scale: expected None for an x of float64"),
    ({"dtype": np.float32}, "dtype: expected None or float64, got float32"),
])  # fmt: skip
def test_bad_arguments_are_refused_when_the_graph_is_built(arguments, message):
    given = {"x": da.zeros((4, 2), chunks=2), **arguments}
    for function in (bncore.dask.moments, bncore.dask.mean_var):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**given)
        assert str(error.value).startswith(message)


def test_a_nan_that_is_not_allowed_is_found_in_its_chunk(rng):
    array = rng.normal(size=(6, 2))
    array[4, 1] = np.nan
    lazy = bncore.dask.moments(da.from_array(array, chunks=(2, 2)), nan_policy="raise")
    with pytest.raises(ValueError, match="x: expected no NaN"):
        lazy.compute()


def test_without_dask_the_import_names_the_extra():
    code = "import sys; sys.modules['dask'] = None; import bncore.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: bncore.dask: expected Dask" in done.stderr
    assert pip_install("dask") in done.stderr
