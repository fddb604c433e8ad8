"""Custom calls of arrays that are divided over devices under `jax.jit`, without `jax.shard_map`.

XLA does not divide a custom call by itself: it would gather x first.  So it is told how: every
device has its part of the samples, positions and channels, and computes the call of it.  Where a
part is not enough for the statistics, the devices exchange moments and gradient sums, as with
`axis_name` (`ops.py`).  Under `jax.vmap` XLA gathers x as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from bncore.jax.handlers import AnySettings, Devices

Results: TypeAlias = tuple[Any, ...]


class Division(NamedTuple):
    """How a call is divided.

    Attributes
    ----------
    operands, results : str
        A letter for each: x of x's shape, w of weights that broadcast to it, c of values per
        channel, b of the bits of moments, g of values per group.
    samples : bool
        Whether only samples may be divided.
    whole : (settings, *operands) -> results
        The call.
    parts : (settings, devices, *operands) -> results
        The call of a part, where the devices have parts of one batch.
    """

    operands: str
    results: str
    samples: bool
    whole: Callable[..., Results]
    parts: Callable[..., Results]


class Call(NamedTuple):
    """A call with those operands that are there, and those results that are asked for."""

    division: Division
    settings: AnySettings
    there: tuple[bool, ...]
    asked: tuple[bool, ...]

    @property
    def kinds(self) -> list[str]:
        """The letters of the operands."""
        return [k for k, one in zip(self.division.operands, self.there, strict=True) if one]

    @property
    def made(self) -> list[str]:
        """The letters of the results."""
        return [k for k, one in zip(self.division.results, self.asked, strict=True) if one]

    def whole(self, *operands: Any) -> Results:
        """Compute the call of arrays that are not divided."""
        return self._computed(partial(self.division.whole, self.settings), operands)

    def part(self, devices: Devices | None, *operands: Any) -> Results:
        """Compute the call of a part, where devices may have other parts of the same batch."""
        if devices is None:
            return self.whole(*operands)
        return self._computed(partial(self.division.parts, self.settings, devices), operands)

    def _computed(self, how: Callable[..., Results], operands: Sequence[Any]) -> Results:
        rest = iter(operands)
        return _only(how(*(next(rest) if one else None for one in self.there)))


def divided(division: Division, settings: AnySettings, *operands: Any) -> Results:
    """Make a call that XLA may divide; None stands for a missing operand or result."""
    mesh = jax.sharding.get_abstract_mesh()
    if jax.device_count() == 1 or mesh.manual_axes or mesh.explicit_axes:
        return division.whole(settings, *operands)
    made = jax.eval_shape(partial(division.whole, settings), *operands)
    there, asked = (tuple(one is not None for one in some) for some in (operands, made))
    call = Call(division, settings, there, asked)
    found = iter(_partitioned(call)(*_only(operands)))
    return tuple(next(found) if one else None for one in asked)


def _only(arrays: Sequence[Any]) -> Results:
    return tuple(one for one in arrays if one is not None)


@lru_cache(maxsize=256)
def _partitioned(call: Call) -> Any:
    """Return the call as a function that tells XLA how it is divided."""
    settings, samples = call.settings, call.division.samples

    def partition(mesh: Any, shapes: Sequence[Any], made: Sequence[Any]) -> Any:
        spec = _spec(mesh, shapes[call.kinds.index("x")], samples)
        names = _names(spec, settings.axis)
        part = partial(call.part, Devices(names, None) if names else None)
        own = partial(_sharding, mesh, spec, settings.axis)
        return mesh, part, tuple(map(own, call.made, made)), tuple(map(own, call.kinds, shapes))

    def rule(mesh: Any, types: Sequence[Any], made: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        own = partial(_factors, settings, map("u{}".format, count()))
        before, after = (
            ", ".join(map(own, kinds, map(_shape, given)))
            for kinds, given in ((call.kinds, types), (call.made, made))
        )
        alone = tuple(f"d{i}" for i in range(1, settings.ndim)) if samples else ()
        return f"{before} -> {after}", {"need_replication_factors": alone}

    def many(size: int, axes: Sequence[bool], *operands: Any) -> tuple[Results, Any]:
        mapped = [0 if one else None for one in axes]
        found = jax.vmap(call.whole, mapped, axis_size=size)(*operands)
        return found, (True,) * len(found)

    whole = custom_partitioning(call.whole)
    whole.def_partition(partition=partition, sharding_rule=rule)
    found = custom_vmap(lambda *operands: whole(*operands))
    found.def_vmap(many)  # custom_partitioning has no rule
    return found


def _shape(kind: Any) -> list[int]:
    """Return the shape of a type of XLA's."""
    return list(kind.shape)


def _factors(settings: AnySettings, unique: Iterator[str], kind: str, shape: list[int]) -> str:
    """Name the dimensions of an array: alike are those that are divided alike."""
    of_x = [f"d{i}" for i in range(settings.ndim)]
    channels = of_x[settings.axis]
    if kind == "w" and shape[settings.axis] == 1:
        of_x[settings.axis] = next(unique)
    if kind in "xw":
        return " ".join(of_x)
    if kind == "c":
        return channels
    first = of_x[0] if kind == "g" else next(unique)
    second = next(unique) if kind == "g" else channels
    return f"{first} {second} {next(unique)}"


def _spec(mesh: Any, x: Any, samples: bool) -> list[tuple[Any, ...]]:
    """Return the mesh axes that divide each dimension of x, evenly."""
    given = list(x.sharding.spec)
    given += [None] * (len(x.shape) - len(given))
    names = [one if isinstance(one, tuple) else () if one is None else (one,) for one in given]
    return [
        own
        if size % math.prod(mesh.shape[name] for name in own) == 0 and (i == 0 or not samples)
        else ()
        for i, (own, size) in enumerate(zip(names, x.shape, strict=True))
    ]


def _names(spec: list[tuple[Any, ...]], axis: int) -> tuple[Any, ...]:
    """Return the mesh axes along which the parts of one batch are."""
    return tuple(name for i, own in enumerate(spec) if i != axis for name in own)


def _sharding(
    mesh: Any, spec: list[tuple[Any, ...]], axis: int, kind: str, array: Any
) -> NamedSharding:
    """Return how an array is divided."""
    if kind in "xw":
        own = [() if size == 1 else one for one, size in zip(spec, array.shape, strict=True)]
    else:
        own = {"c": [spec[axis]], "b": [(), spec[axis], ()], "g": [spec[0], (), ()]}[kind]
    return NamedSharding(mesh, PartitionSpec(*(one or None for one in own)))
