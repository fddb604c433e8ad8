"""The cases to measure: shapes, layouts and operations, and the `Problem` with their arrays."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncore.programs.demo import formula

Array = NDArray[Any]
Shape = tuple[int, ...]

EPS = 1e-5
LAYOUTS = ("channels first", "channels last")
# Results go into preallocated memory, or into memory that the peer allocates: bncore takes it from
# NumPy or from its buffer pool.  If nothing large is written, there is only one way.
OUTPUTS = ("given", "returned", "pooled")
DTYPES = ("float32", "float64", "bfloat16", "float16")
ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
# The arrays are in the caches from the call before as far as they fit, or a large array was written
# between two calls.
CACHES = ("warm", "cold")

# Arrays of x's size that an operation must read or write once, whatever the algorithm.
# add_relu is the end of a residual block in training, relu(bn(x) + residual); its backward reads
# dy, x and the residual (or y), and writes the gradients by x and by the residual.
FORWARD = {"train": 2, "infer": 2, "add_relu": 3}
BACKWARD = {
    "train_backward": 3, "infer_backward": 3, "grad_sums": 2, "grad_input": 3,
    "add_relu_backward": 5,
}  # fmt: skip
MOMENTS = {"moments": 1, "mean_var": 1}
ARRAYS_MOVED = FORWARD | BACKWARD | MOMENTS
OPERATIONS = tuple(ARRAYS_MOVED)
MAIN = ("train", "infer", "train_backward")
FUSED = {"add_relu": "train", "add_relu_backward": "train_backward"}  # with the unfused operation
WRITES_NOTHING_LARGE = ("grad_sums", "moments", "mean_var")
POOLED = ("train", *FUSED)
UNDECIDED = 2.0**-6  # if a value is this near 0, rounding may change its sign


def sized(exponent: int) -> Shape:
    """Make a shape of 2**exponent values: planes up to 32 x 32, then channels, then images."""
    side = 2 ** min(5, (exponent - 4) // 2)
    left = 2**exponent // side**2
    channels = min(256, left)
    return (left // channels, channels, side, side)


def _shapes() -> dict[str, list[Shape]]:
    entries = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
    shapes = {
        name: [tuple(entry["shape"]) for entry in listed]
        for name, listed in entries.items()
        if name != "note"
    }
    # 1 KB to 256 MB of float32, and 400 MB.
    shapes["sizes"] = [sized(exponent) for exponent in range(8, 27)] + [(400, 256, 32, 32)]
    # The middle and the end of a network, a shape too large for caches, a dense layer, a tiny call.
    shapes["quick"] = [
        (32, 512, 28, 28), (32, 256, 14, 14), (32, 512, 7, 7), (4096, 64), (1, 16, 4, 4),
    ]  # fmt: skip
    return shapes


SHAPES = _shapes()
# For these shapes only the throughput against the size matters.
SWEPT = set(SHAPES["sizes"]) - {s for name in SHAPES if name != "sizes" for s in SHAPES[name]}


def layouts_of(shape: Shape) -> tuple[str, ...]:
    """Return both layouts, or one in two dimensions, where they are the same."""
    return LAYOUTS if len(shape) > 2 else LAYOUTS[:1]


def outputs_of(operation: str) -> tuple[str, ...]:
    """Return all ways to return a large array, or one way if the operation writes none."""
    if operation in WRITES_NOTHING_LARGE:
        return OUTPUTS[:1]
    return OUTPUTS if operation in POOLED else OUTPUTS[:2]


def named(shape: Shape) -> str:
    """Write a shape for people."""
    return "×".join(map(str, shape))


@dataclass(frozen=True)
class Case:
    """One case to measure; every peer that supports it is measured."""

    operation: str
    shape: Shape
    layout: str = LAYOUTS[0]
    dtype: str = "float32"
    threads: int = 1
    output: str = OUTPUTS[0]
    caches: str = CACHES[0]

    @property
    def x_bytes(self) -> int:
        """Size of x."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def minimal_bytes(self) -> int:
        """The bytes that must move between memory and processor: each input and output once."""
        return ARRAYS_MOVED[self.operation] * self.x_bytes

    @property
    def place(self) -> tuple[Shape, str, str]:
        """The fields on which the arrays depend."""
        return self.shape, self.layout, self.dtype

    def problem(self) -> Problem:
        """Make the arrays."""
        return Problem(*self.place)


@dataclass
class Problem:
    """Arrays of one shape (N, C, spatial...) in one layout, outputs included.

    Every array is C-contiguous and starts at a cache line; channels last means that the channel
    axis is the last one.
    """

    shape: Shape
    layout: str = LAYOUTS[0]
    dtype: str = "float32"
    mean: float = 1.0
    std: float = 1.0

    def __post_init__(self) -> None:
        n, channels, *spatial = self.shape
        last = self.layout == LAYOUTS[1]
        self.memory_shape = (n, *spatial, channels) if last else self.shape
        self.axis = -1 if last else 1
        ndim = len(self.shape)
        self.axes = tuple(a for a in range(ndim) if a != self.axis % ndim)
        rng = np.random.default_rng(0)
        # Beside 16-bit data parameters are float32, as in training with mixed precision.
        wide = self.dtype if ITEM_BYTES[self.dtype] > 2 else "float32"
        self.weight = rng.uniform(0.5, 2.0, channels).astype(wide)
        self.bias = rng.standard_normal(channels).astype(wide)
        # Inference takes statistics as a model stores them, close to those of the batch.
        self.running_mean: Array = np.full(channels, self.mean, wide)
        self.running_var: Array = np.full(channels, self.std**2, wide)

    @cached_property
    def x(self) -> Array:
        """The input."""
        return _normal(self.memory_shape, self.dtype, 0, self.std, self.mean)

    @cached_property
    def dy(self) -> Array:
        """The gradient of y."""
        return _normal(self.memory_shape, self.dtype, 1_000_003)

    @cached_property
    def residual(self) -> Array:
        """The residual, which is added to bn(x).

        In the channels that are checked no sum is so near 0 that rounding could change its sign.
        """
        residual = _normal(self.memory_shape, self.dtype, 2_000_003)
        x, r = (self.take(a).astype(np.float64) for a in (self.x, residual))
        w, b = (
            self.per_channel(a[self.picks].astype(np.float64)) for a in (self.weight, self.bias)
        )
        z = formula.train(x, w, b, self.axes, EPS) + r
        r += np.where(np.abs(z) < UNDECIDED, np.copysign(2.0 * UNDECIDED, z), 0.0)
        np.moveaxis(residual, self.axis, 0)[self.picks] = np.moveaxis(r, self.axis, 0)
        return residual

    @cached_property
    def out(self) -> Array:
        """Memory for y or dx, already written once."""
        return self.touched()

    @cached_property
    def dresidual(self) -> Array:
        """Memory for the gradient of the residual, already written once."""
        return self.touched()

    def touched(self) -> Array:
        """Make an array of zeros of x's shape."""
        array = aligned(self.memory_shape, self.dtype)
        array[...] = 0
        return array

    def with_dy(self, dy: Array) -> Problem:
        """Return a problem with the same arrays and another gradient."""
        self.x, self.out  # noqa: B018 - made here, so that both have them
        other = copy(self)
        other.dy = dy
        return other

    def clear(self, case: Case) -> None:
        """Fill the outputs with zeros, so that an old result is not taken for a new one."""
        if case.output == "given":
            self.out[...] = 0
            if case.operation == "add_relu_backward":
                self.dresidual[...] = 0

    def per_channel(self, values: Array) -> Array:
        """Return values per channel in a shape that broadcasts against x."""
        return values.reshape([1 if a in self.axes else -1 for a in range(len(self.shape))])

    @property
    def reduced(self) -> tuple[Array, tuple[int, ...] | None]:
        """Return x without axes of size 1, and the axes to reduce; None means all of them."""
        kept = [a for a, size in enumerate(self.memory_shape) if size > 1]
        axes = tuple(i for i, a in enumerate(kept) if a in self.axes)
        return self.x.squeeze(), None if len(axes) == len(kept) else axes

    @property
    def picks(self) -> NDArray[np.intp]:
        """The channels whose results are checked: all of a small array, or a few of a large one."""
        channels = self.shape[1]
        if math.prod(self.shape) <= 1_000_000:
            return np.arange(channels)
        most = max(1, min(4, 1_000_000 * channels // math.prod(self.shape)))
        return np.unique(np.linspace(0, channels - 1, most).astype(np.intp))

    def take(self, array: Array) -> Array:
        """Return the picked channels of an array of x's shape."""
        return np.take(array, self.picks, axis=self.axis)


def aligned(shape: Shape, dtype: str) -> Array:
    """Allocate an array that starts at a cache line."""
    size = math.prod(shape) * ITEM_BYTES[dtype]
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(numpy_dtype(dtype)).reshape(shape)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype by its name; NumPy's bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


@cache
def _pool(dtype: str, std: float, mean: float) -> Array:
    """Make a prime number of normal values, so that planes and rows start at different values."""
    wide = "float64" if dtype == "float64" else "float32"
    pool = np.random.default_rng(0).standard_normal(4_194_319).astype(wide)
    pool *= std
    pool += mean
    return pool.astype(numpy_dtype(dtype))


def _normal(shape: Shape, dtype: str, first: int, std: float = 1.0, mean: float = 0.0) -> Array:
    """Fill an array with the normal values of the pool, repeatedly, starting at `first`."""
    array = aligned(shape, dtype)
    flat, pool = array.reshape(-1), _pool(dtype, std, mean)
    done = 0
    while done < flat.size:
        start = (first + done) % pool.size
        piece = pool[start : start + flat.size - done]
        flat[done : done + piece.size] = piece
        done += piece.size
    return array
