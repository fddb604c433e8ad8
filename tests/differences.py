"""Central differences: what gradients are compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEP = 1e-6


def central_difference(
    loss: Callable[[], float], value: np.ndarray, index: tuple[int, ...]
) -> float:
    """Slope of loss() as value[index] moves."""
    before = value[index]
    value[index] = before + STEP
    above = loss()
    value[index] = before - STEP
    below = loss()
    value[index] = before
    return (above - below) / (2 * STEP)
