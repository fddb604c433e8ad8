"""The functions of every backend for arrays of integers; `contract.py` has those for floats.

x is a C-contiguous, aligned, native-endian array of shape (outer, channels, inner), not empty, of
signed or unsigned integers of 8, 16 or 32 bits.  (Here, uint16 are numbers.)  All other arguments
are as there.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.backends.contract import Fusion, Stat

Integers: TypeAlias = npt.NDArray[Any]


class IntegerBackend(Protocol):
    """These functions of a backend module."""

    def integer_moments(self, mean: Stat, m2: Stat, x: Integers, n_threads: int, /) -> None:
        """Compute the exact mean and sum of squared deviations, each rounded once."""

    def integer_normalize(
        self,
        y: npt.NDArray[np.float32],
        x: Integers,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        bias: Stat | None,
        eps: float,
        n_threads: int,
        fusion: Fusion | None = None,
        /,
    ) -> None:
        """Compute `normalize` for x as float32; a residual is float32, too.

        Integers of 8 and 16 bits are numbers of float32.  Those of 32 bits become x - c in float64,
        with c = float32(mean); this is rounded to float32 and normalized with the mean mean - c.
        y has no memory of x.
        """
