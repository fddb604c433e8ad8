"""`jax.export` of functions with bncore's custom calls, and what runs in another process."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import variants

if "native" not in variants.FOUND.names():
    pytest.skip("bncore.jax needs the C library", allow_module_level=True)
import bncore.jax as bj

pytestmark = pytest.mark.needs_jax

X = np.arange(60.0, dtype=np.float32).reshape(4, 3, 5) ** 2 % 17
WEIGHT = np.array([0.5, 1.0, 2.0], np.float32)


def loss(x, weight):
    """Use every kind of call."""
    y, moments = bj.batch_norm_train(x, weight, activation="relu", residual=x)
    z = bj.batch_norm_infer(y, moments.mean, moments.var, weight)
    merged = bj.merge(moments, bj.moments(z))
    w = bj.layer_norm(bj.instance_norm(z, weight))
    return (z**3).sum() + (merged.var**2).sum() + (w**3).sum()


def test_it_is_refused_by_jax_unless_it_is_allowed():
    with pytest.raises(ValueError, match="custom calls whose targets have no compatibility"):
        export.export(jax.jit(loss))(X, WEIGHT).serialize()


@pytest.mark.parametrize("symbolic", [False, True])
def test_functions_and_gradients_come_back(symbolic):
    shape = export.symbolic_shape("n, 3, 5") if symbolic else X.shape
    kind = jax.ShapeDtypeStruct(shape, X.dtype)
    made = export.export(jax.jit(loss), disabled_checks=bj.export_checks())(kind, WEIGHT)
    back = export.deserialize(made.serialize(vjp_order=2)).call

    def orders(function):
        gradient = jax.grad(function, (0, 1))

        def again(x, weight):
            return sum((one**2).sum() for one in gradient(x, weight))

        return [function(X, WEIGHT), *gradient(X, WEIGHT), jax.grad(again)(X, WEIGHT)]

    for got, want in zip(orders(back), orders(jax.jit(loss)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


def test_another_process_runs_it(tmp_path):
    """If it imports bncore.jax; otherwise XLA names the call that it does not know."""
    made = export.export(jax.jit(loss), disabled_checks=bj.export_checks())(X, WEIGHT)
    (tmp_path / "loss").write_bytes(made.serialize())
    np.savez(tmp_path / "given", X, WEIGHT)
    code = f"""
import sys
import numpy as np
from jax import export
if sys.argv[1:]:
    import bncore.jax
given = np.load(r"{tmp_path / "given.npz"}")
function = export.deserialize(bytearray(open(r"{tmp_path / "loss"}", "rb").read()))
print(function.call(*given.values()))
"""
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        for more in (["import"], [])
    ]
    assert float(runs[0].stdout) == pytest.approx(float(loss(X, WEIGHT)), rel=1e-6)
    assert runs[1].returncode != 0
    assert "bncore_batch_norm_" in runs[1].stderr


@pytest.mark.parametrize("correction", [0, 1])
def test_running_statistics_of_a_symbolic_batch(correction):
    """An exported function takes batches of any size, and counts each one's values."""
    running = jnp.full(3, 0.5), jnp.full(3, 2.0)

    def step(x):
        _, moments = bj.batch_norm_train(x)
        return bj.update_running_stats(*running, moments, correction=correction)

    (size,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((size, 3, 2), np.float32)
    exported = export.export(jax.jit(step), disabled_checks=bj.export_checks())(shape)
    exported = export.deserialize(exported.serialize())
    for n in (2, 5):
        x = jnp.arange(n * 6.0).reshape(n, 3, 2) ** 2
        for got, expected in zip(exported.call(x), step(x), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
