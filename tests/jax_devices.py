"""Training steps whose batch is spread over four devices; started by a test with a file's name.

python jax_devices.py FILE: writes the results by name.  A name says how the batch was spread, and
the rest of it is what `one` calls the results of the whole batch.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import bncore.jax as bj

SHAPE = (8, 3, 5)
GROUPS = ((0, 3), (1, 2))
MEMBERS = np.array([0, 1, 6, 7, 2, 3, 4, 5])  # of the first group, then of the second
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"where": True, "fill": 0.5},
    "fused": {"activation": "leaky_relu", "negative_slope": 0.3, "residual": True},
    "omitted": {"where": True, "nan_policy": "omit", "activation": "relu", "fill": 0.0},
}
TWICE = ("plain", "omitted")  # differentiated twice


def data() -> dict[str, np.ndarray]:
    """Arguments of a step, in float64, and dy; each part of the batch has another mask."""
    rng = np.random.default_rng(3)
    x, residual, dy = rng.standard_normal((3, *SHAPE))
    weight, bias = rng.standard_normal((2, SHAPE[1]))
    where = rng.random((SHAPE[0], 1, SHAPE[2])) < 0.6
    return {"x": 10 + 2 * x, "residual": residual, "where": where, "dy": dy, "weight": weight,
            "bias": bias}  # fmt: skip


def called(given: Any, case: str, **spread: Any) -> tuple[jax.Array, bj.Moments]:
    """Call batch norm as a case says."""
    x, weight, bias, residual, where = (
        given[name] for name in ("x", "weight", "bias", "residual", "where")
    )
    options = dict(CASES[case])
    if options.pop("residual", False):
        options["residual"] = residual
    if options.pop("where", False):
        options["where"] = where
    if "nan_policy" in options:
        x = jnp.where(x > 13.0, jnp.nan, x)
    return bj.batch_norm_train(x, weight, bias, **options, **spread)


def step(given: Any, case: str, **spread: Any) -> Any:
    """Return y, the statistics and gradients; the losses of all parts add up to that of a batch."""
    parts = 1 if not spread else jax.lax.psum(1, spread["axis_name"])

    def loss(by: Any) -> Any:
        y, moments = called(given | by, case, **spread)
        own = (moments.mean**2 + 3.0 * moments.var).sum() / parts
        return (jnp.sin(y) * given["dy"]).sum() + own, (y, moments.mean, moments.var)

    by = {name: given[name] for name in ("x", "weight", "bias", "residual")}
    (_, (y, mean, var)), gradients = jax.value_and_grad(loss, has_aux=True)(by)
    return {"y": y, "mean": mean, "var": var, **{f"d{name}": g for name, g in gradients.items()}}


def again(function: Any, given: Any) -> Any:
    """Return a gradient's gradient, and its tangent, of `function`: given -> y."""

    def loss(by: Any) -> Any:
        return (function(given | by) ** 3 * given["dy"]).sum()

    def of_gradient(by: Any) -> Any:
        return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(by)))

    by = {name: given[name] for name in ("x", "weight")}
    moved = jax.tree.map(jnp.cos, by)
    second = jax.grad(of_gradient)(by)
    tangent = jax.jvp(jax.grad(loss), (by,), (moved,))[1]
    return {f"second {k}": v for k, v in second.items()} | {
        f"tangent {k}": v for k, v in tangent.items()
    }


def one(given: Any, case: str) -> dict[str, Any]:
    """Everything for the whole batch."""
    found = step(given, case)
    if case in TWICE:
        found |= again(lambda given: called(given, case)[0], given)
    return found


def mesh_of(devices: int) -> Mesh:
    return jax.make_mesh(
        (devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def specs(given: Any, rows: Any) -> Any:
    """Split what has the size of a batch."""
    return {k: rows if v.ndim == len(SHAPE) else PartitionSpec() for k, v in given.items()}


def on_a_mesh(given: Any, case: str, devices: int, checked: bool) -> dict[str, Any]:
    """In `jax.shard_map`, whose checks are on or off."""
    rows, same = PartitionSpec("d"), PartitionSpec()
    split = specs(given, rows)
    ends = {"y": rows, "dx": rows, "dresidual": rows, "mean": same, "var": same}
    # Without checks JAX adds nothing up: every device has its own gradient of a parameter.
    ends |= dict.fromkeys(("dweight", "dbias"), same if checked else rows)
    mapped = partial(jax.shard_map, mesh=mesh_of(devices), in_specs=(split,), check_vma=checked)
    found = jax.jit(mapped(partial(step, case=case, axis_name="d"), out_specs=ends))(given)
    if not checked:
        for name in ("dweight", "dbias"):
            found[name] = found[name].reshape(devices, -1).sum(0)
    if case not in TWICE:
        return found
    y = mapped(lambda given: called(given, case, axis_name="d")[0], out_specs=rows)
    return found | jax.jit(partial(again, y))(given)


def under_jit(given: Any, case: str) -> dict[str, Any]:
    """Divided over a mesh of two by two devices, of which one axis has samples, by `jax.jit`."""
    mesh = jax.make_mesh((2, 2), ("d", "e"), axis_types=(AxisType.Auto,) * 2)
    split = specs(given, PartitionSpec("d"))
    split["x"] = PartitionSpec(("d", "e")) if case == "plain" else PartitionSpec("d")
    placed = {k: jax.device_put(v, NamedSharding(mesh, split[k])) for k, v in given.items()}
    found: dict[str, Any] = jax.jit(partial(one, case=case))(placed)
    assert found["dx"].sharding.spec[0] == split["x"][0]
    return found


def samples(given: Any, devices: int) -> dict[str, Any]:
    """Group and layer norm of samples on several devices, and batch norm of examples there."""
    rows = NamedSharding(mesh_of(devices), PartitionSpec("d"))
    x, dy = (jax.device_put(given[name], rows) for name in ("x", "dy"))

    def loss(x: Any, weight: Any) -> Any:
        y = bj.layer_norm(bj.group_norm(x, 3, weight))
        many = jax.vmap(lambda x: bj.batch_norm_train(x, weight)[0])(x.reshape(4, 2, 3, 5))
        return (y**3 * dy).sum() + (many**2 * dy.reshape(many.shape)).sum(), (y, many)

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, (y, many)), (dx, dweight) = jax.jit(step)(x, given["weight"])
    return {"y": y, "many": many, "dx": dx, "dweight": dweight}


def mapped(given: Any, case: str) -> dict[str, Any]:
    """In `jax.vmap`, which has an axis of four parts."""
    parts = {k: v.reshape(4, -1, *v.shape[1:]) if v.ndim == 3 else v for k, v in given.items()}
    axes = ({k: 0 if v.ndim == 4 else None for k, v in parts.items()},)
    own = jax.vmap(partial(step, case=case, axis_name="v"), axes, axis_name="v")
    found = jax.jit(own)(parts)
    for name, value in found.items():
        if value.ndim == 4:
            found[name] = value.reshape(SHAPE)
        else:  # every part has the same statistics, and its own gradients of parameters
            found[name] = value.sum(0) if name[0] == "d" else value[-1]
    if case not in TWICE:
        return found
    y = jax.vmap(lambda given: called(given, case, axis_name="v")[0], axes, axis_name="v")
    more = jax.jit(partial(again, y))(parts)
    return found | {k: v.reshape(SHAPE) if v.ndim == 4 else v for k, v in more.items()}


def grouped(given: Any, checked: bool) -> dict[str, Any]:
    """Two groups of two devices each."""
    rows = PartitionSpec("d")

    def own(given: Any) -> Any:
        return called(given, "plain", axis_name="d", axis_index_groups=GROUPS)[0]

    y = jax.shard_map(
        own, mesh=mesh_of(4), in_specs=(specs(given, rows),), out_specs=rows, check_vma=checked
    )
    return {"y": jax.jit(y)(given)} | jax.jit(partial(again, y))(given)


def main(file: str) -> None:
    jax.config.update("jax_enable_x64", True)
    given = data()
    found = {}
    for case in CASES:
        found |= {f"vmap {case} {k}": v for k, v in mapped(given, case).items()}
        found |= {f"jit {case} {k}": v for k, v in under_jit(given, case).items()}
        for devices, checked in ((2, True), (4, False))[: 2 if case == "plain" else 1]:
            more = on_a_mesh(given, case, devices, checked)
            found |= {f"{devices} {case} {k}": v for k, v in more.items()}
    found |= {f"samples {k}": v for k, v in samples(given, 2).items()}
    for checked in (True, False):
        found |= {f"groups {checked} {k}": v for k, v in grouped(given, checked).items()}
    jax.config.update("jax_enable_x64", False)
    short = {k: v if k == "where" else v.astype(np.float32) for k, v in given.items()}
    found |= {f"float32 {k}": v for k, v in on_a_mesh(short, "plain", 2, True).items()}
    np.savez(file, **{k: np.asarray(v) for k, v in found.items()})


if __name__ == "__main__":
    main(sys.argv[1])
