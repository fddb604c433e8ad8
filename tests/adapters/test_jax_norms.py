"""Group, instance and layer norm of bncore.jax: NumPy's bits, derivatives, vmap, messages."""

from __future__ import annotations

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
from jax_arrays import same
from jax_formula import close

pytestmark = pytest.mark.needs_jax

C = 6
BFLOAT16 = jnp.bfloat16.dtype.type
# The function's name, what it takes beside the arrays, the shapes of x and of the parameters.
NORMS = {
    "group": ("group_norm", {"groups": 3}, (4, C, 5, 3), (C,)),
    "group-last": ("group_norm", {"groups": 2, "axis": -1}, (4, 5, 3, C), (C,)),
    "one group": ("group_norm", {"groups": 1, "axis": 2}, (2, 5, C, 3), (C,)),
    "instance": ("instance_norm", {"eps": 0.1}, (4, C, 7), (C,)),
    "instance-last": ("instance_norm", {"axis": -1}, (2, 7, 2, C), (C,)),
    "layer": ("layer_norm", {}, (4, 5, 9), (9,)),
    "layer of two axes": ("layer_norm", {"axis": -2, "eps": 0.1}, (5, 3, 4), (3, 4)),
}
every_norm = pytest.mark.parametrize("norm", NORMS)
some_norms = pytest.mark.parametrize("norm", ["group", "instance-last", "layer of two axes"])


@pytest.fixture(autouse=True)
def _precision(request):
    """Use JAX with float64 where a test is about derivatives or that dtype."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    wide = np.float64 in (parameters.get("dtype", np.float64), parameters.get("kind"))
    jax.config.update("jax_enable_x64", wide)
    yield
    jax.config.update("jax_enable_x64", False)


def arrays(rng, norm, dtype=np.float64, kind=None):
    """x, dy, weight and bias; the mean of x is not 0."""
    _, _, shape, affine = NORMS[norm]
    x, dy = (1.0 + rng.standard_normal((2, *shape))).astype(dtype)
    weight, bias = rng.standard_normal((2, *affine)).astype(kind or dtype)
    return x, dy, weight, bias


def own(norm):
    """bncore.jax's function of x, weight and bias."""
    name, options = NORMS[norm][:2]
    return lambda x, weight=None, bias=None: getattr(bj, name)(
        x, weight=weight, bias=bias, **options
    )


def by_numpy(norm, x, dy, weight, bias):
    """y and the gradients of bncore's NumPy functions."""
    name, options = NORMS[norm][:2]
    y, moments = getattr(bncore, name)(x, weight=weight, bias=bias, **options)
    backward = getattr(bncore, f"{name}_backward")
    return y, *backward(dy, x, moments, weight=weight, **options)


def formula(norm):
    """The same function as a user writes it in jax.numpy."""
    name, options, shape, _ = NORMS[norm]

    def written(x, weight, bias):
        axis = options.get("axis", -1 if name == "layer_norm" else 1) % len(shape)
        if name == "layer_norm":
            axes, along, parts = tuple(range(axis, x.ndim)), weight.shape, x
        else:
            groups = options.get("groups", C)
            parts = x.reshape(*shape[:axis], groups, C // groups, *shape[axis + 1 :])
            axes = tuple(i for i in range(1, parts.ndim) if i != axis)
            along = [C if i == axis else 1 for i in range(x.ndim)]
        mean, var = (f(parts, axes, keepdims=True) for f in (jnp.mean, jnp.var))
        xhat = ((parts - mean) / jnp.sqrt(var + options.get("eps", 1e-5))).reshape(x.shape)
        return xhat * weight.reshape(along) + bias.reshape(along)

    return written


# The same bits


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.float32, np.float32), (np.float64, np.float64), (np.float32, np.float64),
     (np.float16, np.float16), (BFLOAT16, np.float32)],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
@every_norm
def test_bits_are_those_of_numpy(rng, norm, dtype, kind):
    x, dy, weight, bias = arrays(rng, norm, dtype, kind)
    y, pull = jax.vjp(jax.jit(own(norm)), x, weight, bias)
    for got, want in zip((y, *pull(dy)), by_numpy(norm, x, dy, weight, bias), strict=True):
        same(got, want)


@every_norm
def test_without_parameters(rng, norm):
    x, dy, *_ = arrays(rng, norm)
    y, pull = jax.vjp(own(norm), x)
    want = by_numpy(norm, x, dy, None, None)
    same(y, want[0])
    same(pull(dy)[0], want[1])


def test_a_mean_far_from_zero_costs_no_digits(rng):
    x = rng.normal(1e4, 1.0, (2, 4, 64)).astype(np.float32)
    exact = x.astype(np.float64)
    want = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    got = np.asarray(bj.instance_norm(x))
    assert np.abs(got - want).max() <= tolerances.JAX_FLOAT32


# Derivatives


def orders(function, given, moved):
    """y, a tangent, a gradient, and derivatives of the gradient in both modes; compiled."""

    def loss(*given):
        y = function(*given)
        return (jnp.cos(jnp.arange(y.size)).reshape(y.shape) * (y + y**3)).sum()

    gradient = jax.grad(loss, (0, 1, 2))

    def again(*given):
        pairs = zip(gradient(*given), moved, strict=True)
        return sum((jnp.sin(one) * by).sum() for one, by in pairs)

    return jax.jit(lambda given, moved: (
        jax.jvp(function, given, moved),
        jax.grad(loss, 1)(*given),  # by the weight alone
        jax.jvp(gradient, given, moved),
        jax.grad(again, (0, 1, 2))(*given),
    ))(given, moved)  # fmt: skip


@some_norms
def test_derivatives_are_those_of_the_formula(rng, norm):
    x, dy, weight, bias = arrays(rng, norm)
    given, moved = (x, weight, bias), (dy, bias, weight)
    close(*(orders(f(norm), given, moved) for f in (own, formula)))


# vmap


@pytest.mark.parametrize("mapped", ["x", "x bias", "x weight bias", "weight"])
@some_norms
def test_examples_are_computed_as_alone(rng, norm, mapped):
    names = ("x", "weight", "bias")
    many = [dict(zip(("x", "dy", *names[1:]), arrays(rng, norm), strict=True)) for _ in range(3)]
    dy = np.stack([one.pop("dy") for one in many])
    for one in many:
        one.update({k: many[0][k] for k in names if k not in mapped.split()})
    given = [
        np.stack([one[k] for one in many]) if k in mapped.split() else many[0][k] for k in names
    ]
    axes = tuple(0 if k in mapped.split() else None for k in names)
    every = jax.vmap(own(norm), axes)
    y, pull = jax.jit(lambda *given: jax.vjp(every, *given))(*given)
    gradients = pull(dy)
    alone = [jax.vjp(own(norm), *one.values()) for one in many]
    same(y, np.stack([one for one, _ in alone]))
    each = [pull(one) for (_, pull), one in zip(alone, dy, strict=True)]
    for i, axis in enumerate(axes):
        want = [np.asarray(one[i]) for one in each]
        close(gradients[i], np.stack(want) if axis == 0 else sum(want))


@some_norms
def test_derivatives_of_examples_are_those_of_the_formula(rng, norm):
    x, dy, weight, bias = arrays(rng, norm)
    given = np.stack([x, 2 * x - 1]), weight, bias
    moved = np.stack([dy, x]), bias, weight
    close(*(orders(jax.vmap(f(norm), (0, None, None)), given, moved) for f in (own, formula)))


def test_examples_with_common_parameters_are_one_call(rng):
    """Of rows, such as those of Equinox's layer norm, each alone would cost a call."""
    x = rng.standard_normal((5, 7, 16)).astype(np.float32)
    weight = np.ones(16, np.float32)

    def loss(weight):
        rows = jax.vmap(jax.vmap(lambda x: bj.layer_norm(x, weight)))
        return (rows(x) ** 2).sum()

    text = jax.jit(jax.grad(loss)).lower(weight).as_text()
    (backward,) = (line for line in text.splitlines() if "group_norm_backward" in line)
    assert backward.count("tensor<35x16xf32>") == 3  # dy, x and dx
    same(jax.jit(jax.vmap(bj.layer_norm))(x), bncore.layer_norm(x)[0])


# Arguments


@pytest.mark.parametrize("call", [
    lambda x: bj.group_norm(x, 3, jnp.ones(C)), lambda x: bj.instance_norm(x), bj.layer_norm,
], ids=["group", "instance", "layer"])  # fmt: skip
@pytest.mark.parametrize("shape", [(0, C, 4), (2, C, 0)])
def test_nothing_is_computed_from_nothing(call, shape):
    x = jnp.zeros(shape)
    assert call(x).shape == shape
    assert jax.grad(lambda x: call(x).sum())(x).shape == shape


X = np.ones((4, C, 3), np.float32)


@pytest.mark.parametrize("call, kind, message", [
    (lambda: bj.group_norm(X, 4), ValueError, "groups: expected a divisor of 6 channels, got 4"),
    (lambda: bj.group_norm(X, 0), ValueError, "groups: expected an integer >= 1, got 0"),
    (lambda: bj.group_norm(X, 2, axis=0), ValueError, "axis: expected an axis other than 0"),
    (lambda: bj.group_norm(X[0, 0], 1), ValueError, "x: expected at least 2 dimensions, got 1"),
    (lambda: bj.group_norm(X.astype(int), 2), TypeError, "x: expected float16, bfloat16"),
    (lambda: bj.group_norm(X, 2, X[0, :2, 0]), ValueError, r"weight: expected shape \(6,\) \(6"),
    (lambda: bj.group_norm(X, 2, eps=-1.0), ValueError, "eps: expected"),
    (lambda: bj.instance_norm(X[:, :, 0]), ValueError, "Expected more than 1 value per group"),
    (lambda: bj.layer_norm(X[:, :, :1]), ValueError, "Expected more than 1 value per row"),
    (lambda: bj.layer_norm(X, axis=3), ValueError, "axis: expected"),
    (lambda: bj.layer_norm(X, bias=X[0]), ValueError, r"bias: expected shape \(3,\), got \(6, 3\)"),
    (lambda: bj.layer_norm(X, X[0, 0].astype(int)), TypeError, "weight: expected a real floating"),
    (lambda: bj.layer_norm(np.float32(1.0)), TypeError, "x: expected an array"),
])  # fmt: skip
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
