"""The exact sums of integers in plain loops.

`bncore.backends.integers` says which sums these are.  They are exact in any order, so a task is any
part of the values: those of some images, and of a part of each run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.backends.partition import Data


def integer_sums(
    first: int,
    last: int,
    parts: npt.NDArray[np.int64],
    x: Data,
    images: int,
    values: int,
    per_run: int,
    narrow: bool,
) -> None:
    """Fill ``parts[task, :, channel]``; a task has so many images, and so many values of a run."""
    for task in range(first, last):
        start, left = task // per_run * images, task % per_run * values
        for o in range(start, min(start + images, x.shape[0])):
            for c in range(x.shape[1]):
                add_run(parts[task, :, c], x[o, c, left : left + values], narrow)


def add_run(sums: npt.NDArray[np.int64], run: Data, narrow: bool) -> None:
    """Add the values of one run."""
    x = aa = ab = bb = np.int64(0)
    for i in range(len(run)):
        value: Any = np.int64(run[i])
        x += value
        if narrow:
            bb += value * value
        else:
            a, b = value >> 16, value & 0xFFFF
            aa += a * a
            ab += a * b
            bb += b * b
    sums[0] += x
    sums[1] += aa
    sums[2] += ab
    sums[3] += bb
