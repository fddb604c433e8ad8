"""`axis_name`: a batch that is spread over devices has the results of one device with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
import jax_devices

pytestmark = pytest.mark.needs_jax


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What four devices computed."""
    file = tmp_path_factory.mktemp("devices") / "found.npz"
    done = subprocess.run(
        [sys.executable, jax_devices.__file__, str(file)],
        capture_output=True,
        cwd=Path(jax_devices.__file__).parent.parent,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


@pytest.fixture(scope="module")
def whole():
    """The same of each case, of the whole batch on one device."""
    jax.config.update("jax_enable_x64", True)
    results = {}
    for case in jax_devices.CASES:
        one = jax.jit(lambda given, case=case: jax_devices.one(given, case))(jax_devices.data())
        results[case] = {name: np.asarray(value) for name, value in one.items()}
    jax.config.update("jax_enable_x64", False)
    return results


def close(got, want, tolerance=tolerances.JAX_FLOAT64):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(("spread", "case"), [
    *((spread, case) for spread in ("2", "vmap", "jit") for case in jax_devices.CASES),
    ("4", "plain"),
])  # fmt: skip
def test_parts_are_those_of_the_whole(found, whole, spread, case):
    """Values, gradients, and derivatives of gradients in both modes."""
    for name, want in whole[case].items():
        close(found[f"{spread} {case} {name}"], want)


def test_norms_of_samples(found):
    """Divided by `jax.jit`, beside batch norm under `jax.vmap`, which XLA gathers."""
    jax.config.update("jax_enable_x64", True)
    want = jax_devices.samples(jax_devices.data(), 1)
    jax.config.update("jax_enable_x64", False)
    for name, value in want.items():
        close(found[f"samples {name}"], np.asarray(value))


MAPPED = """
norm = partial(bncore.jax.batch_norm_train, axis_name="d")
norm = jax.shard_map(norm, mesh=mesh, in_specs=(rows, same), out_specs=(rows, same))
"""


@pytest.mark.parametrize("norm, number", [
    (MAPPED, 3),  # moments, gradient sums, and the gradient by the weight
    ("norm = bncore.jax.batch_norm_train", 2),
    ("norm = partial(bncore.jax.batch_norm_train, activation='relu')", 2),
    ("norm = lambda x, weight: (bncore.jax.group_norm(x, 3, weight),)", 1),
], ids=["shard_map", "jit", "relu", "group norm"])  # fmt: skip
def test_only_statistics_travel(norm, number):
    """XLA gathers nothing of a sharded x, be it under `jax.jit` alone or `jax.shard_map`."""
    code = f"""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import re
from functools import partial
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import bncore.jax

mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
rows, same = PartitionSpec("d"), PartitionSpec()
{norm}
x = jax.device_put(jnp.ones((8, 3, 50)), NamedSharding(mesh, rows))
step = jax.jit(jax.grad(lambda x, weight: (norm(jnp.sin(x), weight)[0] ** 3).sum(), (0, 1)))
text = step.lower(x, jnp.ones(3)).compile().as_text()
found = re.findall(r"= (?:\\w+\\[([\\d,]*)\\])\\S* (all-\\w+|collective-\\w+)", text)
sizes = [jnp.prod(jnp.array([int(n) for n in shape.split(",") if n])) for shape, _ in found]
print(len(sizes), int(max(sizes)))
print(step(x, jnp.ones(3))[0].sharding.spec)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes, spec = done.stdout.splitlines()
    found, largest = map(int, sizes.split())
    assert found >= number
    assert largest <= 2 * 3 * 3 * 2  # the bits of two devices' moments
    assert spec.startswith("PartitionSpec('d',") or spec.endswith("('d',)")


def test_float32(found, whole):
    """The bits of moments and gradient sums are exchanged in float64, whatever JAX allows."""
    for name in ("y", "mean", "var", "dx", "dweight", "dbias"):
        close(found[f"float32 {name}"], whole["plain"][name], tolerances.JAX_FLOAT32)


@pytest.mark.parametrize("checked", [True, False])
def test_groups(found, checked):
    jax.config.update("jax_enable_x64", True)
    given = jax_devices.data()

    def y(given):
        parts = [
            jax_devices.called(
                {k: v[rows] if v.ndim == 3 else v for k, v in given.items()}, "plain"
            )[0]
            for rows in np.split(jax_devices.MEMBERS, 2)
        ]
        return jnp.concatenate(parts)[np.argsort(jax_devices.MEMBERS)]

    want = {"y": y(given)} | jax_devices.again(y, given)
    jax.config.update("jax_enable_x64", False)
    for name, value in want.items():
        close(found[f"groups {checked} {name}"], np.asarray(value))


def test_moments_merge_as_in_numpy(rng):
    """With the bits of NumPy's moments of the same parts."""

    x = rng.normal(1e3, 1.0, (4, 6, 3)).astype(np.float32)
    got = jax.vmap(lambda x: bj.moments(x, axis_name="v"), axis_name="v")(x)
    parts = [bncore.moments(part, axis=1) for part in x]
    want = parts[0]
    for part in parts[1:]:
        want = want.merge(part)
    for i in range(4):
        np.testing.assert_array_equal(got.mean[i], want.mean.astype(np.float32))
        np.testing.assert_array_equal(got.var[i], want.var().astype(np.float32))
    assert (got.count == 24.0).all()


def test_merge(rng):
    """Moments of parts of any sizes, empty ones and channels without a value among them."""
    jax.config.update("jax_enable_x64", True)
    x = rng.normal(3.0, 2.0, (9, 4))
    where = rng.random(x.shape) < 0.7
    where[:, 0], where[:3, 1] = False, False

    def merged(x):
        return bj.merge(*(
            bj.moments(x[a:b], where=where[a:b]) for a, b in ((0, 3), (3, 3), (3, 8), (8, 9))
        ))  # fmt: skip

    def of_all(x):
        return bj.moments(x, where=where)

    def slopes(function):
        return jax.grad(lambda x: jnp.nansum(function(x).mean ** 2 + function(x).var ** 3))(x)

    for got, want in zip(jax.tree.leaves(merged(x)), jax.tree.leaves(of_all(x)), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerances.MERGED)
    assert np.isnan(merged(x).mean[0]) and merged(x).count[0] == 0.0
    close(np.asarray(slopes(merged))[:, 1:], np.asarray(slopes(of_all))[:, 1:])
    known = bj.merge(bj.moments(x[:5]), bj.moments(x[5:]))
    np.testing.assert_array_equal(known.count, np.full(4, 9.0))
    mean, _ = bj.update_running_stats(jnp.zeros(4), jnp.ones(4), known, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(0), rtol=tolerances.MERGED)
    jax.config.update("jax_enable_x64", False)


X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize("call, kind, message", [
    (lambda: bj.batch_norm_train(X, axis_index_groups=[[0]]), ValueError,
     "axis_index_groups: expected None without axis_name, got groups"),
    (lambda: bj.batch_norm_train(X, axis_name=[]), TypeError, "axis_name: expected a name"),
    (lambda: bj.batch_norm_train(X, axis_name="nobody"), NameError, "unbound axis name: nobody"),
    (lambda: jax.vmap(lambda x: bj.moments(x, axis_name="v", axis_index_groups=[[0, 1], [2]]),
                      axis_name="v")(X.reshape(4, 1, 3)), ValueError,
     "axis_index_groups: expected groups of one size"),
    (lambda: bj.merge(bj.moments(X), 3), TypeError, r"others\[0\]: expected Moments, got 3"),
    (lambda: bj.merge(bj.moments(X), bj.moments(X[:, :2])), ValueError,
     r"others\[0\]: expected shape \(3,\), got \(2,\)"),
    (lambda: bj.moments(X.astype(int)), TypeError, "x: expected float16, bfloat16, float32"),
])  # fmt: skip
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_one_value_in_all_parts_is_refused():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        jax.vmap(lambda x: bj.batch_norm_train(x, axis_name="v"), axis_name="v")(X[:1, None])
    y, moments = jax.vmap(lambda x: bj.batch_norm_train(x, axis_name="v"), axis_name="v")(
        X[:2, None] * np.array([[[1.0]], [[3.0]]], np.float32)
    )
    np.testing.assert_allclose(y[:, 0], [[-1.0] * 3, [1.0] * 3], rtol=1e-4)
    assert (moments.count == 2.0).all()
