"""The compiled part of bncore.jax: its errors, and the handlers that it registers with XLA."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import variants
from bncore import adapter_cache
from processes import python

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore.jax
from bncore.jax import handlers

assert bncore.jax  # registers the handlers

pytestmark = pytest.mark.needs_jax

X, V = np.ones((2, 3, 4), np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize("name", ["infer", "train"])
@pytest.mark.parametrize("examples", [1, 5])
def test_what_bncore_refuses_is_an_error_of_xla(name, examples):
    """The public functions check arguments before, so these errors never reach their callers."""
    settings = handlers.Settings(3, 1, -1.0, None, 0.0)
    vector = jax.ShapeDtypeStruct((3,), np.float32)
    results = [jax.ShapeDtypeStruct(X.shape, X.dtype)]
    operands = [V, V, None, None, None]
    if name == "train":
        results += [vector, vector, jax.ShapeDtypeStruct((3, 3, 2), np.uint32), None]
        operands = [None, None, None]

    def call(x):
        return handlers.call(name, settings, results, (x, *operands, None))[0]

    with pytest.raises(Exception, match="eps is negative, infinite or NaN"):
        jax.block_until_ready(jax.vmap(call)(np.stack([X] * examples)))


def test_what_is_not_asked_for_is_none():
    settings = handlers.Settings(3, 1, 1e-5, None, 0.0)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    operands = (X, X, V, V, None, None, None, None)
    dx, *rest = handlers.call("infer_backward", settings, [shape, *[None] * 5], operands)
    assert dx.shape == X.shape
    assert rest == [None] * 5


def test_an_import_without_a_compiler_says_so(tmp_path):
    """bncore itself goes on working."""
    environment = os.environ | {adapter_cache.CACHE: str(tmp_path), "CXX": "/nowhere/c++"}
    code = (
        "import bncore\n"
        "try:\n"
        "    import bncore.jax\n"
        "except RuntimeError as error:\n"
        "    print(type(error).__name__, error, bncore.get_num_threads() > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("CompileError the C++ compiler /nowhere/c++ does not run")
    assert done.stdout.rstrip().endswith("True")


SHARDED = """
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import bncore.jax

def halves(x, weight):
    return bncore.jax.batch_norm_train(x, weight)[0]

mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
split, whole = PartitionSpec("d"), PartitionSpec()
sharded = jax.jit(jax.shard_map(halves, mesh=mesh, in_specs=(split, whole), out_specs=split))
x, weight = jnp.arange(48.0).reshape(4, 3, 4) ** 2, jnp.ones(3)

def by_hand(x, weight):
    return jnp.concatenate([halves(x[:2], weight), halves(x[2:], weight)])

def inside(x, weight):
    # The gradient of a replicated array is the sum over the devices.
    gradient = jax.grad(lambda x, weight: (halves(x, weight) ** 3).sum(), (0, 1))
    return gradient(x, weight)

inside = jax.jit(jax.shard_map(
    inside, mesh=mesh, in_specs=(split, whole), out_specs=(split, whole)
))

for function in (sharded, by_hand):
    def loss(x, weight):
        return (function(x, weight) ** 3).sum()
    gradients = jax.grad(loss, (0, 1))(x, weight)
    again = jax.jacrev(jax.grad(loss, 1), (0, 1))(x, weight)
    if function is sharded:
        gradients = [(a + b) / 2 for a, b in zip(gradients, inside(x, weight))]
    values = jax.jit(loss)(x, weight), *(g.sum() for g in (*gradients, *again))
    print(*values, *gradients[1])
"""

REPLICATED = """
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import bncore.jax

def step(x, running, weight, bias):
    def loss(weight, bias):
        y, moments = bncore.jax.batch_norm_train(x, weight, bias, activation="relu")
        mean, var = bncore.jax.update_running_stats(*running, moments)
        z = bncore.jax.batch_norm_infer(x, *running, weight, residual=y)
        return (y * x + z ** 2).sum(), (mean, var)
    (value, running), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(weight, bias)
    return jax.lax.psum(value, "d"), jax.lax.pmean(running, "d"), gradients

mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
split, whole = PartitionSpec("d"), PartitionSpec()
sharded = jax.jit(jax.shard_map(
    step, mesh=mesh, in_specs=(split, whole, whole, whole), out_specs=whole
))
x, weight, bias = jnp.arange(48.0).reshape(4, 3, 4) ** 2 % 7, jnp.ones(3), jnp.full(3, 0.5)
same = jnp.concatenate([x[:2], x[:2]])
value, running, gradients = sharded(same, (bias, weight), weight, bias)
one = jax.vmap(step, axis_name="d", in_axes=(0, None, None, None))
parts = one(same.reshape(2, 2, 3, 4), (bias, weight), weight, bias)
print(value, *running, *gradients)
print(parts[0][0], *(r[0] for r in parts[1]), *(g.sum(0) for g in parts[2]))
"""


def on_two_devices(script):
    """The lines of numbers that a script prints."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = re.compile("[][]")
    return [np.array(numbers.sub(" ", line).split(), float) for line in done.stdout.splitlines()]


def test_a_call_in_a_shard_map_sees_its_part():
    sharded, by_hand = on_two_devices(SHARDED)
    assert abs(sharded[0]) > 1
    np.testing.assert_allclose(sharded, by_hand, rtol=1e-5, atol=1e-3)


def test_gradients_of_replicated_arrays_are_summed_over_the_devices():
    sharded, by_hand = on_two_devices(REPLICATED)
    assert sharded.size == 13 and np.all(sharded != 0)
    np.testing.assert_allclose(sharded, by_hand, rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed as Linux lists them")
@pytest.mark.parametrize(("asked", "expected"), [("", False), ("own", True), ("serial", False)])
def test_the_environment_chooses_the_executor(asked, expected):
    """The library's own workers have a name. Without BNCORE_EXECUTOR there are none."""
    script = """
        import time
        from pathlib import Path
        import numpy as np
        import bncore.jax
        x = np.ones((8, 16, 64, 64), np.float32)
        def workers():
            names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
            return any(name.startswith("bncore-") for name in names)
        end = time.monotonic() + 30
        calls = 0
        while calls < 20 or (not workers() and EXPECTED and time.monotonic() < end):
            bncore.jax.batch_norm_train(x)[0].block_until_ready()
            calls += 1
        print(workers())
    """.replace("EXPECTED", str(expected))
    assert python(script, BNCORE_EXECUTOR=asked) == str(expected)
