"""Group, instance and layer norm for Flax and Equinox against the layers that they replace."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

import tolerances
import variants

if find_spec("flax") is None or find_spec("equinox") is None:
    pytest.skip("Flax or Equinox is missing: make test-frameworks", allow_module_level=True)
if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import equinox
import jax
import jax.numpy as jnp
from flax import linen, nnx

import bncore.jax.equinox
import bncore.jax.linen
import bncore.jax.nnx
from jax_formula import close

pytestmark = pytest.mark.needs_frameworks

FLAX = 1e-6  # of the largest value: both round statistics to float32
C = 6


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def moved(variables):
    """Parameters that are not those of a new layer."""
    return jax.tree.map(
        lambda v: v + 0.25 * jnp.arange(1.0, v.size + 1).astype(v.dtype).reshape(v.shape), variables
    )


def of_linen(kind, x, dy, own, mask=None, **fields):
    """y and the gradients by parameters and x."""
    layer = getattr(bncore.jax.linen if own else linen, kind)(**fields)
    variables = moved(layer.init(jax.random.key(0), x))

    def loss(variables, x):
        y = layer.apply(variables, x, mask=mask)
        return (jnp.sin(y) * dy).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)
    return y, gradients


def of_nnx(kind, x, dy, own, mask=None, **fields):
    """The same with Flax's objects."""
    layer = getattr(bncore.jax.nnx if own else nnx, kind)(C, rngs=nnx.Rngs(0), **fields)
    nnx.update(layer, moved(nnx.state(layer)))

    def loss(layer, x):
        y = layer(x, mask=mask)
        return (jnp.sin(y) * dy).sum(), y

    by = nnx.DiffState(0, nnx.Param), 1
    (_, y), gradients = nnx.value_and_grad(loss, argnums=by, has_aux=True)(layer, x)
    return y, nnx.to_pure_dict(gradients[0]), gradients[1]


RUN = {"linen": of_linen, "nnx": of_nnx}
LAYERS = {
    "groups": ("GroupNorm", {"num_groups": 3}),
    "groups of two, no bias": (
        "GroupNorm", {"num_groups": None, "group_size": 2, "use_bias": False},
    ),
    "float64": ("GroupNorm", {"num_groups": 2, "param_dtype": jnp.float64, "epsilon": 0.1}),
    "rows": ("LayerNorm", {}),
    "rows, no scale": ("LayerNorm", {"use_scale": False, "use_fast_variance": False}),
    "samples": ("LayerNorm", {"reduction_axes": (1, 2, 3)}),
    "channels": ("InstanceNorm", {}),
    "result of float32": ("InstanceNorm", {"dtype": jnp.float32}),
}  # fmt: skip
# What Flax computes.
FLAXS = {
    "axes of a group norm": ("GroupNorm", {"num_groups": 3, "reduction_axes": (2, 3)}),
    "other axes": ("LayerNorm", {"reduction_axes": (1, 2)}),
}


def data(rng, dtype=np.float64):
    x, dy = rng.standard_normal((2, 4, 5, 3, C))
    return (3 + 2 * x).astype(dtype), dy.astype(dtype)


def calls(run, *given, **fields):
    """Tell whether a layer of bncore calls the C library."""
    return "bncore_batch_norm_group_norm" in str(
        jax.make_jaxpr(lambda x: run(given[0], x, given[2], True, **fields))(given[1])
    )


@pytest.mark.parametrize("name", LAYERS | FLAXS)
@pytest.mark.parametrize("flax", RUN)
def test_steps(rng, flax, name):
    kind, fields = (LAYERS | FLAXS)[name]
    x, dy = data(rng)
    run = RUN[flax]
    got, want = (jax.jit(lambda x, own=own: run(kind, x, dy, own, **fields))(x)
                 for own in (True, False))  # fmt: skip
    # With a dtype of float32 Flax computes float64 data in float32.
    close(got, want, tolerances.JAX_FLOAT32 if "dtype" in fields else FLAX)
    assert calls(run, kind, x, dy, **fields) == (name in LAYERS)


@pytest.mark.parametrize("kind", ["GroupNorm", "LayerNorm", "InstanceNorm"])
@pytest.mark.parametrize("flax", RUN)
def test_masks_are_for_flax(rng, flax, kind):
    fields = {"num_groups": 2} if kind == "GroupNorm" else {}
    x, dy = data(rng)
    mask = jnp.asarray(rng.random(x.shape) < 0.7)
    close(*(RUN[flax](kind, x, dy, own, mask=mask, **fields) for own in (True, False)), FLAX)


@pytest.mark.parametrize("fields", [{}, {"dtype": jnp.bfloat16}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("flax", RUN)
def test_sixteen_bits(rng, flax, fields):
    """The dtypes are Flax's, and values differ by a rounding of 16 bits at most."""
    x, dy = (jnp.asarray(one, jnp.bfloat16) for one in data(rng))
    found = [RUN[flax]("LayerNorm", x, dy, own, **fields) for own in (True, False)]
    assert found[0][0].dtype == (jnp.bfloat16 if fields else jnp.float32)
    as_float32 = [jax.tree.map(lambda v: v.astype(jnp.float32), one) for one in found]
    close(*as_float32, 2.0**-7)


def test_several_axes_of_features(rng):
    """With Flax's parameters, of the shape of these axes."""
    x, dy = data(rng)
    fields = {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)}
    close(*(of_linen("LayerNorm", x, dy, own, **fields) for own in (True, False)), FLAX)
    assert calls(of_linen, "LayerNorm", x, dy, **fields)


def test_one_example(rng):
    """Rows alone, as under `jax.vmap`."""
    x, dy = (one[0, 0, 0] for one in data(rng))
    close(*(of_linen("LayerNorm", x, dy, own) for own in (True, False)), FLAX)


@pytest.mark.parametrize("call", [
    lambda x, own: of_linen("GroupNorm", x, x, own, num_groups=4),
    lambda x, own: of_linen("GroupNorm", x, x, own, num_groups=2, group_size=3),
    lambda x, own: of_linen("GroupNorm", x, x, own, num_groups=None, group_size=4),
    lambda x, own: of_linen("InstanceNorm", x, x, own, feature_axes=0),
    lambda x, own: of_linen("LayerNorm", x, x, own, reduction_axes=7),
])  # fmt: skip
def test_errors_are_flaxs(rng, call):
    x = data(rng)[0]
    texts = []
    for own in (True, False):
        with pytest.raises(Exception) as caught:
            call(x, own)
        texts.append((caught.type, str(caught.value)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("shape", [(C,), (C, 4, 5)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm"])
def test_equinox(rng, name, affine, shape):
    x = 3 + 2 * rng.standard_normal((8, *shape))
    results = []
    for package in (bncore.jax.equinox, equinox.nn):
        kind = getattr(package, name)
        if name == "GroupNorm":
            layer = kind(2, C, channelwise_affine=affine)
        else:
            layer = kind(shape, use_weight=affine, use_bias=affine)
        parameters, rest = equinox.partition(layer, equinox.is_inexact_array)

        def loss(parameters, x, rest=rest):
            y, state = jax.vmap(equinox.combine(parameters, rest), (0, None))(x, None)
            return jnp.sin(y).sum(), (y, state)

        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, (y, state)), gradients = step(moved(parameters), x)
        results.append((y, jax.tree.leaves(gradients)))
        assert state is None and equinox.combine(parameters, rest)(x[0]).shape == shape
    close(*results, tolerances.JAX_FLOAT64)


def test_equinox_refuses_another_shape():
    with pytest.raises(ValueError, match="must satisfy the invariant"):
        bncore.jax.equinox.LayerNorm(3)(jnp.ones(4))
