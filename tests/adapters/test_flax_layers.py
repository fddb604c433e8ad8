"""The layers for Flax and Equinox against the layers that they replace."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

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

pytestmark = [
    pytest.mark.needs_frameworks,
    # Flax's own layer stores float64 statistics in float32 so.
    pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning"),
]

FLAX = 1e-6  # of the largest value: both round statistics to float32
C = 6


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def close(got, want, tolerance=FLAX):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = (np.asarray(one, np.float64) for one in (a, b))
        assert np.abs(a - b).max(initial=0.0) <= tolerance * max(1.0, np.abs(b).max(initial=0.0))


def of_linen(module, x, dy, train, mask=None, axis_name=None, **fields):
    """y, gradients by parameters and x, and the new statistics, with Flax's functional modules."""
    layer = module(use_running_average=not train, axis_name=axis_name, **fields)
    variables = layer.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v + 0.25 * jnp.arange(1.0, v.size + 1).astype(v.dtype),
                             variables)  # fmt: skip
    stats = {"batch_stats": variables["batch_stats"]}

    def loss(parameters, x):
        given = {"params": parameters, **stats}
        y, state = layer.apply(given, x, mask=mask, mutable=["batch_stats"])
        return (jnp.sin(y) * dy).sum(), (y, state)

    parameters = variables.get("params", {})
    (_, (y, state)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(parameters, x)
    return y, gradients, state


def of_nnx(module, x, dy, train, mask=None, **fields):
    """The same with its objects."""
    axis = fields.get("axis", -1)
    layer = module(x.shape[axis], use_running_average=not train, rngs=nnx.Rngs(0), **fields)
    state = nnx.state(layer)
    moved = jax.tree.map(lambda v: v + 0.25 * jnp.arange(1.0, v.size + 1).astype(v.dtype), state)
    nnx.update(layer, moved)

    def loss(layer, x):
        y = layer(x, mask=mask)
        return (jnp.sin(y) * dy).sum(), y

    by = nnx.DiffState(0, nnx.Param), 1
    (_, y), gradients = nnx.value_and_grad(loss, argnums=by, has_aux=True)(layer, x)
    return y, nnx.to_pure_dict(gradients[0]), gradients[1], nnx.to_pure_dict(nnx.state(layer))


LAYERS = {
    "linen": (of_linen, bncore.jax.linen.BatchNorm, linen.BatchNorm),
    "nnx": (of_nnx, bncore.jax.nnx.BatchNorm, nnx.BatchNorm),
}
FIELDS = {
    "defaults": {},
    "momentum": {"momentum": 0.7, "epsilon": 0.1},
    "second axis": {"axis": 1},
    "no bias": {"use_bias": False},
    "no scale": {"use_scale": False},
    "neither": {"use_scale": False, "use_bias": False},
    "float64": {"param_dtype": jnp.float64, "use_fast_variance": False},
    "result of float32": {"dtype": jnp.float32},
}


def batch(rng, axis=-1, dtype=np.float64):
    shape = (8, 4, 5, C) if axis == -1 else (8, C, 4, 5)
    x, dy = rng.standard_normal((2, *shape))
    return (3 + 2 * x).astype(dtype), dy.astype(dtype)


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("name", LAYERS)
def test_steps(rng, name, fields, train):
    run, own, theirs = LAYERS[name]
    x, dy = batch(rng, fields.get("axis", -1))
    results = []
    for module in (own, theirs):
        call = partial(run, module, train=train, **fields)
        # Flax's functions are compiled, which takes less time; bncore's layer runs both ways.
        results.append(jax.jit(call)(x, dy))
        if module is own and not fields:
            close(call(x, dy), results[0])
    # With a dtype of float32 Flax computes float64 data in float32.
    close(*results, tolerances.JAX_FLOAT32 if "dtype" in fields else FLAX)


@pytest.mark.parametrize("name", LAYERS)
def test_masks(rng, name):
    run, own, theirs = LAYERS[name]
    x, dy = batch(rng)
    mask = rng.random((8, 4, 5, 1)) < 0.7
    close(*(run(module, x, dy, True, mask=jnp.asarray(mask)) for module in (own, theirs)))


@pytest.mark.parametrize("fields", [{}, {"dtype": jnp.bfloat16}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_sixteen_bits(rng, name, fields):
    """The dtypes are Flax's, and values differ by a rounding of 16 bits at most."""
    run, own, theirs = LAYERS[name]
    x, dy = (jnp.asarray(one, jnp.bfloat16) for one in batch(rng))
    results = [run(module, x, dy, True, **fields) for module in (own, theirs)]
    assert results[0][0].dtype == (jnp.bfloat16 if fields else jnp.float32)
    close(*results, tolerance=2.0**-7)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("own", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_have_the_dtype_of_flax(own, dtype, wide):
    """Also where the layer's dtype is narrower than that of x."""
    fields = {"param_dtype": jnp.bfloat16, "dtype": dtype, "force_float32_reductions": wide}
    kinds = []
    for module in (bncore.jax.linen.BatchNorm, linen.BatchNorm):
        layer = module(use_running_average=False, **fields)
        x = jnp.ones((4, C), own)
        variables = layer.init(jax.random.key(0), x)
        _, state = jax.eval_shape(
            lambda v, x, layer=layer: layer.apply(v, x, mutable=["batch_stats"]), variables, x
        )
        kinds.append(jax.tree.map(lambda one: one.dtype, state))
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", LAYERS)
def test_parts_of_a_batch_are_one(rng, name):
    """`axis_name`, here that of `jax.vmap`; all parts have the same number of values."""
    run, own, theirs = LAYERS[name]
    x, dy = (one.reshape(4, 2, *one.shape[1:]) for one in batch(rng))
    results = []
    for module in (own, theirs):
        call = partial(run, module, train=True, axis_name="parts")
        results.append(jax.jit(jax.vmap(call, axis_name="parts"))(x, dy))
    close(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_one_example(name):
    """Models are initialized with one; then each channel may have one value."""
    run, own, theirs = LAYERS[name]
    x = np.arange(1.0, C + 1)[None]
    close(*(run(module, x, x, True) for module in (own, theirs)))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_far_from_zero_keeps_its_digits(rng, name):
    """Where Flax's fast variance has none left."""
    run, own, theirs = LAYERS[name]
    x = rng.normal(1e4, 1.0, (64, 8, C)).astype(np.float32)
    exact = x.astype(np.float64)
    more = np.arange(1.0, C + 1) * 0.25  # what the weight has over 1, and the bias over 0
    want = (exact - exact.mean((0, 1))) / exact.std((0, 1)) * (1.0 + more) + more
    jax.config.update("jax_enable_x64", False)
    errors = []
    for module in (own, theirs):
        y = run(module, x, np.ones_like(x), True)[0]
        errors.append(np.abs(y - want).max() / np.abs(want).max())
    assert errors[0] <= tolerances.JAX_FLOAT32 < 0.1 < errors[1]


def test_fused_operations(rng):
    x, dy = batch(rng)
    layer = bncore.jax.linen.BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    apply = partial(layer.apply, variables, x, mutable=["batch_stats"])
    y = apply()[0]
    np.testing.assert_allclose(
        apply(activation="relu", residual=dy)[0], np.maximum(y + dy, 0.0), atol=1e-12
    )


class Residual(linen.Module):
    """A block with two layers of a given class."""

    norm: type

    @linen.compact
    def __call__(self, x):
        y = linen.relu(self.norm(use_running_average=False)(linen.Dense(C)(x)))
        return x + self.norm(use_running_average=False)(linen.Dense(C)(y))


def test_the_page_runs(rng):
    page = Path(__file__).resolve().parents[2] / "docs" / "jax.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [one for one in blocks if "flax" in one]
    names: dict = {}
    exec(block, names)
    x = rng.standard_normal((2, 5, 5, 3))
    (y, _) = names["Block"]().init_with_output(jax.random.key(0), x, train=True)
    assert y.shape == (2, 5, 5, 64)
    assert np.asarray(y).min() == 0.0


@pytest.mark.parametrize("module", ["linen", "nnx", "equinox"])
def test_the_examples_run(module):
    jax.config.update("jax_enable_x64", False)
    failed, tried = doctest.testmod(importlib.import_module(f"bncore.jax.{module}"))
    assert failed == 0
    assert tried >= 5


def test_models_have_the_same_variables(rng):
    """Layers are named alike, so that a checkpoint of one model is one of the other."""
    x = batch(rng)[0].astype(np.float32)
    own, theirs = Residual(bncore.jax.linen.BatchNorm), Residual(linen.BatchNorm)
    variables = theirs.init(jax.random.key(1), x)
    close(own.init(jax.random.key(1), x), variables)
    close(*(model.apply(variables, x, mutable=["batch_stats"]) for model in (own, theirs)), 1e-5)


@pytest.mark.parametrize("call, kind, message", [
    (lambda x: of_linen(bncore.jax.linen.BatchNorm, x, x, True, axis=(0, 1)), ValueError,
     r"axis: expected one axis, got \(0, 1\)"),
    (lambda x: of_linen(bncore.jax.linen.BatchNorm, x + 1j, x, True), TypeError,
     "x: expected real numbers, got complex128"),
    (lambda x: bncore.jax.nnx.BatchNorm(C, rngs=nnx.Rngs(0))(x[0, 0, 0]), ValueError,
     "x: expected at least 2 dimensions, got 1"),
    (lambda x: bncore.jax.nnx.BatchNorm(C, use_running_average=None, rngs=nnx.Rngs(0))(x),
     ValueError, "use_running_average: expected True or False"),
])  # fmt: skip
def test_bad_arguments(rng, call, kind, message):
    with pytest.raises(kind, match=message):
        call(batch(rng)[0])


SHARDED = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.sharding import AxisType, PartitionSpec
import bncore.jax.linen

mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
rows, same = PartitionSpec("d"), PartitionSpec()
jax.config.update("jax_enable_x64", True)
x = np.random.default_rng(0).normal(3.0, 2.0, (8, 5, 4))
for module, axis_name in ((bncore.jax.linen.BatchNorm, "d"), (linen.BatchNorm, None)):
    layer = module(use_running_average=False, axis_name=axis_name)
    variables = layer.init(jax.random.key(0), x)

    def step(variables, x):
        def loss(parameters):
            y, state = layer.apply({**variables, "params": parameters}, x, mutable=["batch_stats"])
            return (y ** 3).sum(), (y, state)
        (_, (y, state)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return y, state, gradient

    if axis_name:  # with JAX's checks
        step = jax.shard_map(step, mesh=mesh, in_specs=(same, rows), out_specs=(rows, same, same))
    for value in jax.tree.leaves(jax.jit(step)(variables, x)):
        print(*np.asarray(value).ravel())
"""


def test_two_devices():
    """In `jax.shard_map` with its checks, against Flax's layer with the whole batch."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [np.array(line.split(), float) for line in done.stdout.splitlines()]
    assert len(lines) == 10
    for got, want in zip(lines[:5], lines[5:], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("shape", [(C,), (C, 4, 5)], ids=str)
def test_equinox(rng, shape, mode, affine):
    """Two batches in training and one in inference, with gradients."""
    batches = 3 + 2 * rng.standard_normal((3, 8, *shape))
    results = []
    for module in (bncore.jax.equinox.BatchNorm, equinox.nn.BatchNorm):
        options = {"axis_name": "batch", "mode": mode, "momentum": 0.8}
        options["channelwise_affine"] = affine
        layer, state = equinox.nn.make_with_state(module)(C, **options)
        found = []
        for i, x in enumerate(batches):
            layer = equinox.nn.inference_mode(layer, i == 2)
            parameters, rest = equinox.partition(layer, equinox.is_inexact_array)

            def loss(parameters, x, rest=rest, state=state):
                layer = equinox.combine(parameters, rest)
                y, new = jax.vmap(layer, (0, None), (0, None), axis_name="batch")(x, state)
                return jnp.sin(y).sum(), (y, new)

            step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            (_, (y, state)), gradients = step(parameters, x)
            found.append((y, jax.tree.leaves(gradients), jax.tree.leaves(state)))
        results.append(found)
    close(*results, tolerances.JAX_FLOAT64)
