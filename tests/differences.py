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


STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def stencil_difference(loss, arguments, position, index, step):
    total = 0.0
    for k, weight in STENCIL:
        for sign in (1, -1):
            moved = [a.copy() for a in arguments]
            moved[position][index] += sign * k * step
            total += sign * weight * loss(*moved)
    return total / step
