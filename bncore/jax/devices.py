"""What devices exchange whose batches are one: inside `jax.shard_map`, `jax.pmap` or `jax.vmap`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bncore.arguments import scalars
from bncore.jax.handlers import Devices, Shape
from bncore.jax.manual_axes import manual

Array: TypeAlias = jax.Array


def checked(axis_name: object, groups: object) -> Devices | None:
    """Return the arguments `axis_name` and `axis_index_groups`, or None if there is no name."""
    if axis_name is None:
        if groups is not None:
            raise ValueError("axis_index_groups: expected None without axis_name, got groups")
        return None
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    if not names or not all(isinstance(name, Hashable) for name in names):
        raise TypeError(f"axis_name: expected a name or names, got {scalars.shown(axis_name)}")
    return Devices(names, None if groups is None else _groups(groups, _size(names)))


def _groups(given: object, size: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of one size that divide the indices of an axis."""
    if not isinstance(given, Iterable):
        raise TypeError(f"axis_index_groups: expected groups, got {scalars.shown(given)}")
    groups = tuple(tuple(map(int, group)) for group in given)
    indices = sorted(index for group in groups for index in group)
    if indices != list(range(size)) or len(set(map(len, groups))) != 1:
        raise ValueError(
            f"axis_index_groups: expected groups of one size with each of 0 to {size - 1} once, "
            f"got {groups}"
        )
    return groups


def _size(names: tuple[Any, ...]) -> int:
    """Return how many devices there are along axes."""
    size: int = jax.lax.psum(1, names)
    return size


def count(devices: Devices | None) -> int:
    """Return how many batches are one."""
    if devices is None:
        return 1
    return _size(devices.names) if devices.groups is None else len(devices.groups[0])


def gathered(devices: Devices, values: Array) -> Array:
    """Return what all devices of a group have, in the order of the group.

    JAX takes the results of `jax.lax.all_gather` for different ones.  A sum in which every device
    has a place of its own is known to be the same, so that running statistics are.
    """
    names, groups = devices
    index = jax.lax.axis_index(names)
    if manual(names):
        places = jnp.zeros((_size(names), *values.shape), values.dtype)
        found = jax.lax.psum(places.at[index].set(values), names)
    else:
        found = jax.lax.all_gather(values, names)
    if groups is None:
        return found
    members = np.zeros((_size(names), len(groups[0])), np.int32)
    for group in groups:
        members[list(group)] = group
    return found[jnp.asarray(members)[index]]


def total(devices: Devices | None, values: Array) -> Array:
    """Return the sum over all devices of a group."""
    if devices is None:
        return values
    if devices.groups is not None:
        return jnp.sum(gathered(devices, values), 0)
    found: Array = jax.lax.psum(values, devices.names)
    return found


def wider(array: Array | None) -> Shape | None:
    """Return the shape of an array whose parts are summed in float32 at least; None for None."""
    if array is None:
        return None
    return Shape(array.shape, jnp.promote_types(array.dtype, jnp.float32))


def summed(devices: Devices, parts: list[Any], like: list[Any]) -> list[Any]:
    """Return the sums over all devices, in the dtypes of other arrays; None stays."""
    return [
        None if one is None else total(devices, one).astype(own.dtype)
        for one, own in zip(parts, like, strict=True)
    ]
