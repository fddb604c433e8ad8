"""Moments and gradient sums as rows of numbers for other processes, and a tree that merges them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.statistics.grad_sums import GradSums, trusted_sums
from bncore.statistics.moments import FIELDS, Moments, trusted_moments
from bncore.statistics.values import Stat


def packed(value: Moments | GradSums) -> Stat:
    """Return all that merging needs as a new array, (4, C) of moments and (2, C) of sums."""
    if isinstance(value, GradSums):
        return np.stack((value.sum_dy, value.sum_dy_xhat))
    low = np.broadcast_to(value._low, value.mean.shape)
    return np.stack([*(getattr(value, name) for name in FIELDS), low])


def unpacked(rows: Stat, kind: type[Any]) -> Any:
    """Undo `packed` for a value of class `kind`, without checks; the rows are copied."""
    return (trusted_sums if kind is GradSums else trusted_moments)(*rows.copy())


def merged_pairwise(parts: Stat, kind: type[Any]) -> Stat:
    """Merge packed values, (parts, rows, C), and return the packed result, (rows, C).

    The first one merges with the second, the third with the fourth, and so on; then the results of
    these pairs do the same.  The last one of an odd number goes on to the next level as it is.  All
    pairs of a level merge at once, as more channels.
    """
    while parts.shape[0] > 1:
        pairs = parts.shape[0] // 2
        first, second = (
            unpacked(_in_one_row(parts[side : 2 * pairs : 2]), kind) for side in (0, 1)
        )
        rows = packed(first.merge(second))
        level = rows.reshape(parts.shape[1], pairs, -1).transpose(1, 0, 2)
        parts = np.concatenate((level, parts[2 * pairs :]))
    whole: Stat = parts[0]
    return whole


def _in_one_row(parts: Stat) -> Stat:
    """Return (parts, rows, C) as (rows, parts * C)."""
    return np.ascontiguousarray(parts.transpose(1, 0, 2)).reshape(parts.shape[1], -1)
