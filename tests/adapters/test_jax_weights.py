"""What counts in bncore.jax: bits of the NumPy functions, exact gradients, and bad input."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bncore
import tolerances
import variants
import weight_cases
from arrays import LAYOUTS
from jax_arrays import same

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore.jax as bj

pytestmark = pytest.mark.needs_jax

C = 3
SHAPE = (4, C, 5, 2)
KINDS = [*weight_cases.KINDS, "omit"]


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def counts(rng, kind, shape=SHAPE, layout=LAYOUTS[0]):
    if kind == "omit":
        return {"nan_policy": "omit"}
    return weight_cases.KINDS[kind](rng, shape).given(layout)


def moved(array, axis):
    return np.ascontiguousarray(np.moveaxis(array, 1, axis))


def test_a_mask_of_numpy_may_have_any_bytes(rng):
    x = rng.standard_normal((6, C))
    odd = np.array([2, 0, 255, 1, 0, 7], np.uint8).view(bool)[:, None]
    _, moments = bj.batch_norm_train(jnp.asarray(x), where=odd)
    _, expected = bncore.batch_norm_train(x, where=odd)
    np.testing.assert_array_equal(np.asarray(moments.count), expected.count)
    np.testing.assert_array_equal(np.asarray(moments.mean), expected.mean)


@pytest.mark.parametrize(("axis", "jit"), [(1, False), (-1, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_bits_of_numpy(rng, kind, axis, jit):
    given = {k: moved(v, axis) if k != "nan_policy" else v for k, v in counts(rng, kind).items()}
    x, dy, residual = (moved(rng.standard_normal(SHAPE), axis).astype(np.float32) for _ in "abc")
    if kind == "omit":
        x[0, 1], x[2, 1, 0] = np.nan, np.nan
    weight, bias = rng.standard_normal((2, C)).astype(np.float32)
    policy = {k: v for k, v in given.items() if k == "nan_policy"}
    arrays = {k: v for k, v in given.items() if k != "nan_policy"}
    for fill, activation in ((None, None), (0.5, "leaky_relu")):
        fused = {"axis": axis, "activation": activation, "negative_slope": 0.1, "fill": fill}
        y, moments = bncore.batch_norm_train(x, weight, bias, residual=residual, **fused, **given)
        dresidual = np.empty_like(y)
        gradients = bncore.batch_norm_train_backward(
            dy, x, moments, weight, bias=bias, residual=residual, dresidual=dresidual,
            **fused, **given,
        )  # fmt: skip

        def call(x, weight, bias, residual, dy, arrays, fused=fused):
            def forward(x, weight, bias, residual):
                return bj.batch_norm_train(
                    x, weight, bias, residual=residual, **fused, **arrays, **policy
                )

            y, pull, moments = jax.vjp(forward, x, weight, bias, residual, has_aux=True)
            return y, moments, pull(dy)

        run = jax.jit(call) if jit else call
        got, found, pulled = run(x, weight, bias, residual, dy, arrays)
        same(got, y)
        same(found.count, moments.count)
        same(found.mean, moments.mean)
        same(found.var, moments.var())
        for a, b in zip(pulled, (*gradients, dresidual), strict=True):
            same(a, b)


def test_evaluation_gives_the_bits_of_numpy(rng):
    given = counts(rng, "shared_mask")
    x, dy = rng.standard_normal((2, *SHAPE))
    mean, var, weight = rng.random((3, C))
    for fill in (None, 7.0):
        want = bncore.batch_norm_infer(x, mean, var, weight, fill=fill, **given)
        gradients = bncore.batch_norm_infer_backward(dy, x, mean, var, weight, fill=fill, **given)

        def forward(x, weight, fill=fill):
            return bj.batch_norm_infer(x, mean, var, weight, fill=fill, **given)

        y, pull = jax.vjp(forward, x, weight)
        same(y, want)
        for a, b in zip(pull(dy), gradients[:2], strict=True):
            same(a, b)


def test_16_bits_give_the_bits_of_numpy(rng):
    given = counts(rng, "both")
    x, dy = rng.standard_normal((2, *SHAPE)).astype(np.float16)
    want, moments = bncore.batch_norm_train(x, fill=0.5, **given)
    gradients = bncore.batch_norm_train_backward(dy, x, moments, fill=0.5, **given)
    y, pull = jax.vjp(lambda x: bj.batch_norm_train(x, fill=0.5, **given)[0], x)
    same(y, want)
    same(pull(dy)[0], gradients[0])


# Gradients


def plain(x, weight, bias, w, fill=None):
    """The formula as a user writes it, with the weight of every value: y, mean and var."""
    axes = (0, *range(2, x.ndim))
    number = w.sum(axes, keepdims=True)
    x = x if fill is None else jnp.where(w == 0, 0.0, x)
    mean = (w * x).sum(axes, keepdims=True) / number
    var = (w * (x - mean) ** 2).sum(axes, keepdims=True) / number
    column = (1, -1) + (1,) * (x.ndim - 2)
    y = (x - mean) / jnp.sqrt(var + 1e-5) * weight.reshape(column) + bias.reshape(column)
    return y if fill is None else jnp.where(w == 0, fill, y), mean.ravel(), var.ravel()


@pytest.mark.parametrize(
    ("kind", "fill"),
    [("shared_mask", None), ("full_mask", 0.5), ("full_weights", None), ("both", 0.5)],
)
def test_gradients_are_those_of_the_formula(rng, kind, fill):
    """First and second gradients, also through the moments, in float64."""
    made = weight_cases.KINDS[kind](rng, SHAPE)
    given, w = made.given(), made.w
    x, r = rng.standard_normal((2, *SHAPE))
    weight, bias = rng.standard_normal((2, C))

    def ours(x, weight, bias):
        y, moments = bj.batch_norm_train(x, weight, bias, fill=fill, **given)
        return y, moments.mean, moments.var

    def theirs(x, weight, bias):
        return plain(x, weight, bias, w, fill)

    def first(function, *arguments):
        def loss(*arguments):
            y, mean, var = function(*arguments)
            return (r * y**2).sum() + (mean**2).sum() + (var * mean).sum()

        return jax.grad(loss, (0, 1, 2))(*arguments)

    def second(function):
        def loss(*arguments):
            return sum((one**2).sum() for one in first(function, *arguments))

        return jax.grad(loss, (0, 1, 2))(x, weight, bias)

    for found, want in (
        (first(ours, x, weight, bias), first(theirs, x, weight, bias)),
        (second(ours), second(theirs)),
    ):
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerances.WEIGHTED * abs(b).max())


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38])
def test_garbage_reaches_no_result(rng, fill, garbage):
    """Second gradients included, where the loss does not depend on y under the mask."""
    x = rng.standard_normal((4, C, 5)).astype(np.float32)
    where = (np.arange(5) < np.array([5, 3, 4, 2])[:, None])[:, None]
    weight = rng.standard_normal(C).astype(np.float32)

    def loss(x, weight):
        y, moments = bj.batch_norm_train(x, weight, where=where, fill=fill)
        return (jnp.where(where, y, 0.0) ** 3).sum() + moments.var.sum(), (y, moments)

    def gradients(x, weight):
        return jax.grad(loss, (0, 1), has_aux=True)(x, weight)

    def results(x):
        first, (y, moments) = gradients(x, weight)
        second = jax.grad(lambda *a: (gradients(*a)[0][0] ** 2).sum(), (0, 1))(x, weight)
        found = [y, *first, *second, moments.count, moments.mean, moments.var]
        return [np.where(where, one, 0.0) if one.ndim == 3 else np.asarray(one) for one in found]

    dirty = np.where(where, x, np.float32(garbage))
    for clean, found in zip(results(x), results(dirty), strict=True):
        np.testing.assert_array_equal(clean, found)
        assert np.isfinite(clean).all()


# vmap and jit


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (1, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("channels", [1, C])
def test_vmap(rng, in_axes, channels):
    xs = rng.standard_normal((2, 4, C, 5))
    masks = rng.random((2, 4, channels, 5)) < 0.8

    def gradient(x, where):
        def loss(x):
            y, moments = bj.batch_norm_train(x, where=where, fill=0.5)
            return (y**3).sum() + moments.var.sum(), (y, moments.count)

        return jax.grad(loss, has_aux=True)(x)

    given = [
        one[0] if axis is None else np.moveaxis(one, 0, axis)
        for one, axis in zip((xs, masks), in_axes, strict=True)
    ]
    found = jax.vmap(gradient, in_axes)(*given)
    for i in range(2):
        pair = [one[0 if a is None else i] for one, a in zip((xs, masks), in_axes, strict=True)]
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient(*pair)), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_ones_are_no_weights(rng):
    x = rng.standard_normal(SHAPE)
    want = np.asarray(bj.batch_norm_train(x)[0])
    for given in (
        {"where": np.ones((4, 1, 5, 2), bool)},
        {"where": np.array(True)},
        {"weights": np.ones(2, np.int16)},
        {"weights": np.ones(SHAPE, np.float32)},
        {"weights": np.ones(SHAPE, bool), "where": np.array(True)},
        {"nan_policy": "omit", "fill": 3.0},
        {"fill": 3.0},
    ):
        same(bj.batch_norm_train(x, **given)[0], want)


def test_running_statistics_by_counts_per_channel(rng):
    x = rng.standard_normal((4, C, 5))
    where = np.ones((4, C, 1), bool)
    where[:, 1] = False
    running = np.zeros(C), np.ones(C)
    bncore.update_running_stats(*running, bncore.moments(x, where=where))

    def step(x, where):
        y, moments = bj.batch_norm_train(x, where=where, fill=0.5)
        return y, moments

    for run in (step, jax.jit(step)):
        y, moments = run(x, where)
        assert (y[:, 1] == 0.5).all() and moments.count.tolist() == [20, 0, 20]
        for a, b in zip(
            bj.update_running_stats(np.zeros(C), np.ones(C), moments), running, strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-15)


# Bad input

X = np.sin(np.arange(60.0)).reshape(4, C, 5)
BAD = {
    "dtype of mask": ({"where": np.ones(5)}, TypeError, "where: expected bool, got float64"),
    "no array": ({"where": [True]}, TypeError, "where: expected an array, got "),
    "shape": (
        {"where": np.ones((4, C, 4), bool)},
        ValueError,
        "where: expected a shape that broadcasts against x's (4, 3, 5), got (4, 3, 4)",
    ),
    "more dimensions": (
        {"weights": np.ones((1, 4, C, 5))},
        ValueError,
        "weights: expected a shape that broadcasts against x's (4, 3, 5), got (1, 4, 3, 5)",
    ),
    "complex": ({"weights": np.ones(5, complex)}, TypeError, "weights: expected real numbers"),
    "negative": (
        {"weights": np.array([[1.0], [-2.0], [1.0]])},
        ValueError,
        "weights: expected finite numbers >= 0, got -2.0 at (0, 1, 0)",
    ),
    "NaN": (
        {"weights": np.array([1, np.nan, 1, 1, 1])},
        ValueError,
        "weights: expected finite numbers >= 0, got nan at (0, 0, 1)",
    ),
    "policy": (
        {"nan_policy": "skip"},
        ValueError,
        "nan_policy: expected None, 'propagate', 'omit'",
    ),
    "fill": ({"fill": "0"}, TypeError, "fill: expected a real number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    given, kind, text = BAD[name]
    with pytest.raises(kind, match=re.escape(text)):
        bj.batch_norm_train(X, **given)


def test_nan_that_counts_is_refused():
    x = X.copy()
    x[2, 1, 0] = np.nan
    where = np.ones((4, 1, 1), bool)
    with pytest.raises(ValueError, match=r"x: expected no NaN .* got NaN in channel 1$"):
        bj.batch_norm_train(x, where=where, nan_policy="raise")
    where[2] = False
    y, _ = bj.batch_norm_train(x, where=where, nan_policy="raise")
    assert np.isfinite(y[:2]).all()
    with pytest.raises(ValueError, match=r"'propagate' or 'omit' while a call is traced"):
        jax.jit(lambda x: bj.batch_norm_train(x, nan_policy="raise")[0])(x)


def test_a_negative_variance_is_refused_where_it_is_known():
    mean, var = np.zeros(C), np.array([1.0, -0.5, 1.0])
    with pytest.raises(ValueError, match=r"var: expected variances >= 0, got -0.5 for channel 1"):
        bj.batch_norm_infer(X, mean, var)
    y = jax.jit(bj.batch_norm_infer)(X, mean, var)
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, 0]).all()
