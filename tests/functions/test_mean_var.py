"""mean_var against NumPy in float64: axes, corrections, shapes, layouts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bncore
from bncore.functions.mean_var import Reduction
from tolerances import EPS32, EPS64
from views import in_memory_order, numbered, views

AXES = [None, (), 0, 1, -1, (0, 2), (2, 0), (1, 2), (0, 1), (-1, 0, 1), (0, 1, 2)]


def reference(x, axis, correction, keepdims):
    wide = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        return (
            wide.mean(axis, keepdims=keepdims),
            wide.var(axis, ddof=correction, keepdims=keepdims),
        )


def assert_close(got, expected, dtype):
    # float64: the reference is longdouble, and at most some hundred values are added.
    rtol = 2 * EPS32 if dtype == np.float32 else 16 * EPS64
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol,
                                   atol=EPS64)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_it_is_numpys_mean_and_var(backend, rng, axis, keepdims, dtype):
    base = rng.standard_normal((3, 4, 5)).astype(dtype) + dtype(3)
    for order in itertools.permutations(range(3)):
        x = np.ascontiguousarray(base.transpose(order)).transpose(np.argsort(order))
        for correction in (0, 1, 0.5):
            got = bncore.mean_var(x, axis=axis, correction=correction, keepdims=keepdims)
            if axis == () and correction == 1:
                assert np.isnan(got[1]).all()
                continue
            assert_close(got, reference(x, axis, correction, keepdims), dtype)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=5), st.data())
def test_any_rank_and_any_axes(shape, data):
    x = np.random.default_rng(0).standard_normal(shape)[...]
    axis = data.draw(
        st.none() | st.lists(st.sampled_from(range(len(shape))), unique=True).map(tuple)
        if shape
        else st.sampled_from([None, ()])
    )
    keepdims = data.draw(st.booleans())
    got = bncore.mean_var(x, axis=axis, keepdims=keepdims)
    with np.errstate(all="ignore"):
        if x.size:
            assert_close(got, reference(x, axis, 0, keepdims), np.float64)
        else:
            shape_of = np.sum(x, axis=axis, keepdims=keepdims).shape
            assert got[0].shape == got[1].shape == shape_of
            assert np.isnan(got[0]).all() and np.isnan(got[1]).all()


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((2, 0, 3)), np.zeros(0)])
def test_the_mean_of_nothing_is_nan_in_silence(backend, x):
    mean, var = bncore.mean_var(x)
    assert type(mean) is type(var) is np.float64
    assert np.isnan(mean) and np.isnan(var)


def test_too_few_values_for_the_correction(backend):
    x = np.array([[1.0, 1.0], [1.0, 2.0]])
    for correction in (2, 3):
        _, var = bncore.mean_var(x, axis=0, correction=correction)
        assert np.isnan(var[0]) and var[1] == np.inf


@pytest.mark.parametrize(("axis", "error"), [
    ((0, 0), ValueError), ((0, -2), ValueError), (2, ValueError), ((0, 5), ValueError),
    (1.0, TypeError), ([0], TypeError), ((0, None), TypeError), ("0", TypeError),
])  # fmt: skip
def test_axes_that_are_none(axis, error):
    with pytest.raises(error, match=r"^axis: expected "):
        bncore.mean_var(np.ones((3, 4)), axis=axis)


def test_an_axis_error_is_numpys():
    with pytest.raises(np.exceptions.AxisError, match=r"^axis: expected no axis for 0 dimensions"):
        bncore.mean_var(np.float64(1.0), axis=0)


def test_a_copy_is_made_of_what_is_no_block(backend, rng):
    x = rng.standard_normal((6, 8, 4)).astype(">f4")[::-2, ::2]
    assert_close(bncore.mean_var(x, axis=(0, 2)), reference(x, (0, 2), 0, False), np.float32)


def test_a_mean_far_from_zero_keeps_the_digits_of_the_variance(backend, rng):
    x = rng.standard_normal((50, 40)) + 1e9
    _, var = bncore.mean_var(x, axis=0)
    exact = ((x - 1e9) - (x - 1e9).mean(0)).var(0)  # x - 1e9 is exact
    np.testing.assert_allclose(var, exact, rtol=1e-13)


# ------------------------------------------------------------------------------- what is copied


def reduction_axes(rank: int) -> list[tuple[int, ...]]:
    return [axes for n in range(rank + 1) for axes in itertools.combinations(range(rank), n)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("axes", reduction_axes(3), ids=str)
def test_kept_axes_that_lie_together_need_no_copy(order, axes):
    x = in_memory_order(numbered((2, 3, 4)), order)
    r = Reduction(x, axes, False)
    pattern = "".join("R" if i in axes else "K" for i in order)
    assert np.shares_memory(r.x, x) == ("R" not in pattern.strip("R"))
    assert r.count == math.prod(x.shape[i] for i in axes)
    sums = r.result(r.x.sum((0, 2)))
    np.testing.assert_array_equal(sums, x.sum(axes))


@given(views(), st.data())
def test_reductions_keep_what_numpy_keeps(array, data):
    axes = data.draw(st.sampled_from([None, *reduction_axes(array.ndim)]))
    keepdims = data.draw(st.booleans())
    r = Reduction(array, axes, keepdims)
    expected = array.sum(axes, keepdims=keepdims)
    got = r.result(r.x.sum((0, 2)))
    assert type(got) is type(expected) and got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
