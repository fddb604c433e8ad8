"""What every backend gives: seven functions over canonical arrays.

A backend is a module with these names.  Nothing is validated in it: `bncore.arguments.problem` did.

x, dy, y, dx are C-contiguous, aligned, native-endian arrays of shape (outer, channels, inner), not
empty, all of one dtype, float32 or float64.  mean, var, m2, sum_dy, sum_dy_xhat are C-contiguous
float64 arrays of shape (channels,); so are weight and bias, or None.  eps >= 0, n_threads >= 1.
Outputs come first and are written in place; y may be the same memory as x or a residual, dx the
same as x, dy or a residual.

All backends give the same bits, for any number of threads; `docs/numerics.md` states the order of
operations.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# (outer, channels, inner), float32 or float64
Data: TypeAlias = npt.NDArray[np.floating[Any]]
# (channels,), float64
Stat: TypeAlias = npt.NDArray[np.float64]


class Fusion(Protocol):
    """What is fused with batch norm: y = activation(z), z = bn(x) + residual.

    z <= 0 is the negative side: relu gives 0 there, leaky relu slope * z, the slope rounded to x's
    dtype.  A NaN is on the other side.  Backward computes z again, by the same operations; in
    every formula g takes the place of dy: 0 or slope * dy on the negative side, dy on the other.
    """

    @property
    def activation(self) -> str | None:
        """Return "relu", "leaky_relu" or None."""

    @property
    def slope(self) -> float:
        """Return the slope of "leaky_relu"; finite in x's dtype."""

    @property
    def residual(self) -> Data | None:
        """Return an array as x; None for 0."""

    @property
    def dresidual(self) -> Data | None:
        """Return where g goes in backward, or None; may be dy or residual, apart from x and dx."""

    @property
    def bias(self) -> Stat | None:
        """Return the bias of forward, for backward; None for 0."""


class Backend(Protocol):
    """The functions of a backend module."""

    @property
    def name(self) -> str:
        """Return "native", "numba" or "numpy"."""

    def moments(self, mean: Stat, m2: Stat, x: Data, n_threads: int, /) -> None:
        """Per channel, the mean and the sum of squared deviations from it."""

    def normalize(
        self,
        y: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        bias: Stat | None,
        eps: float,
        n_threads: int,
        fusion: Fusion | None = None,
        /,
    ) -> None:
        """Compute y = (x - mean) * weight / sqrt(var + eps) + bias, and what is fused with it."""

    def train(
        self,
        y: Data,
        mean: Stat,
        m2: Stat,
        x: Data,
        weight: Stat | None,
        bias: Stat | None,
        eps: float,
        n_threads: int,
        fusion: Fusion | None = None,
        /,
    ) -> None:
        """Do `moments`, then `normalize` with var = m2 / (outer * inner), to the bit."""

    def grad_sums(
        self,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        eps: float,
        n_threads: int,
        /,
    ) -> None:
        """Per channel, the sums of dy and of dy * xhat, xhat = (x - mean) / sqrt(var + eps)."""

    def grad_input(
        self,
        dx: Data,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        count: float,
        weight: Stat | None,
        eps: float,
        n_threads: int,
        /,
    ) -> None:
        """Compute dx = weight * invstd * (dy - (sum_dy + xhat * sum_dy_xhat) / count)."""

    def train_backward(
        self,
        dx: Data,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        eps: float,
        n_threads: int,
        fusion: Fusion | None = None,
        /,
    ) -> None:
        """Do `grad_sums`, then `grad_input` with count = outer * inner, to the bit."""

    def infer_backward(
        self,
        dx: Data,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        eps: float,
        n_threads: int,
        fusion: Fusion | None = None,
        /,
    ) -> None:
        """Do `grad_sums`, and compute dx = dy * weight / sqrt(var + eps)."""
