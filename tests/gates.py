"""The data of the accuracy gates: 1e6 values per channel, mean/std of 1, 1e2, 1e4 and 1e6.

Built once per session, with exact moments; float32 inputs of four channels, 16 MB each.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

import arrays
import oracle
from arrays import Layout

RATIOS = (1.0, 1e2, 1e4, 1e6)  # mean / std of the channels, with std 1
EPS = 1e-5
SHAPE = (10, len(RATIOS), 250, 400)
GATE_ORDERS = ("random", "outlier_first", "sorted")
GATE_LAYOUTS = [
    layout for layout in arrays.LAYOUTS if layout.name in ("contiguous", "channels_last")
]


@dataclass(eq=False)
class GateCase:
    """Plain float32 data, its exact moments, and the same data in other layouts."""

    x: np.ndarray
    exact: list[oracle.ExactMoments]
    built: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def xhat(self) -> np.ndarray:
        return oracle.centered(self.x, self.exact, EPS).xhat

    def in_layout(self, layout: Layout) -> np.ndarray:
        if layout.name not in self.built:
            self.built[layout.name] = layout.build(self.x)
        return self.built[layout.name]


@cache
def gate_case(order: str) -> GateCase:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SHAPE)
    x += np.array(RATIOS).reshape(1, -1, 1, 1)
    x = x.astype(np.float32)
    if order == "outlier_first":
        x[0, :, 0, 0] = 1e6  # 1e6 std away from zero; the last channel has its own mean there
        x[0, -1, 0, 0] = 2e6
    elif order == "sorted":
        by_channel = np.sort(np.moveaxis(x, 1, 0).reshape(len(RATIOS), -1), axis=1)
        x = np.moveaxis(by_channel.reshape(len(RATIOS), 10, 250, 400), 0, 1).copy()
    return GateCase(x, oracle.channel_moments(x))


def digest(array: np.ndarray) -> bytes:
    """Backends that give the same bits share one measurement."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
