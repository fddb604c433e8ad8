"""bncore.jax: the bits of the NumPy functions, under every transform; messages; no copy."""

from __future__ import annotations

import doctest
import importlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bncore
import variants

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore.jax as bj
from jax_arrays import BY_FUSION, FUSIONS, LAYOUTS, Arrays, C, same, same_gradients

pytestmark = pytest.mark.needs_jax

DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def _precision(request):
    """Use JAX with float64 for the tests with float64, and with its defaults for all others."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    with_x64 = parameters.get("dtype") is np.float64 or parameters.get("x64", False)
    jax.config.update("jax_enable_x64", with_x64)
    yield
    jax.config.update("jax_enable_x64", False)


# The same bits


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("fusion", FUSIONS, ids=BY_FUSION)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_bits_are_those_of_numpy(rng, dtype, fusion, affine, compiled):
    layouts = LAYOUTS[3:5] if compiled else LAYOUTS[3:4]
    for shape, axis in layouts:
        a = Arrays(rng, shape, axis, dtype, fusion, affine)
        how = jax.jit if compiled else lambda function: function
        y, moments, gradients = how(a.trained_by_jax)(*a.given)
        want, want_moments, want_gradients = a.train()
        same(y, want)
        np.testing.assert_array_equal(moments.count, want_moments.count)
        same(moments.mean, want_moments.mean.astype(dtype))
        same(moments.var, want_moments.var().astype(dtype))
        same_gradients(gradients, want_gradients, affine, a.residual is not None)
        y, gradients = how(a.inferred_by_jax)(*a.given)
        want, want_gradients = a.infer()
        same(y, want)
        same_gradients(gradients, want_gradients, affine, a.residual is not None)


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS, ids=str)
def test_any_axis_and_number_of_dimensions(rng, shape, axis):
    a = Arrays(rng, shape, axis, np.float32, FUSIONS[2])
    y, _, gradients = a.trained_by_jax(*a.given)
    want, _, want_gradients = a.train()
    same(y, want)
    same_gradients(gradients, want_gradients, True, True)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_backward_takes_moments_in_float64_where_jax_has_none(rng, mean):
    """With moments rounded to float32, mean/std 1e4 would cost dx four digits."""
    a = Arrays(rng, (16, C, 8, 8), 1, np.float32)
    a.x = a.x + np.float32(mean)
    _, moments, gradients = jax.jit(a.trained_by_jax)(*a.given)
    assert moments.mean.dtype == np.float32
    same_gradients(gradients, a.train()[2], True, False)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_parameters_of_any_floating_dtype(rng, x64, kind):
    """Gradients have the argument's dtype; float64 becomes float32 if JAX does not allow it."""
    a = Arrays(rng, (4, C, 5), 1, np.float32)
    weight, bias = (jnp.asarray(v.astype(jnp.dtype(kind))) for v in (a.weight, a.bias))
    y, _, gradients = a.trained_by_jax(a.x, weight, bias, None, a.dy)
    a.weight, a.bias = (np.asarray(v) for v in (weight, bias))
    want, _, want_gradients = a.train()
    same(y, want)
    same_gradients(gradients, want_gradients, True, False)


@pytest.mark.parametrize("x64", [True])
def test_statistics_are_float64_where_jax_has_it(rng, x64):
    a = Arrays(rng, (4, C, 5), 1, np.float32)
    _, moments = bj.batch_norm_train(a.x)
    want = bncore.moments(a.x)
    same(moments.mean, want.mean)
    same(moments.var, want.var())


# vmap


@pytest.mark.parametrize("fusion", [FUSIONS[0], FUSIONS[2]], ids=["plain", "fused"])
@pytest.mark.parametrize(
    "shape",
    [(4, C, 5), (2, C, 200, 230)],
    ids=["small", "large"],  # examples spread over threads; one after the other
)
def test_examples_are_batches_of_their_own(rng, shape, fusion):
    """Whatever is mapped, and whatever is the same for all examples."""
    examples = 3
    many = [Arrays(rng, shape, 1, np.float32, fusion) for _ in range(examples)]
    names = ("x", "weight", "bias", "residual", "dy")
    mapped_sets = [names, ("x",), ("weight",), ("x", "dy"), ("bias", "residual")]
    for mapped in mapped_sets[: 5 if len(shape) == 3 else 2]:
        given, axes = [], []
        for name in names:
            if name in mapped and getattr(many[0], name) is not None:
                given.append(np.stack([getattr(a, name) for a in many]))
                axes.append(0)
            else:
                given.append(getattr(many[0], name))
                axes.append(None)
        if set(axes) == {None}:
            continue
        call = jax.vmap(many[0].trained_by_jax, tuple(axes))
        y, moments, gradients = jax.jit(call)(*given)
        infer = jax.vmap(many[0].inferred_by_jax, tuple(axes))
        inferred, inferred_gradients = infer(*given)
        for i in range(examples):
            one = Arrays(rng, shape, 1, np.float32, fusion)
            for name in names:
                setattr(one, name, getattr(many[i if name in mapped else 0], name))
            one.mean, one.var = many[0].mean, many[0].var
            want, want_moments, want_gradients = one.train()
            same(y[i], want)
            same(moments.mean[i], want_moments.mean.astype(np.float32))
            there = one.residual is not None
            same_gradients(
                [None if g is None else g[i] for g in gradients], want_gradients, True, there
            )
            want, want_gradients = one.infer()
            same(inferred[i], want)
            same_gradients(
                [None if g is None else g[i] for g in inferred_gradients],
                want_gradients,
                True,
                there,
            )


def test_vmap_in_vmap_with_axes_in_the_middle(rng):
    x = rng.standard_normal((4, 2, C, 3, 5)).astype(np.float32)  # N, outer map, C, inner map, W
    weight = rng.standard_normal((3, C)).astype(np.float32)

    def one(x, weight):
        return bj.batch_norm_train(x, weight)[0]

    inner = jax.vmap(one, (2, 0), 2)
    y = jax.jit(jax.vmap(inner, (1, None), 1))(x, weight)
    for i in range(2):
        for j in range(3):
            want, _ = bncore.batch_norm_train(
                np.ascontiguousarray(x[:, i, :, j]), np.ascontiguousarray(weight[j])
            )
            same(y[:, i, :, j], want)


# What JAX does with a call


def test_moments_are_a_pytree_with_a_count_per_channel(rng):
    x = rng.standard_normal((6, 4, C, 5)).astype(np.float32)
    _, moments = jax.jit(jax.vmap(bj.batch_norm_train))(x)
    assert moments.count.dtype == moments.mean.dtype
    np.testing.assert_array_equal(moments.count, np.full((6, C), 20.0))
    assert moments.mean.shape == (6, C)

    def step(running, x):
        y, moments = bj.batch_norm_train(x)
        return bj.update_running_stats(*running, moments), y

    start = jnp.zeros(C), jnp.ones(C)
    (mean, var), y = jax.lax.scan(step, start, x)
    expected = np.zeros(C, np.float32), np.ones(C, np.float32)
    for i, values in enumerate(x):
        want, moments = bncore.batch_norm_train(values)
        bncore.update_running_stats(*expected, moments)
        same(y[i], want)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, expected[1], rtol=1e-5)


@pytest.mark.parametrize("axis", [1, -1])
def test_nothing_is_copied(axis):
    """XLA's program has only the two calls, with the arguments unchanged."""

    def step(x, residual, dy):
        y, pull = jax.vjp(
            lambda *a: bj.batch_norm_train(a[0], axis=axis, activation="relu", residual=a[1])[0],
            x,
            residual,
        )
        return y, pull(dy)

    shape = jax.ShapeDtypeStruct((4, 8, 6, 8), np.float32)
    text = jax.jit(step).lower(shape, shape, shape).compile().as_text()
    entry = text[text.index("ENTRY") :]
    full = re.findall(r"= f32\[4,8,6,8\]\S* (\w[\w-]*)\(", entry)
    assert set(full) <= {"parameter", "get-tuple-element"}, full
    assert entry.count("custom-call(") == 2


def test_calls_from_several_threads_at_once(rng):
    a = Arrays(rng, (8, 16, 40, 40), 1, np.float32)
    call = jax.jit(a.trained_by_jax)
    want, _, want_gradients = a.train()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: call(*a.given), range(16)))
    for y, _, gradients in results:
        same(y, want)
        same_gradients(gradients, want_gradients, True, False)


@pytest.mark.parametrize(("shape", "axis"), [((0, C, 4), 1), ((4, 0, 5), 1), ((0, 5, C), -1)])
def test_an_empty_batch(shape, axis):
    x = np.zeros(shape, np.float32)
    channels = shape[axis]
    y, moments = jax.jit(lambda x: bj.batch_norm_train(x, axis=axis))(x)
    assert y.shape == shape
    np.testing.assert_array_equal(moments.count, np.zeros(channels))
    np.testing.assert_array_equal(moments.mean, np.full(channels, np.nan))
    np.testing.assert_array_equal(moments.var, np.full(channels, np.nan))
    running = jnp.zeros(channels), jnp.ones(channels)
    for update in (bj.update_running_stats, jax.jit(bj.update_running_stats)):
        mean, var = update(*running, moments)
        np.testing.assert_array_equal(mean, running[0])
        np.testing.assert_array_equal(var, running[1])
    dx, dweight = jax.grad(
        lambda x, w: bj.batch_norm_train(x, w, axis=axis)[0].sum(), argnums=(0, 1)
    )(x, np.ones(channels, np.float32))
    assert dx.shape == shape
    np.testing.assert_array_equal(dweight, 0.0)
    y = bj.batch_norm_infer(x, *running, axis=axis)
    assert y.shape == shape
    _, moments = jax.vmap(lambda x: bj.batch_norm_train(x, axis=axis))(np.stack([x] * 50))
    np.testing.assert_array_equal(moments.mean, np.full((50, channels), np.nan))


@pytest.mark.parametrize("traced", [False, True])
def test_every_channel_moves_by_its_own_count(traced):
    counts, mean, var = (np.array(v, np.float32) for v in ([4, 0, 2.5], [1, np.nan, 3], [3, 0, 6]))
    start = np.array([5.0, 6.0, 7.0], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    update = jax.jit(bj.update_running_stats) if traced else bj.update_running_stats
    got = update(*start, bj.Moments(counts, mean, var))
    np.testing.assert_allclose(got[0], [0.9 * 5 + 0.1, 6.0, 0.9 * 7 + 0.3], rtol=1e-6)
    np.testing.assert_allclose(got[1], [0.9 + 0.1 * 4, 2.0, 0.9 * 3 + 0.1 * 10], rtol=1e-6)


def test_too_small_a_count_is_refused_where_it_is_known():
    nearly = bj.Moments(np.array([4.0, 1.000001, 0.0]), V, V)
    with pytest.raises(ValueError, match=r"by more than rounding, got 1.000001 for channel 1$"):
        bj.update_running_stats(V, V, nearly)
    moments = bj.Moments(np.array([4.0, 1.0, 0.0]), V, V)
    with pytest.raises(ValueError, match=r"count > correction = 1, got 1 for channel 1$"):
        bj.update_running_stats(V, V, moments)
    _, var = jax.jit(bj.update_running_stats)(V, V, nearly)
    assert not np.isfinite(var[1]) and np.isfinite(np.array(var)[[0, 2]]).all()
    _, var = jax.jit(bj.update_running_stats)(V, V, moments)
    assert not np.isfinite(var[1]) and np.isfinite(np.array(var)[[0, 2]]).all()


# Running statistics


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("keywords", [{}, {"momentum": 1.0, "correction": 0}, {"momentum": 0.3}])
def test_running_statistics_move_as_in_numpy(rng, dtype, keywords):
    x = rng.standard_normal((4, C, 5)).astype(dtype)
    expected = rng.standard_normal(C).astype(dtype), rng.uniform(0.5, 2.0, C).astype(dtype)
    running = tuple(map(jnp.array, expected))
    bncore.update_running_stats(*expected, bncore.moments(x), **keywords)
    moved = jax.jit(
        lambda x, *running: bj.update_running_stats(*running, bj.batch_norm_train(x)[1], **keywords)
    )(x, *running)
    for got, want in zip(moved, expected, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps, atol=0)


# Messages


X = np.ones((4, C, 5), np.float32)
V = np.ones(C, np.float32)
TRAIN_ERRORS = [
    (
        (X.astype(np.int32),),
        {},
        TypeError,
        "x: expected float16, bfloat16, float32 or",
    ),
    ((jnp.ones((4, 3), "float8_e5m2"),), {}, TypeError, "or float64, got float8_e5m2"),
    (([[1.0, 2.0]],), {}, TypeError, "x: expected an array, got list"),
    ((None,), {}, TypeError, "x: expected an array, got None"),
    ((V,), {}, ValueError, "x: expected at least 2 dimensions, got 1"),
    ((X,), {"axis": 3}, np.exceptions.AxisError, "axis: expected an integer from -3 to 2"),
    ((X,), {"axis": 1.0}, TypeError, "axis: expected an integer, got 1.0"),
    ((X,), {"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1.0"),
    ((X,), {"eps": "1"}, TypeError, "eps: expected a real number, got '1'"),
    ((X,), {"activation": "gelu"}, ValueError, "activation: expected None, 'relu' or"),
    ((X,), {"negative_slope": -0.1}, ValueError, "negative_slope: expected a finite number"),
    ((X, V[:2]), {}, ValueError, "weight: expected shape (3,) (3 channels along axis 1), got (2,)"),
    ((X, V, V[None]), {}, ValueError, "bias: expected shape (3,) (3 channels"),
    ((X, V.astype(int)), {}, TypeError, "weight: expected a real floating dtype, got int"),
    ((X, V), {"axis": -1}, ValueError, "weight: expected shape (5,) (5 channels along axis -1)"),
    ((X,), {"residual": X[0]}, ValueError, "residual: expected shape (4, 3, 5), got (3, 5)"),
    ((X,), {"residual": X > 0}, TypeError, "residual: expected float32, got bool (pass a mask"),
    ((X[:1, :, 0],), {}, ValueError, "Expected more than 1 value per channel when training"),
]


@pytest.mark.parametrize(("arguments", "keywords", "kind", "text"), TRAIN_ERRORS)
def test_wrong_arguments_are_named_when_the_call_is_traced(arguments, keywords, kind, text):
    def call(*arrays):
        return bj.batch_norm_train(*arrays, **keywords)

    takes_arrays_alone = all(isinstance(a, (np.ndarray, jax.Array)) for a in arguments)
    for function in (call, jax.jit(call)) if takes_arrays_alone else (call,):
        with pytest.raises(kind, match=re.escape(text)):
            function(*arguments)


@pytest.mark.parametrize("dtype", [np.float64])
def test_a_residual_of_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match="residual: expected float32, got float64"):
        bj.batch_norm_train(X, residual=X.astype(dtype))


@pytest.mark.parametrize(
    ("statistics", "kind", "text"),
    [
        ((V[:2], V), ValueError, "mean: expected shape (3,) (3 channels along axis 1), got (2,)"),
        ((V, None), TypeError, "var: expected an array, got None"),
        ((V, V.astype(int)), TypeError, "var: expected a real floating dtype, got int"),
    ],
)
def test_wrong_statistics_are_named(statistics, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        bj.batch_norm_infer(X, *statistics)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"moments": (V, V)}, TypeError, "moments: expected Moments, got tuple"),
        ({"running_mean": V[:2]}, ValueError, "running_mean: expected shape (3,), got (2,)"),
        ({"running_var": V.astype(int)}, TypeError, "running_var: expected a real floating"),
        ({"momentum": 1.5}, ValueError, "momentum: expected a finite number from 0 to 1, got 1.5"),
        ({"correction": 20}, ValueError, "moments: expected count > correction = 20, got 20"),
    ],
)
def test_wrong_running_statistics_are_named(change, kind, text):
    given = {"running_mean": V, "running_var": V, "moments": bj.Moments(20, V, V)} | change
    with pytest.raises(kind, match=re.escape(text)):
        bj.update_running_stats(**given)


@pytest.mark.parametrize("module", ["functional", "statistics", "handlers"])
def test_the_examples_run(module):
    failed, tried = doctest.testmod(importlib.import_module(f"bncore.jax.{module}"))
    assert failed == 0
    assert tried > 5


def test_the_page_runs():
    page = Path(__file__).resolve().parents[2] / "docs" / "jax.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    for block in blocks:
        if "flax" not in block:  # test_flax_layers.py runs that
            exec(block, names)
    assert names["y"].shape == (8, 16, 7, 7)
    assert (names["moments"].count == 8 * 49).all()
    mean = np.asarray(names["x"], np.float64).mean((0, 2, 3))
    np.testing.assert_allclose(names["running"][0], 0.1 * mean, atol=1e-6)
