"""var and std with NumPy's signatures; mean_var with ddof, out, where, weights and NaN policies."""

from __future__ import annotations

import inspect
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arrays
import bncore
import tolerances
from tolerances import EPS32, EPS64

AXES = [None, (), 0, 1, -1, (0, 2), (2, 0), (1, 2), (0, 1), (0, 1, 2)]


def close(got, want, dtype=np.float64):
    assert np.shape(got) == np.shape(want) and got.dtype == dtype
    assert isinstance(got, np.ndarray) == isinstance(want, np.ndarray)
    rtol = 2 * EPS32 if dtype == np.float32 else 64 * EPS64
    np.testing.assert_allclose(np.float64(got), np.float64(want), rtol=rtol, atol=16 * EPS64)


@pytest.mark.parametrize("dtype", arrays.FLOATS)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_they_are_numpys(backend, rng, axis, dtype):
    x = (rng.standard_normal((3, 4, 5)) + 3.0).astype(dtype)
    for ddof, keepdims in itertools.product((0, 1, 0.5), (False, True)):
        for ours, theirs in ((bncore.var, np.var), (bncore.std, np.std)):
            if axis == () and ddof:
                continue
            want = theirs(x, axis, np.float64, None, ddof, keepdims)
            close(ours(x, axis, None, None, ddof, keepdims), want, dtype)
            close(ours(x, axis, np.float64, None, ddof, keepdims), want)
            again = ours(x, axis=axis, correction=ddof, keepdims=keepdims)
            assert arrays.same_bits(again, ours(x, axis, ddof=ddof, keepdims=keepdims))


@pytest.mark.parametrize("name", ["var", "std"])
def test_their_positional_arguments_are_numpys(name):
    def names(function):
        parameters = list(inspect.signature(function).parameters.values())
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert names(getattr(bncore, name))[1:] == names(getattr(np, name))[1:]


def test_the_std_of_sixteen_bits_is_finite_where_the_variance_is_not(backend):
    x = np.array([-300.0, 300.0, -300.0, 300.0], np.float16)
    assert bncore.var(x) == np.inf and bncore.var(x, dtype=np.float64) == 9e4
    assert bncore.std(x) == 300.0 and bncore.std(x).dtype == np.float16
    for of_type in arrays.SIXTEEN_BITS:
        one = bncore.std(np.array([[1.0, 3.0], [1.0, 4.0]], of_type), axis=1)
        assert one.dtype == of_type and one.astype("f4").tolist() == [1.0, 1.5]


@pytest.mark.parametrize("where", ["shared", "full", "one"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_where_is_numpys(backend, rng, axis, where):
    base = rng.standard_normal((4, 5, 6))
    mask = rng.random({"shared": (4, 1, 6), "full": (4, 5, 6), "one": (6,)}[where]) < 0.7
    for order in itertools.permutations(range(3)):
        x = np.ascontiguousarray(base.transpose(order)).transpose(np.argsort(order))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns where the mask leaves nothing
            want = np.mean(x, axis, where=mask), np.var(x, axis, where=mask)
        for got, one in zip(bncore.mean_var(x, axis=axis, where=mask), want, strict=True):
            close(got, one)
        close(bncore.std(x, axis, where=mask), np.sqrt(want[1]))


@pytest.mark.parametrize("dtype", arrays.FLOATS)
@pytest.mark.parametrize("axis", [*AXES[2:], None], ids=str)
def test_omitted_nan_are_those_of_nanmean_and_nanvar(backend, rng, axis, dtype):
    x = (rng.standard_normal((8, 9, 7)) + 2.0).astype(dtype)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[..., :2] = x[:2] = 0.5  # two values at least
    wide = x.astype(np.float64)
    mean, var = bncore.mean_var(x, axis=axis, nan_policy="omit", ddof=1)
    close(mean, np.nanmean(wide, axis), dtype)
    close(var, np.nanvar(wide, axis, ddof=1), dtype)
    mean, var = bncore.mean_var(x, axis=axis, nan_policy="omit", dtype=np.float64)
    close(mean, np.nanmean(wide, axis))
    close(var, np.nanvar(wide, axis))


def test_no_value_is_nan_without_a_warning(backend):
    x = np.array([[np.nan, np.nan], [1.0, np.nan]])
    mean, var = bncore.mean_var(x, axis=1, nan_policy="omit")
    assert np.isnan([mean[0], var[0]]).all() and (mean[1], var[1]) == (1.0, 0.0)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_any_rank_axes_and_masks(shape, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape)
    axis = data.draw(
        st.none() | st.lists(st.sampled_from(range(len(shape))), unique=True).map(tuple)
    )
    own = [data.draw(st.sampled_from([1, n])) for n in shape]
    mask = rng.random(own[data.draw(st.integers(0, len(shape))) :]) < 0.7
    weights = rng.integers(0, 3, own)
    with bncore.use_backend("numpy"):
        mean, var = bncore.mean_var(x, axis=axis, where=mask, weights=weights)
    w = np.broadcast_to(mask * weights, shape)
    with np.errstate(all="ignore"):
        total = w.sum(axis, keepdims=True)
        want = (w * x).sum(axis, keepdims=True) / total
        spread = (w * (x - want) ** 2).sum(axis) / total.reshape(np.shape(var))
    close(mean, want.reshape(np.shape(mean))[()])
    np.testing.assert_allclose(var, spread, rtol=tolerances.WEIGHTED, atol=EPS64)


@pytest.mark.parametrize("of_type", [np.uint8, np.int8, np.uint16, np.int32, bool])
def test_integers_are_those_of_float64(backend, rng, of_type):
    x = rng.integers(-100, 100, (7, 6, 40)).astype(of_type)
    wide, mask, weights = x.astype(np.float64), rng.random((7, 1, 40)) < 0.7, rng.random((6, 1))
    for given_names in (
        {}, {"where": mask}, {"weights": weights}, {"nan_policy": "omit"}, {"nan_policy": "raise"},
        {"where": mask, "nan_policy": "raise"},
    ):  # fmt: skip
        for axis in (None, 0, (0, 2)):
            for function in (bncore.mean_var, bncore.var, bncore.std):
                want = function(wide, axis=axis, **given_names)
                np.testing.assert_allclose(
                    function(x, axis=axis, **given_names), want, rtol=1e-13, atol=1e-12
                )
                scaled = function(x, axis=axis, scale=0.5, **given_names)
                half = function(wide * 0.5, axis=axis, **given_names)
                np.testing.assert_allclose(scaled, half, rtol=1e-13, atol=1e-12)
        found, want = bncore.moments(x, **given_names), bncore.moments(wide, **given_names)
        for name in ("count", "mean", "m2"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(want, name), rtol=1e-13, atol=1e-12
            )


def test_integers_are_filled_and_standardized(backend, rng):
    x = rng.integers(0, 256, (5, 8, 9, 3), np.uint8)
    where = rng.random((5, 8, 9, 1)) < 0.8
    y, found = bncore.standardize(x, axis=-1, where=where, fill=-1.0)
    want, _ = bncore.standardize(x.astype(np.float32), axis=-1, where=where, fill=-1.0)
    assert y.dtype == np.float32 and (y == -1.0)[~where[..., 0]].all()
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert (found.count == where.sum()).all()
    back = bncore.destandardize(y, found, axis=-1)
    np.testing.assert_allclose(back[where[..., 0]], x[where[..., 0]], rtol=1e-5, atol=1e-4)


# --------------------------------------------------------------------------------- ddof and out


def test_ddof_is_correction(backend, rng):
    x = rng.standard_normal((5, 6))
    want = bncore.mean_var(x, axis=0, correction=1)
    for given_names in ({"ddof": 1}, {"ddof": 1.0, "correction": 1}):
        for got, one in zip(bncore.mean_var(x, axis=0, **given_names), want, strict=True):
            assert arrays.same_bits(got, one)
    with pytest.raises(ValueError, match=r"^ddof: expected it or correction alone, got 0 and 1$"):
        bncore.mean_var(x, ddof=0, correction=1)
    for name in ("ddof", "correction"):
        with pytest.raises(TypeError, match=rf"^{name}: expected a real number"):
            bncore.var(x, **{name: "1"})


@pytest.mark.parametrize("dtype", [*arrays.FLOATS, np.float16])
def test_outputs(backend, rng, dtype):
    x = rng.standard_normal((4, 6)).astype(dtype)
    want = bncore.mean_var(x, axis=0)
    for out in (
        (np.empty(6, dtype), np.empty(6, dtype)),
        list(np.empty((2, 6), dtype)),
        (np.empty(6, np.dtype(dtype).newbyteorder(">")), np.empty(12, dtype)[::2]),
    ):
        got = bncore.mean_var(x, axis=0, out=out)
        assert got[0] is out[0] and got[1] is out[1]
        assert (got[0] == want[0]).all() and (got[1] == want[1]).all()
    one = np.empty((), dtype)
    assert bncore.var(x, out=one) is one and one == bncore.var(x)
    assert bncore.std(x, out=one) is one and one == bncore.std(x)
    wide = np.empty((1, 6))
    bncore.std(x, 0, np.float64, wide, keepdims=True)
    assert arrays.same_bits(wide, bncore.std(x, 0, np.float64, keepdims=True))


GOOD = np.full(6, 7.0)


@pytest.mark.parametrize(("out", "error", "message"), [
    (GOOD, TypeError, "a pair of arrays, got ndarray"),
    ((GOOD,), TypeError, "a pair of arrays, got tuple"),
    ((GOOD, GOOD), ValueError, "apart from each other"),
    ((GOOD, np.zeros(5)), ValueError, r"shape \(6,\), got \(5,\)"),
    ((GOOD, np.zeros(6, "f4")), TypeError, "float64, got float32"),
    ((GOOD, [0.0] * 6), TypeError, "a NumPy array, got list"),
    ((GOOD, np.broadcast_to(0.0, 6)), ValueError, "writable"),
])  # fmt: skip
def test_wrong_outputs_are_refused_before_either_is_written(out, error, message):
    with pytest.raises(error, match=rf"^out: expected .*{message}"):
        bncore.mean_var(np.ones((4, 6)), axis=0, out=out)
    assert (GOOD == 7.0).all()
    if not isinstance(out, tuple) or len(out) < 2 or out[1] is GOOD:
        return
    for function in (bncore.var, bncore.std):
        with pytest.raises(error, match=rf"^out: expected .*{message}"):
            function(np.ones((4, 6)), axis=0, out=out[1])
