"""bncore.jax with float16 and bfloat16: the bits of the NumPy functions, gradients of any order."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerances
import variants

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore
import bncore.jax as bj
from jax_arrays import BY_FUSION, FUSIONS, Arrays, C, same, same_gradients

pytestmark = pytest.mark.needs_jax

FLOAT16, BFLOAT16 = np.float16, jnp.bfloat16.dtype.type
SIXTEEN = {"float16": FLOAT16, "bfloat16": BFLOAT16}
every_type = pytest.mark.parametrize("dtype", SIXTEEN.values(), ids=list(SIXTEEN))


@pytest.fixture(autouse=True)
def _precision(request):
    """Use JAX with float64 for parameters in float64, and with its defaults otherwise."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    jax.config.update("jax_enable_x64", parameters.get("parameters") is np.float64)
    yield
    jax.config.update("jax_enable_x64", False)


@every_type
@pytest.mark.parametrize(
    "parameters", [FLOAT16, BFLOAT16, np.float32, np.float64], ids=lambda p: f"by-{p.__name__}"
)
def test_bits_are_those_of_numpy(rng, dtype, parameters):
    """x and parameters of any two dtypes; gradients have the dtype of their argument."""
    for fusion, shape, axis in (({}, (4, C, 5), 1), (FUSIONS[2], (4, 5, C), -1)):
        a = Arrays(rng, shape, axis, dtype, fusion, True, parameters)
        there = a.residual is not None
        y, moments, gradients = jax.jit(a.trained_by_jax)(*a.given)
        want, want_moments, want_gradients = a.train()
        same(y, want)
        wide = np.float64 if parameters is np.float64 else np.float32
        same(moments.mean, want_moments.mean.astype(wide))
        same(moments.var, want_moments.var().astype(wide))
        same_gradients(gradients, want_gradients, True, there)
        y, gradients = a.inferred_by_jax(*a.given)
        want, want_gradients = a.infer()
        same(y, want)
        same_gradients(gradients, want_gradients, True, there)


@every_type
@pytest.mark.parametrize("fusion", FUSIONS, ids=BY_FUSION)
def test_without_parameters(rng, dtype, fusion):
    a = Arrays(rng, (2, C, 40, 5), 1, dtype, fusion, False, np.float32)
    y, _, gradients = jax.jit(a.trained_by_jax)(*a.given)
    want, _, want_gradients = a.train()
    same(y, want)
    same_gradients(gradients, want_gradients, False, a.residual is not None)


@pytest.mark.parametrize("mapped", [("x", "dy"), ("x", "weight", "dy")], ids=str)
def test_examples_are_batches_of_their_own(rng, mapped):
    """Under vmap a parameter of 16 bits is mapped, or the same for all examples."""
    many = [Arrays(rng, (4, C, 5), 1, BFLOAT16, {}, True, FLOAT16) for _ in range(3)]
    names = ("x", "weight", "bias", "residual", "dy")
    given = [
        np.stack([getattr(a, name) for a in many]) if name in mapped else getattr(many[0], name)
        for name in names
    ]
    axes = tuple(0 if name in mapped else None for name in names)
    y, _, gradients = jax.jit(jax.vmap(many[0].trained_by_jax, axes))(*given)
    for i, one in enumerate(many):
        for name in names:
            if name not in mapped:
                setattr(one, name, getattr(many[0], name))
        want, _, want_gradients = one.train()
        same(y[i], want)
        same_gradients(
            [None if g is None else g[i] for g in gradients], want_gradients, True, False
        )


# Against the formula in float32


def formula(given, wide):
    """What a user writes in jax.numpy to compute with float32 and to round once at the end."""
    x, weight, bias = (a.astype(wide) for a in given)
    mean, var = jnp.mean(x, (0, 2), keepdims=True), jnp.var(x, (0, 2), keepdims=True)
    xhat = (x - mean) / jnp.sqrt(var + 1e-5)
    z = xhat * weight[:, None] + bias[:, None]
    return jnp.where(z > 0, z, 0.0).astype(given[0].dtype)


def by_bncore(given, _wide):
    return bj.batch_norm_train(*given, activation="relu")[0]


def apart(rng, dtype):
    """x, weight and bias; no z is so near 0 that a rounding decides its sign."""
    x = rng.standard_normal((6, C, 50)).astype(dtype)
    given = jnp.asarray(x), jnp.linspace(0.5, 1.5, C).astype(dtype), jnp.zeros(C, dtype)
    z, _ = bj.batch_norm_train(*(a.astype(np.float32) for a in given))
    assert np.abs(z).min() > 1e-5
    return given


def ulps(got, want, dtype) -> float:
    """The largest difference, in ulp of the type at the largest value."""
    got, want = (np.asarray(a).astype(np.float64) for a in (got, want))
    unit = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(np.abs(want).max()))
    return float(np.abs(got - want).max() / unit)


@every_type
def test_values_and_first_gradients_are_those_of_float32_rounded_once(rng, dtype):
    given = apart(rng, dtype)
    dy = jnp.asarray(rng.standard_normal(given[0].shape).astype(dtype))
    results = []
    for function in (by_bncore, formula):
        y, pull = jax.vjp(lambda *given, f=function: f(given, np.float32), *given)
        results.append((y, *pull(dy)))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype == dtype
        assert ulps(got, want, dtype) <= tolerances.JAX_SIXTEEN_ULP


@every_type
def test_gradients_of_gradients(rng, dtype):
    """They compute with float32 as well, and differ by the roundings of what they pass on."""
    given = apart(rng, dtype)
    results = []
    for function in (by_bncore, formula):

        def loss(given, function=function):
            return 0.02 * (function(given, np.float32).astype(np.float32) ** 3).sum()

        def squares(given, loss=loss):
            return sum((a.astype(np.float32) ** 2).sum() for a in jax.grad(loss)(given))

        results.append(jax.jit(jax.grad(squares))(given))
    for got, want in zip(*results, strict=True):
        assert got.dtype == dtype
        assert ulps(got, want, dtype) <= tolerances.JAX_SIXTEEN_AGAIN_ULP


@pytest.mark.parametrize("name", ["train", "infer"])
def test_a_positive_z_that_rounds_to_zero_is_positive(name):
    """The mask comes from z in float32; y, which was rounded to float16, would not tell."""
    x = jnp.asarray(np.array([[-1.0], [1.0], [2.0], [-2.0]], np.float16))
    zero, one = jnp.zeros(1), jnp.ones(1)

    def y_of(x, weight):
        if name == "train":
            return bj.batch_norm_train(x, weight, activation="relu", eps=0.0)[0]
        return bj.batch_norm_infer(x, zero, one, weight, activation="relu", eps=0.0)

    weight = jnp.full(1, 2.0**-27)
    assert not np.asarray(y_of(x, weight)).any()

    def gradient_by_weight(dy):
        return jax.vjp(partial(y_of, x), weight)[1](dy)[0][0]

    dy = jnp.ones(x.shape, x.dtype)
    passed = jax.grad(gradient_by_weight)(dy)
    np.testing.assert_array_equal(np.asarray(passed) != 0, np.asarray(x) > 0)


@every_type
def test_gradients_through_the_statistics(rng, dtype):
    """They are added to dx in float32, before it is rounded."""
    x = jnp.asarray(rng.standard_normal((6, C, 50)).astype(dtype))

    def own(x):
        _, moments = bj.batch_norm_train(x)
        return 100.0 * ((moments.mean + 1.0) ** 2 * moments.var).sum()

    def by_formula(x):
        x = x.astype(np.float32)
        return 100.0 * ((jnp.mean(x, (0, 2)) + 1.0) ** 2 * jnp.var(x, (0, 2))).sum()

    got, want = (jax.jit(jax.grad(f))(x) for f in (own, by_formula))
    assert got.dtype == want.dtype == dtype
    assert ulps(got, want, dtype) <= tolerances.JAX_SIXTEEN_ULP


@every_type
def test_running_statistics_of_sixteen_bits(rng, dtype):
    x = rng.standard_normal((4, C, 5)).astype(dtype)
    expected = rng.standard_normal(C).astype(dtype), rng.uniform(0.5, 2.0, C).astype(dtype)
    running = tuple(map(jnp.array, expected))
    bncore.update_running_stats(*expected, bncore.moments(x))
    moved = bj.update_running_stats(*running, bj.batch_norm_train(x)[1])
    for got, want in zip(moved, expected, strict=True):
        assert got.dtype == dtype
        assert ulps(got, want, dtype) <= tolerances.JAX_SIXTEEN_ULP


@every_type
def test_a_slope_beyond_sixteen_bits_is_one_of_float32(rng, dtype):
    """The arithmetic is float32's, so the slope is judged by it."""
    x = rng.standard_normal((4, C, 5)).astype(dtype)
    slope = {"activation": "leaky_relu", "negative_slope": 1e5}
    same(bj.batch_norm_train(x, **slope)[0], bncore.batch_norm_train(x, **slope)[0])
    with pytest.raises(ValueError, match="negative_slope: expected a finite number"):
        bj.batch_norm_train(x, activation="leaky_relu", negative_slope=1e39)


def test_a_residual_of_the_other_sixteen_bits_is_refused():
    x = np.ones((4, C, 5), np.float16)
    with pytest.raises(TypeError, match="residual: expected float16, got bfloat16"):
        bj.batch_norm_train(x, residual=x.astype(BFLOAT16))
