"""Layers that have been used before, and the check that nothing in their state has changed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from bncore import BatchNorm

SHAPE = (4, 3, 5, 2)
C = SHAPE[1]
ACTIVATIONS = [None, "relu", "leaky_relu"]


def data(rng, dtype=np.float64) -> tuple[np.ndarray, ...]:
    """x, dy, residual."""
    return tuple(rng.normal(0.5, 2.0, SHAPE).astype(dtype) for _ in range(3))


def a_layer(rng, **settings: Any) -> BatchNorm:
    """One whose state is not what a new layer has."""
    layer = BatchNorm(C, dtype=settings.pop("dtype", np.float64), **settings)
    for array in layer.parameters():
        array[:] = rng.uniform(0.5, 2.0, C)
    if layer.track_running_stats:
        layer.running_mean = rng.normal(size=C)
        layer.running_var = rng.uniform(0.5, 2.0, C)
        layer.num_batches_tracked = 7
    return layer


def snapshot(layer: BatchNorm) -> dict[str, Any]:
    return copy.deepcopy({k: v for k, v in vars(layer).items() if k != "_saved"})


def assert_unchanged(layer: BatchNorm, before: dict[str, Any]) -> None:
    now = vars(layer)
    assert now.keys() - {"_saved"} == before.keys()
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(now[name], value, err_msg=name)
        else:
            assert now[name] == value, name
