"""The mesh axes along which arrays differ between devices, inside `jax.shard_map`.

JAX keeps track of them (``check_vma``), and takes care that a gradient of an array that is the same
on all devices is summed over the devices: where the array is cast to one that differs.  So the
arguments of a call are cast before its own rules of differentiation see them.
"""

from __future__ import annotations

from typing import Any

import jax

Axes = frozenset[Any]


def alike(*arrays: Any) -> list[Any]:
    """Return arrays that all differ along the axes along which any of them does; None stays."""
    axes: Axes = frozenset().union(*(_axes(one) for one in arrays if one is not None))
    return [None if one is None else _cast(one, axes) for one in arrays]


def _axes(array: Any) -> Axes:
    kind: Any = jax.typeof(array)
    manual = getattr(kind, "manual_axis_type", None)
    found: Axes = getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return found


def _cast(array: Any, axes: Axes) -> Any:
    missing = tuple(axes - _axes(array))
    if not missing:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, missing, to="varying")
    return jax.lax.pvary(array, missing)  # before JAX 0.8


def abstract(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """Return the type of an array that differs between devices as another type does."""
    name = "manual_axis_type" if hasattr(like, "manual_axis_type") else "vma"
    sharding = jax.sharding.NamedSharding(like.sharding.mesh, jax.sharding.PartitionSpec())
    own = {name: getattr(like, name), "sharding": sharding}
    return jax.core.ShapedArray(shape, dtype, **own)


def manual(names: tuple[Any, ...]) -> bool:
    """Tell whether axes are those of a mesh, inside `jax.shard_map`."""
    return set(names) <= set(jax.sharding.get_abstract_mesh().manual_axes)
