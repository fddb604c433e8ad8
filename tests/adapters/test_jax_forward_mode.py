"""Forward mode of bncore.jax, alone and with other transforms, against jax.numpy's formula."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_formula
import tolerances
import variants

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore.jax as bj
from jax_formula import C, arguments, close, loss_of

pytestmark = pytest.mark.needs_jax

PAIRS = jax_formula.PAIRS
FUSED = jax_formula.FUSED


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def moved(given):
    """Tangents of all arguments."""
    return jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size) + 1.0).reshape(a.shape), given)


@pytest.mark.parametrize("fused", FUSED, ids=jax_formula.BY_FUSION)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("name", PAIRS)
def test_tangents(rng, name, axis, fused):
    """Of y and of the statistics, from all arguments together and from each alone."""
    given, _ = arguments(rng, axis, statistics=name == "infer")
    tangents = moved(given)
    results = []
    for function in PAIRS[name]:

        def pushed(given, function=function):
            call = partial(function, axis=axis, **fused)
            alone = [
                jax.jvp(lambda one, k=k: call(given | {k: one}), (given[k],), (tangents[k],))[1]
                for k in given
            ]
            return jax.jvp(call, (given,), (tangents,)), alone

        results.append(jax.jit(pushed)(given))
    close(*results)


@pytest.mark.parametrize("name", PAIRS)
def test_tangents_of_calls_that_are_not_compiled(rng, name):
    given, _ = arguments(rng, 1, statistics=name == "infer")
    results = [
        jax.jvp(partial(function, axis=1, activation="relu"), (given,), (moved(given),))
        for function in PAIRS[name]
    ]
    close(*results)


@pytest.mark.parametrize("fused", FUSED[1:], ids=jax_formula.BY_FUSION[1:])
@pytest.mark.parametrize("name", PAIRS)
def test_both_modes_combined(rng, name, fused):
    """Forward over reverse, reverse over forward, and forward over forward."""
    given, dy = arguments(rng, 1, statistics=name == "infer")
    tangents = moved(given)
    results = []
    for function in PAIRS[name]:
        loss = loss_of(function, 1, dy, **fused)

        def slope(given, loss=loss):
            return jax.jvp(loss, (given,), (tangents,))[1]

        def all_of(given, loss=loss, slope=slope):
            return (
                jax.jvp(jax.grad(loss), (given,), (tangents,))[1],
                jax.grad(slope)(given),
                jax.jvp(slope, (given,), (tangents,))[1],
            )

        results.append(jax.jit(all_of)(given))
    close(*results)


def test_hessians(rng):
    """`jax.hessian` is forward over reverse, with `jax.vmap` over both."""
    given, dy = arguments(rng, 1)
    results = []
    for function in PAIRS["train"]:
        loss = loss_of(function, 1, dy, activation="relu")

        def of_parameters(weight, bias, loss=loss):
            return loss(given | {"weight": weight, "bias": bias})

        def all_of(weight, bias, f=of_parameters):
            forward = jax.jacfwd(jax.jacfwd(f, (0, 1)), (0, 1))
            return jax.hessian(f, (0, 1))(weight, bias), forward(weight, bias)

        results.append(jax.jit(all_of)(given["weight"], given["bias"]))
    close(*results)


def test_examples(rng):
    """Tangents and linearized functions of mapped calls, which share some arguments."""
    many = [arguments(rng, 1)[0] for _ in range(3)]
    shared = {k: many[0][k] for k in ("weight", "bias")}
    examples = {k: np.stack([given[k] for given in many]) for k in ("x", "residual")}
    results = []
    for function in PAIRS["train"]:

        def one(example, shared, function=function):
            return function(example | shared, 1, activation="relu")

        mapped = jax.vmap(one, (0, None))
        given = examples, shared
        y, linearized = jax.linearize(mapped, *given)
        transposed = jax.linear_transpose(linearized, *given)
        results.append((y, linearized(*moved(given)), transposed(moved(y))))
    close(*results)


def test_moments(rng):
    given, _ = arguments(rng, 1)
    x = given["x"]

    def own(x):
        moments = bj.moments(x)
        return moments.mean, moments.var

    def formula(x):
        return jnp.mean(x, (0, 2, 3)), jnp.var(x, (0, 2, 3))

    def all_of(function, x):
        def loss(x):
            mean, var = function(x)
            return (mean * var**2 * jnp.arange(1.0, C + 1)).sum()

        gradient = jax.grad(loss)
        return (
            function(x),
            gradient(x),
            jax.jvp(function, (x,), (x**2,)),
            jax.jvp(gradient, (x,), (x**2,)),
            jax.vmap(function)(jnp.stack([x, x * 2])),
        )

    close(*(jax.jit(partial(all_of, function))(x) for function in (own, formula)))


def test_tangents_of_float32_data_far_from_zero(rng):
    """The formula centers twice, since float32 sums of large values have lost digits."""
    jax.config.update("jax_enable_x64", False)
    x = rng.normal(1e3, 1.0, (64, C, 40, 40)).astype(np.float32)
    moving = rng.standard_normal(x.shape).astype(np.float32)
    got = jax.jvp(lambda x: bj.batch_norm_train(x)[0], (x,), (moving,))[1]
    jax.config.update("jax_enable_x64", True)
    given = {"x": x.astype(np.float64), "weight": np.ones(C), "bias": np.zeros(C), "residual": None}

    def formula(x):
        xhat = x - jnp.mean(x, (0, 2, 3), keepdims=True)
        return xhat / jnp.sqrt(jnp.var(x, (0, 2, 3), keepdims=True) + 1e-5)

    want = jax.jvp(formula, (given["x"],), (moving.astype(np.float64),))[1]
    assert np.abs(np.asarray(got) - want).max() <= tolerances.JAX_FLOAT32 * np.abs(want).max()


def test_a_mask(rng):
    """What does not count moves nothing, a NaN included."""
    given, _ = arguments(rng, 1)
    where = rng.random((4, 1, 5, 2)) < 0.7
    x = np.where(where, given["x"], np.nan)
    tangents = moved(given["x"])

    def own(x):
        y, moments = bj.batch_norm_train(x, given["weight"], where=where, fill=0.5)
        return y, moments.mean, moments.var

    def formula(x):
        n = where.sum() * 1.0
        x = jnp.where(where, x, 0.0)
        mean = jnp.sum(x, (0, 2, 3), keepdims=True) / n
        centered = jnp.where(where, x - mean, 0.0)
        var = jnp.sum(centered**2, (0, 2, 3), keepdims=True) / n
        y = centered / jnp.sqrt(var + 1e-5) * given["weight"].reshape(1, C, 1, 1)
        return jnp.where(where, y, 0.5), mean.ravel(), var.ravel()

    got, want = (jax.jvp(f, (a,), (tangents,)) for f, a in ((own, x), (formula, given["x"])))
    close(got, want)
