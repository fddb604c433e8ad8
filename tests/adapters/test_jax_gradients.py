"""Gradients of bncore.jax, of any order and under every transform, against jax.numpy's formula."""

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
import bncore.jax as bj
from jax_formula import (
    ALL,
    BY_FUSION,
    FUSED,
    PAIRS,
    SHAPES,
    C,
    arguments,
    close,
    formula_train,
    loss_of,
    train,
)

pytestmark = pytest.mark.needs_jax


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("fused", FUSED, ids=BY_FUSION)
@pytest.mark.parametrize("axis", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients(rng, name, axis, fused):
    """By every argument, from y and from the returned statistics."""
    given, dy = arguments(rng, axis, statistics=name == "infer")

    def all_of(function, given):
        gradients = jax.value_and_grad(loss_of(function, axis, dy, **fused))(given)
        return function(given, axis, **fused), gradients

    own, formula = (partial(all_of, function) for function in PAIRS[name])
    want = jax.jit(formula)(given)
    close(jax.jit(own)(given), want)
    if axis == 1:
        close(own(given), want)  # not compiled


@pytest.mark.parametrize("fused", FUSED, ids=BY_FUSION)
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_gradients(rng, name, fused):
    """The whole Hessian by all arguments, applied to directions; and once one order more."""
    own, formula = PAIRS[name]
    given, dy = arguments(rng, 1, statistics=name == "infer")
    directions = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size) + 1.0).reshape(a.shape), given)

    def along_directions(loss):
        def derivative(given):
            gradient = jax.grad(loss)(given)
            products = jax.tree.map(lambda a, b: (a * b).sum(), gradient, directions)
            return sum(jax.tree.leaves(products))

        return derivative

    third = name == "train" and fused == FUSED[2]
    results = []
    for function in (own, formula):
        derivative = along_directions(loss_of(function, 1, dy, **fused))
        if third:
            derivative = along_directions(derivative)
        results.append(jax.jit(jax.grad(derivative))(given))
    close(*results)


@pytest.mark.parametrize("order", [1, 2])
def test_only_what_is_asked_for(rng, order):
    """Gradients by one argument at a time, the others constants."""
    given, dy = arguments(rng, 1)
    for name in ALL if order == 1 else ("x", "residual"):
        results = []
        for function in (train, formula_train):
            loss = loss_of(function, 1, dy, activation="relu")

            def by_one(value, loss=loss, name=name):
                return loss(given | {name: value})

            derivative = jax.grad(by_one)
            if order == 2:
                derivative = jax.grad(lambda value, d=derivative: (d(value) ** 2).sum())
            results.append(jax.jit(derivative)(given[name]))
        close(*results)


@pytest.mark.parametrize("which", ["mean", "var", "running"])
def test_gradients_through_the_statistics_alone(rng, which):
    given, _ = arguments(rng, 1)
    start = jnp.zeros(C), jnp.ones(C)

    def own(x):
        _, moments = bj.batch_norm_train(x)
        if which == "running":
            mean, var = bj.update_running_stats(*start, moments, momentum=0.3)
            return (mean * var).sum()
        return (getattr(moments, which) ** 2).sum()

    def formula(x):
        mean, var = jnp.mean(x, (0, 2, 3)), jnp.var(x, (0, 2, 3))
        if which == "running":
            unbiased = jnp.var(x, (0, 2, 3), ddof=1)
            return ((0.3 * mean) * (0.7 + 0.3 * unbiased)).sum()
        return ({"mean": mean, "var": var}[which] ** 2).sum()

    def both_orders(function, x):
        gradient = jax.grad(function)
        return gradient(x), jax.grad(lambda x: (gradient(x) ** 2).sum())(x)

    close(*(jax.jit(partial(both_orders, f))(given["x"]) for f in (own, formula)))


@pytest.mark.parametrize("name", PAIRS)
def test_vmap_grad_and_jit_combined(rng, name):
    """Per-example gradients, the gradient of a sum over examples, and both again."""
    statistics = name == "infer"
    many = [arguments(rng, 1, statistics=statistics) for _ in range(3)]
    shared = {k: v for k, v in many[0][0].items() if k not in ("x", "residual")}
    examples = {k: np.stack([given[k] for given, _ in many]) for k in ("x", "residual")}
    dy = many[0][1]
    results = []
    for function in PAIRS[name]:
        loss = loss_of(function, 1, dy, activation="relu")

        def one(example, shared, loss=loss):
            return loss(example | shared)

        per_example = jax.vmap(jax.grad(one, argnums=(0, 1)), (0, None))

        def total(examples, shared, one=one):
            return (jax.vmap(one, (0, None))(examples, shared) ** 2).sum()

        def of_gradients(examples, shared, per_example=per_example):
            return sum((g**2).sum() for g in jax.tree.leaves(per_example(examples, shared)))

        results.append(
            (
                jax.jit(per_example)(examples, shared),
                jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(examples, shared),
                jax.jit(jax.grad(of_gradients, argnums=(0, 1)))(examples, shared),
            )
        )
    for got, want in zip(*results, strict=True):
        close(got, want)


def test_jacobians_by_reverse_mode(rng):
    """Which are vmap of backward, and of its gradient."""
    given, _ = arguments(rng, 1)
    results = []
    for function in (train, formula_train):

        def cubes(weight, function=function):
            return (function(given | {"weight": weight}, 1)[0] ** 3).sum((0, 2, 3))

        jacobian = jax.jacrev(cubes)
        results.append(jax.jit(lambda w, j=jacobian: (j(w), jax.jacrev(j)(w)))(given["weight"]))
    close(*results)


@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit], ids=["checkpoint", "jit"])
def test_gradients_of_calls_inside_another_transform(rng, wrap):
    given, dy = arguments(rng, 1)
    results = []
    for function in (train, formula_train):
        wrapped = wrap(partial(function, axis=1))
        loss = loss_of(lambda given, _, wrapped=wrapped: wrapped(given), 1, dy)
        results.append(jax.grad(loss)(given))
    close(*results)


@pytest.mark.parametrize("first", [("x",), ("residual",), ALL])
@pytest.mark.parametrize("fused", FUSED[:2], ids=BY_FUSION[:2])
def test_one_compiled_function_differentiated_in_turn(rng, fused, first):
    """JAX caches what it traced for one gradient; the next, for other arguments, is right."""
    given, dy = arguments(rng, 1)
    results = []
    for function in (train, formula_train):
        inner = jax.jit(partial(function, axis=1, **fused))
        outer = jax.jit(lambda given, inner=inner: inner(given))
        gradients = []
        for names in (first, ALL, ("x",), ("weight", "residual")):
            for call in (inner, outer):
                loss = loss_of(lambda given, _, call=call: call(given), 1, dy)

                def by_some(some, loss=loss):
                    return loss(given | some)

                gradients.append(jax.grad(by_some)({name: given[name] for name in names}))
        results.append(gradients)
    close(*results)


def test_gradients_through_a_loop(rng):
    """A scan keeps what backward needs, the bits of float64 moments among it."""
    given, dy = arguments(rng, 1)
    weights = rng.uniform(0.5, 1.5, (3, C))

    def network(function, weights):
        def layer(x, weight):
            y = function(given | {"x": x, "weight": weight}, 1, activation="relu")[0]
            return y + x, None

        return (jax.lax.scan(layer, given["x"], weights)[0] * dy).sum()

    close(*(jax.jit(jax.grad(partial(network, f)))(weights) for f in (train, formula_train)))


def test_float32_without_x64(rng):
    jax.config.update("jax_enable_x64", False)
    given, dy = arguments(rng, 1)
    given, dy = jax.tree.map(lambda a: a.astype(np.float32), (given, dy))

    def twice(loss):
        return jax.grad(lambda g: sum((v**2).sum() for v in jax.tree.leaves(jax.grad(loss)(g))))

    losses = [loss_of(f, 1, dy, activation="relu") for f in (train, formula_train)]
    close(*(jax.jit(jax.grad(loss))(given) for loss in losses), tolerances.JAX_FLOAT32)
    close(*(jax.jit(twice(loss))(given) for loss in losses), tolerances.JAX_FLOAT32)
