"""The arrays that the suite feeds to bncore: shapes, values and memory layouts, each in one list.

A test asks for values of a shape with channels on axis 1 (the *plain* array) and lets a `Layout`
move the same values into another memory order. `Layout.plain` leads back, so that one reference
serves every layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

FLOATS = (np.float32, np.float64)
SIXTEEN_BITS = (np.float16,) if bfloat16 is None else (np.float16, bfloat16)
Shape = tuple[int, ...]
Rng = np.random.Generator

# ------------------------------------------------------------------------------------------ shapes

# (N, C, spatial...). 16 lanes, blocks of 4096 values or 256 rows, segments of 32768 values: one
# below, at and above.
EDGE_SHAPES = [
    *[(3, 2, inner) for inner in (2, 15, 16, 17, 31, 33)],
    *[(1, 2, inner) for inner in (4095, 4096, 4097, 4111)],
    *[(n, 3) for n in (2, 7, 8, 9, 255, 256, 257, 513)],
    *[(n, 5, 3) for n in (85, 86, 300)],  # rows of 15 columns, gathered to 240
    *[(n, 300) for n in (9, 257)],  # too many columns to gather
    *[(n, 16) for n in (31, 32, 33)],  # rows gathered fourfold, from 8 gathered rows on
    (2, 1),
    (2, 1, 17),
    (4100, 1),
    (5, 3, 7, 11),
    (2, 2, 16385),
    (1, 1, 65537),
    (70, 2, 1000),
    (66000, 2),
]
# The fewest values that a thread is worth: smaller problems are serial.
THREAD_VALUES = 32768
# Segments are cut at 32768 values and never exceed 64 per channel; these have enough of them for 7
# threads.
THREADED_SHAPES = [
    (2, 1, 131072),
    (3, 2, 90001),
    (5, 3, 77, 300),
    (8, 64, 60, 17),
    (250001, 1),
    (120011, 3),
    (16000, 19),
    (3001, 33, 5),
]
EMPTY_SHAPES = [(0, 3), (0, 3, 4), (2, 0), (2, 0, 3), (2, 3, 0), (0, 0), (0, 5, 0, 2)]
RANK_SHAPES = [
    (6, 3),
    (4, 3, 5),
    (3, 4, 5, 6),
    (2, 3, 4, 2, 5),
    (2, 3, 2, 3, 2, 2),
    (2, 3, 1, 2, 1, 2, 1, 2, 1, 3),
]

# ------------------------------------------------------------------------------------------ values


def normal(rng: Rng, shape: Shape, dtype: type, mean: float = 1.0, std: float = 1.0) -> np.ndarray:
    """Normal values, rounded to dtype."""
    return (rng.standard_normal(shape) * std + mean).astype(dtype)


def outlier_first(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    """The first value of every channel is 1e6 std away."""
    x = normal(rng, shape, dtype)
    x[(0, slice(None), *[0] * (len(shape) - 2))] = 1e6
    return x


def sorted_along_channels(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    """Every channel ascends in memory order: the running mean drifts through the whole call."""
    n, c = shape[0], shape[1]
    x = normal(rng, (c, n * math.prod(shape[2:])), dtype)
    x.sort(axis=1)
    return np.ascontiguousarray(np.moveaxis(x.reshape(c, n, *shape[2:]), 0, 1))


def _alternating(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    signs = np.where(np.arange(math.prod(shape)) % 2, -100.0, 100.0)
    return signs.reshape(shape).astype(dtype)


def _subnormal(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    step = float(np.finfo(dtype).smallest_subnormal)
    return (rng.integers(-1000, 1000, shape) * step).astype(dtype)


def _huge(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    # Squares of float32 values fit a double; squares of float64 values stop at 1e154.
    return normal(rng, shape, dtype, 0.0, 1e37 if dtype == np.float32 else 1e150)


def _tiny(rng: Rng, shape: Shape, dtype: type) -> np.ndarray:
    # 1 / std has to be a number of this type too.
    return normal(rng, shape, dtype, 0.0, 1e-36 if dtype == np.float32 else 1e-150)


Values = Callable[[Rng, Shape, type], np.ndarray]

VALUES: dict[str, Values] = {
    "normal": normal,
    "shifted": lambda rng, shape, dtype: normal(rng, shape, dtype, -1e6, 1.0),
    "outlier_first": outlier_first,
    "sorted": sorted_along_channels,
    "alternating": _alternating,
    "subnormal": _subnormal,
    "huge": _huge,
    "tiny": _tiny,
    "tiny_spread": lambda rng, shape, dtype: normal(rng, shape, dtype, 1.0, 1e-6),
}

# Values that no binary float holds exactly, powers of ten, the ends of the range; a constant
# channel has no variance.
CONSTANTS: dict[type, list[float]] = {
    np.float32: [0.0, -0.0, 0.1, -1 / 3, 100.0, 16777217.0, 1e10, 3e38, -1e-38, 1e-45, -5e-41],
    np.float64: [0.0, -0.0, 0.1, -1 / 3, 1e10, 1e16 / 3, -1e150, 1.7e308, 1e-300, 5e-324, -3e-310],
}


def parameters(
    rng: Rng, channels: int, dtype: type | None = np.float64
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weight and bias of both signs and of size about 1; (None, None) without a dtype."""
    if dtype is None:
        return None, None
    weight = rng.choice([-1.0, 1.0], channels) * rng.uniform(0.5, 2.0, channels)
    return weight.astype(dtype), rng.standard_normal(channels).astype(dtype)


# ----------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """A way to hold a plain (N, C, spatial...) array in memory.

    `build` gives the array that the call sees; `axis` is its channel axis, `plain` the way back.
    `same_order` tells that a channel's values lie in memory in the plain order, or are copied into
    it: then results have the same bits.
    """

    name: str
    build: Callable[[np.ndarray], np.ndarray]
    channel_axis: Callable[[int], int] = lambda ndim: 1
    same_order: bool = True
    writable: bool = True

    def __str__(self) -> str:
        return self.name

    def axis(self, ndim: int) -> int:
        return self.channel_axis(ndim)

    def plain(self, array: np.ndarray) -> np.ndarray:
        """The plain view of an array in this layout."""
        return np.moveaxis(array, self.channel_axis(array.ndim), 1)


def _channels_last_memory(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(x: np.ndarray) -> np.ndarray:
    """The same values one byte off alignment."""
    buffer = np.empty(x.nbytes + 1, dtype=np.uint8)
    out = buffer[1 : 1 + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


def offset_by(x: np.ndarray, elements: int) -> np.ndarray:
    """The same values, contiguous, starting `elements` items after a 64-byte boundary."""
    buffer = np.empty(x.nbytes + 64 + elements * x.itemsize, dtype=np.uint8)
    start = -buffer.ctypes.data % 64 + elements * x.itemsize
    out = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


def _reversed(x: np.ndarray) -> np.ndarray:
    every = (slice(None, None, -1),) * x.ndim
    return x[every].copy()[every]


def _every_other(x: np.ndarray) -> np.ndarray:
    buffer = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    out = buffer[..., ::2]
    out[...] = x
    return out


def _window(x: np.ndarray) -> np.ndarray:
    """A window into a buffer that is larger along every axis."""
    around = 1 if x.dtype.kind in "biu" else np.nan
    buffer = np.full([n + 2 for n in x.shape], around, dtype=x.dtype)
    out = buffer[tuple(slice(1, n + 1) for n in x.shape)]
    out[...] = x
    return out


def _spatial_swapped(x: np.ndarray) -> np.ndarray:
    """The last two axes stored the other way round; rank 3: the batch and the last axis."""
    a, b = (-1, -2) if x.ndim > 3 else (-1, 0)
    return np.swapaxes(np.swapaxes(x, a, b).copy(), a, b)


LAYOUTS = [
    Layout("contiguous", np.array),
    Layout("channels_last_view", _channels_last_memory, same_order=False),
    Layout(
        "channels_last",
        lambda x: np.moveaxis(x, 1, -1).copy(),
        lambda ndim: -1,
        same_order=False,
    ),
    Layout(
        "channels_first",
        lambda x: np.moveaxis(x, 1, 0).copy(),
        lambda ndim: 0,
        same_order=False,
    ),
    Layout("fortran", lambda x: x.copy(order="F"), same_order=False),
    Layout("spatial_swapped", _spatial_swapped, same_order=False),
    Layout("negative_axis", np.array, lambda ndim: 1 - ndim),
    Layout("read_only", _read_only, writable=False),
    Layout("unaligned", unaligned),
    Layout("big_endian", lambda x: x.astype(x.dtype.newbyteorder(">"))),
    Layout("reversed", _reversed),
    Layout("every_other", _every_other),
    Layout("window", _window),
]


def stored_in_order(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The C-contiguous transpose of a dense array, and the axes that give it."""
    order = tuple(sorted(range(x.ndim), key=lambda a: (-abs(x.strides[a]), a)))
    return x.transpose(order), order


def memory_order(x: np.ndarray) -> tuple[int, ...]:
    """Axes longer than one, outermost first: equal for arrays of the same memory order."""
    return tuple(a for a in stored_in_order(x)[1] if x.shape[a] > 1)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Same shape, type and bits of every value, NaN and the sign of zero included."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.newbyteorder("=") != b.dtype.newbyteorder("="):
        return False
    native = a.dtype.newbyteorder("=")
    return a.astype(native, copy=False).tobytes() == b.astype(native, copy=False).tobytes()


def one_nan(array: np.ndarray) -> np.ndarray:
    """A copy in which every NaN has the same bits."""
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return array


def differing_bits(a: np.ndarray, b: np.ndarray) -> int:
    """How many bits of two arrays of one shape and dtype differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"cannot compare {a.shape} {a.dtype} with {b.shape} {b.dtype}")
    xor = np.frombuffer(a.tobytes(), np.uint8) ^ np.frombuffer(b.tobytes(), np.uint8)
    return int(np.bitwise_count(xor).sum())
