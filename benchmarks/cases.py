"""What is measured: shapes, layouts and operations, and the `Problem` that holds the arrays."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

EPS = 1e-5
LAYOUTS = ("channels first", "channels last")

SHAPES: dict[str, list[tuple[int, ...]]] = {
    network: [tuple(entry["shape"]) for entry in entries]
    for network, entries in json.loads(
        (Path(__file__).parent / "shapes.json").read_text(encoding="utf-8")
    ).items()
    if network != "note"
}
# A minute's worth: the middle of a network and its end, a dense layer, the smallest call.
QUICK = [(32, 256, 14, 14), (32, 512, 7, 7), (4096, 64), (1, 16, 4, 4)]

# Arrays of x's size that an operation must read or write once, whatever the algorithm.
FORWARD = {"train": 2, "infer": 2}
BACKWARD = {"train_backward": 3, "infer_backward": 3, "grad_sums": 2, "grad_input": 3}
MOMENTS = {"moments": 1, "mean_var": 1}
ARRAYS_MOVED = FORWARD | BACKWARD | MOMENTS


def layouts_of(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Both layouts; in two dimensions they are one."""
    return LAYOUTS if len(shape) > 2 else LAYOUTS[:1]


@dataclass
class Problem:
    """float32 arrays of one shape (N, C, spatial...) in one layout, outputs included.

    Every array is C-contiguous; channels last means that the channel axis is the last one.
    """

    shape: tuple[int, ...]
    layout: str = LAYOUTS[0]
    threads: int = 1
    mean: float = 1.0
    std: float = 1.0
    x: np.ndarray = field(init=False)
    dy: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        last = self.layout == LAYOUTS[1]
        n, channels, *spatial = self.shape
        shape = (n, *spatial, channels) if last else self.shape
        self.axis = -1 if last else 1
        self.axes = tuple(a for a in range(len(shape)) if a != self.axis % len(shape))
        self.x = rng.standard_normal(shape, dtype=np.float32)
        if (self.mean, self.std) != (0.0, 1.0):
            self.x = (self.x.astype(np.float64) * self.std + self.mean).astype(np.float32)
        self.dy = rng.standard_normal(shape, dtype=np.float32)
        self.out = np.zeros_like(self.x)
        self.weight = rng.uniform(0.5, 2.0, channels).astype(np.float32)
        self.bias = rng.standard_normal(channels).astype(np.float32)
        # Inference takes statistics as a model stores them: float32, near the batch's.
        self.running_mean = np.full(channels, self.mean, np.float32)
        self.running_var = np.full(channels, self.std**2, np.float32)

    def per_channel(self, values: np.ndarray) -> np.ndarray:
        """Values per channel in a shape that broadcasts against x."""
        return values.reshape([1 if a in self.axes else -1 for a in range(self.x.ndim)])

    @property
    def picks(self) -> np.ndarray:
        """The channels whose results are checked: all of a small array, a few of a large one."""
        channels = self.shape[1]
        if math.prod(self.shape) <= 1_000_000:
            return np.arange(channels)
        return np.unique([0, 1, channels // 2, channels - 1])

    def take(self, array: np.ndarray) -> np.ndarray:
        """Return the picked channels of an array of x's shape."""
        return np.take(array, self.picks, axis=self.axis)

    def minimal_bytes(self, operation: str) -> int:
        """Bytes that must move between memory and processor: each input and output once."""
        return ARRAYS_MOVED[operation] * self.x.nbytes
