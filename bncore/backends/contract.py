"""The interface of every backend: seven functions over canonical arrays.

A backend is a module with these names.  It checks no arguments, because `bncore.arguments.problem`
has checked them before.

x, dy, y, dx are C-contiguous, aligned, native-endian arrays of shape (outer, channels, inner), not
empty, all of one dtype: float64, float32, float16, or uint16, which stands for the bits of
bfloat16.  mean, var, m2, sum_dy, sum_dy_xhat are C-contiguous float64 arrays of shape (channels,);
so are weight and bias, which may also be None.  eps >= 0, n_threads >= 1.  Outputs come first and
are written in place.  y may be the same memory as x or a residual, and dx the same as x, dy or a
residual.

Elementwise arithmetic is float64 for float64 data and float32 for all others.  What is stored in 16
bits is rounded from float32, to nearest, ties to even; subnormal numbers are kept, and NaN stays
NaN.

All backends give the same bits, for any number of threads; `docs/numerics.md` states the order of
operations.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# (outer, channels, inner), float64, float32, float16 or uint16
Data: TypeAlias = npt.NDArray[Any]
# (channels,), float64
Stat: TypeAlias = npt.NDArray[np.float64]


class Fusion(Protocol):
    """The operations fused with batch norm: y = activation(z), z = bn(x) + residual.

    z <= 0 is the negative side: there relu gives 0, and leaky relu gives slope * z with the slope
    rounded to the type of the arithmetic.  NaN counts as the positive side.  Backward computes z
    again by the same operations.  In every formula it replaces dy by g, which is 0 or slope * dy on
    the negative side and dy on the positive side, rounded to x's dtype.
    """

    @property
    def activation(self) -> str | None:
        """Return "relu", "leaky_relu" or None."""

    @property
    def slope(self) -> float:
        """Return the slope of "leaky_relu", which is finite in the type of the arithmetic."""

    @property
    def residual(self) -> Data | None:
        """Return the residual, an array like x, or None for 0."""

    @property
    def dresidual(self) -> Data | None:
        """Return the output for g, or None; it may be dy or residual, but not overlap x or dx."""

    @property
    def bias(self) -> Stat | None:
        """Return the bias of the forward call, which backward needs, or None for 0."""


class Weights(Protocol):
    """How much each value counts: weights w >= 0, where a mask is 0 and 1.

    A value with w = 0 takes no part in the statistics, whatever it is.  With W = sum of w, mean =
    sum of w * x / W and m2 = sum of w * (x - mean)**2; where W = 0, mean is NaN and m2 is 0.
    Backward *skips* a value, and gives dx = 0 for it, if w = 0 and either `fill` is given or g = 0.
    `normalize` and `infer_backward` take weights for `fill` and what is skipped.
    """

    @property
    def values(self) -> npt.NDArray[Any] | None:
        """Return the weights, C-contiguous and aligned, or None if all are 1.

        uint8 of 0 and 1, or float64, finite and >= 0; shape (outer, 1, inner), shared by all
        channels, or (outer, channels, inner).
        """

    @property
    def omit_nan(self) -> bool:
        """Tell whether a value of x that is NaN has the weight 0."""

    @property
    def fill(self) -> float | None:
        """Return what y is where w = 0, and dresidual is 0; or None for the formula's value."""

    @property
    def count(self) -> Stat:
        """Return W: an output of `moments` and `train`, an input of `train_backward`."""


class Backend(Protocol):
    """The functions of a backend module; without weights all w are 1, and W is outer * inner."""

    @property
    def name(self) -> str:
        """Return "native", "numba" or "numpy"."""

    def moments(
        self,
        mean: Stat,
        m2: Stat,
        x: Data,
        n_threads: int,
        float64_sums: bool = False,
        weights: Weights | None = None,
        /,
    ) -> None:
        """Compute the mean and the sum of squared deviations of every channel.

        float64_sums adds up all terms in float64, where data of 16 bits would otherwise be added
        up in short chains of float32.  float32 data then have the moments of the same values in
        float64, to which the Numba and the NumPy backend copy them.
        """

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
        weights: Weights | None = None,
        /,
    ) -> None:
        """Compute y = (x - mean) * weight / sqrt(var + eps) + bias, and the fused operations."""

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
        weights: Weights | None = None,
        /,
    ) -> None:
        """Give the same bits as `moments`, then `normalize` with var = m2 / W."""

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
        weights: Weights | None = None,
        /,
    ) -> None:
        """Sum dy and dy * xhat over every channel, with xhat = (x - mean) / sqrt(var + eps)."""

    def grad_input(
        self,
        dx: Data,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        count: Stat,
        weight: Stat | None,
        eps: float,
        n_threads: int,
        weights: Weights | None = None,
        /,
    ) -> None:
        """Compute dx = weight * invstd * (dy - w * (sum_dy + xhat * sum_dy_xhat) / count)."""

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
        weights: Weights | None = None,
        /,
    ) -> None:
        """Give the same bits as `grad_sums`, then `grad_input` with count = W."""

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
        weights: Weights | None = None,
        /,
    ) -> None:
        """Compute `grad_sums` and dx = dy * weight / sqrt(var + eps)."""


class FastPath(Protocol):
    """The fast functions that take a caller's own arguments; a backend has all of them or none.

    A public function calls its fast function first.  If every argument is already canonical, the
    fast function computes the result of the public function.  An argument is canonical if it is an
    exact, aligned, native-endian ndarray of float32, float64, float16 or bfloat16 (with its own
    dtype) in a memory order that needs no copy, an exact int or float, or None where None is
    allowed.  If an argument is not canonical, the fast function returns None before it writes
    anything.  `bncore.arguments` then checks the same arguments, and converts them or raises.  So
    every rule about arguments stands in one place.

    `moments` are passed as their three fields.  The returned `count`, `mean` and `m2`, or `sum_dy`
    and `sum_dy_xhat`, are new, read-only arrays.

    `in_float32` and `store_float32` convert canonical arrays, much faster than NumPy does it.
    """

    def in_float32(self, values: Data, /) -> Data:
        """Return values of 16 bits as a new array of float32."""

    def store_float32(self, to: Data, values: Data, /) -> None:
        """Round float32 to `to`, which has 16 bits and the same size."""

    def fast_train(
        self,
        x: object,
        weight: object,
        bias: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        activation: object,
        slope: object,
        residual: object,
        /,
    ) -> tuple[Data, Stat, Stat, Stat] | None:
        """Compute `batch_norm_train`; return y, count, mean and m2."""

    def fast_train_backward(
        self,
        dy: object,
        x: object,
        count: Stat,
        mean: Stat,
        m2: Stat,
        weight: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        bias: object,
        activation: object,
        slope: object,
        residual: object,
        dresidual: object,
        /,
    ) -> tuple[Data, Data, Data] | None:
        """Compute `batch_norm_train_backward`; return dx, dweight and dbias."""

    def fast_infer(
        self,
        x: object,
        mean: object,
        var: object,
        weight: object,
        bias: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        activation: object,
        slope: object,
        residual: object,
        /,
    ) -> Data | None:
        """Compute `batch_norm_infer`."""

    def fast_infer_backward(
        self,
        dy: object,
        x: object,
        mean: object,
        var: object,
        weight: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        bias: object,
        activation: object,
        slope: object,
        residual: object,
        dresidual: object,
        /,
    ) -> tuple[Data, Data, Data] | None:
        """Compute `batch_norm_infer_backward`; return dx, dweight and dbias."""

    def fast_moments(
        self, x: object, axis: object, n_threads: int, float64_sums: bool, /
    ) -> tuple[Stat, Stat, Stat] | None:
        """Compute `moments`; return count, mean and m2."""

    def fast_normalize(
        self,
        x: object,
        count: Stat,
        mean: Stat,
        m2: Stat,
        weight: object,
        bias: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        /,
    ) -> Data | None:
        """Compute `normalize`."""

    def fast_grad_sums(
        self,
        dy: object,
        x: object,
        count: Stat,
        mean: Stat,
        m2: Stat,
        axis: object,
        eps: object,
        n_threads: int,
        /,
    ) -> tuple[Stat, Stat] | None:
        """Compute `grad_sums`; return sum_dy and sum_dy_xhat."""

    def fast_grad_input(
        self,
        dy: object,
        x: object,
        count: Stat,
        mean: Stat,
        m2: Stat,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        weight: object,
        axis: object,
        eps: object,
        out: object,
        n_threads: int,
        /,
    ) -> Data | None:
        """Compute `grad_input`."""

    def fast_mean_var(
        self,
        x: object,
        axis: object,
        correction: object,
        keepdims: object,
        n_threads: int,
        float64_sums: bool,
        /,
    ) -> tuple[Any, Any] | None:
        """Compute `mean_var`; return mean and variance, in float64 with `float64_sums`."""

    def fast_running(
        self,
        running_mean: object,
        running_var: object,
        count: Stat,
        mean: Stat,
        m2: Stat,
        momentum: object,
        correction: object,
        /,
    ) -> bool | None:
        """Compute `update_running_stats`; return True."""
