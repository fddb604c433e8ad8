"""16-bit data: the arithmetic of float32 on the stored values, rounded once where it is stored.

The expected results come from bncore's own float32 operations on the same values with the same
statistics, rounded by NumPy or ml_dtypes.  tests/arguments/test_bfloat16.py tests the rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import LAYOUTS, SIXTEEN_BITS
from bncore.arguments.arrays import cast

SHAPES = [(3, 2, 37), (40, 3)]  # planes, rows
FUSIONS = [None, ("relu", True), ("leaky_relu", False), (None, True)]


def rounded(values, dtype):
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float32).astype(dtype)


def wide(array):
    """The same values in native float32."""
    return array.astype(array.dtype.newbyteorder("=")).astype(np.float32)


def make_case(rng, shape, dtype, fusion=None, parameter_dtype=np.float32):
    case = operations.make_case(rng, shape, dtype, parameter_dtype=parameter_dtype)
    if fusion is None:
        return case
    activation, with_residual = fusion
    residual = rng.standard_normal(shape).astype(dtype) if with_residual else None
    return replace(case, fusion=operations.Fusion(activation, 0.3, residual))


def expected_forward(case, mean, var):
    """y and z, the value before the activation, in float32."""
    fusion = case.fusion or operations.Fusion()
    residual = None if fusion.residual is None else wide(fusion.residual)
    given = wide(case.x), mean, var, case.weight, case.bias
    z = bncore.batch_norm_infer(*given, axis=case.axis, eps=case.eps, residual=residual)
    return fusion.activated(z, z), z


def expected_backward(case, mean, var, count, z):
    """dx, dweight and dbias of training, and g, which is rounded before it is summed."""
    fusion = case.fusion or operations.Fusion()
    g = rounded(fusion.activated(z, wide(case.dy)), case.x.dtype.newbyteorder("="))
    moments = bncore.Moments(count, mean, var * count)
    options = {"axis": case.axis, "eps": case.eps}
    sums = bncore.grad_sums(g, case.x, moments, **options)
    dx = bncore.grad_input(wide(g), wide(case.x), moments, sums, case.weight, **options)
    return dx, sums, g


def assert_same(got, expected):
    assert arrays.same_bits(got, rounded(expected, got.dtype.newbyteorder("=")))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_results_are_those_of_float32_rounded_once(backend, rng, dtype, shape, fusion):
    for layout in LAYOUTS:
        case = make_case(rng, shape, dtype, fusion).laid_out(layout)
        moments = case.moments
        y, z = expected_forward(case, moments.mean, moments.var())
        assert_same(operations.train(case)["y"], y)
        dx, sums, g = expected_backward(case, moments.mean, moments.var(), moments.count, z)
        given = {} if fusion is None else {"dresidual": np.empty_like(case.x, order="K")}
        got = operations.train_backward(case, **given)
        assert_same(got["dx"], dx)
        assert arrays.same_bits(got["dweight"], sums.sum_dy_xhat.astype(np.float32))
        assert arrays.same_bits(got["dbias"], sums.sum_dy.astype(np.float32))
        if given:
            assert arrays.same_bits(got["dresidual"], g)
        y, z = expected_forward(case, case.mean, case.var)
        assert_same(operations.infer(case)["y"], y)
        g = expected_backward(case, case.mean, case.var, moments.count, z)[2]
        scale = case.weight / np.sqrt(case.var + case.eps)
        shape_of_scale = [1] * g.ndim
        shape_of_scale[case.axis] = -1
        dx = wide(g) * scale.astype(np.float32).reshape(shape_of_scale)
        assert_same(operations.infer_backward(case)["dx"], dx)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_the_parts_of_training_give_its_bits(backend, rng, dtype):
    for shape in SHAPES:
        case = make_case(rng, shape, dtype)
        train, backward = operations.train(case), operations.train_backward(case)
        assert arrays.same_bits(operations.normalize(case)["y"], train["y"])
        assert arrays.same_bits(operations.grad_input(case)["dx"], backward["dx"])
        assert arrays.same_bits(case.sums.sum_dy.astype(np.float32), backward["dbias"])
        y = case.x.copy()
        operations.train(replace(case, x=y), out=y)
        assert arrays.same_bits(y, train["y"])


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("of", [*SIXTEEN_BITS, np.float32, np.float64])
def test_parameters_may_have_any_dtype(backend, rng, dtype, of):
    """Their exact values count, and the gradients have weight's dtype."""
    case = make_case(rng, (5, 3, 7), dtype, ("relu", False), of)
    case = replace(case, mean=case.mean.astype(of), var=case.var.astype(of))
    exact = {
        name: getattr(case, name).astype(np.float64) for name in ("weight", "bias", "mean", "var")
    }
    for name in operations.FUSED:
        got = operations.ALL[name](case)
        wanted = operations.ALL[name](replace(case, **exact))
        for key, value in wanted.items():
            if key in ("dweight", "dbias"):
                assert got[key].dtype == of
                value = cast(value, of)
            assert arrays.same_bits(got[key], value), (name, key)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_gradients_without_a_weight_are_float32(backend, rng, dtype):
    case = make_case(rng, (5, 3, 7), dtype, None, None)
    for name in ("train_backward", "infer_backward"):
        got = operations.ALL[name](case)
        assert got["dx"].dtype == dtype
        assert got["dweight"].dtype == got["dbias"].dtype == np.float32


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_what_cannot_be_stored_becomes_infinite_and_nan_stays_nan(backend, dtype):
    x = np.array([[1.0, np.nan, np.inf, 2.0]], dtype)
    huge = 1e300
    y = bncore.batch_norm_infer(x, np.zeros(4), np.ones(4), np.full(4, huge), eps=0.0)
    assert np.isnan(y[0, 1]) and np.isposinf(y.astype(np.float64)[0, [0, 2, 3]]).all()
    tiny = np.array([[1, 3]], np.uint16).view(dtype)  # the smallest numbers
    same = bncore.batch_norm_infer(tiny, np.zeros(2), np.ones(2), eps=0.0)
    assert arrays.same_bits(same, tiny)


@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, np.float32])
def test_sums_in_float64_on_request(backend, rng, dtype):
    """They are those of the same values in float64, to the bit."""
    for shape in [(3, 2, 5000), (3000, 3)]:
        x = (rng.standard_normal(shape) + 3.0).astype(dtype)
        exact = bncore.moments(x.astype(np.float64))
        for asked in (np.float64, "float64", np.dtype("f8"), float):
            assert bncore.moments(x, dtype=asked) == exact
        assert bncore.stream_moments(x, dtype=np.float64) == exact
        assert bncore.merged_moments([x], dtype=np.float64) == exact
        axes = (0, *range(2, x.ndim))
        mean, var = bncore.mean_var(x, axis=axes, dtype=np.float64)
        assert mean.dtype == var.dtype == np.float64
        assert np.array_equal(mean, exact.mean) and np.array_equal(var, exact.var())
        copied = bncore.mean_var(x[:, ::-1], axis=axes, dtype=np.float64)
        assert np.array_equal(copied[0], mean[::-1])


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_mean_and_variance_have_the_dtype_of_x(backend, rng, dtype):
    x = (rng.standard_normal((6, 5)) + 3.0).astype(dtype)
    for view in (x, x[::-1]):
        mean, var = bncore.mean_var(view, axis=0)
        moments = bncore.moments(view)
        assert_same(mean, moments.mean)
        assert_same(var, moments.var())
    assert all(type(value) is dtype for value in bncore.mean_var(x))


@pytest.mark.parametrize("asked", [np.float32, "f2", int, "no dtype", 3.0, ">f8"])
def test_sums_in_another_dtype_are_refused(asked):
    x = np.ones((4, 3), np.float32)
    for call in (bncore.moments, bncore.mean_var, bncore.stream_moments):
        with pytest.raises(TypeError, match=r"^dtype: expected None or float64, got "):
            call(x, dtype=asked)
    with pytest.raises(TypeError, match=r"^dtype: expected None or float64, got "):
        bncore.merged_moments([bncore.moments(x)], dtype=asked)
