"""The operations of the contract, composed of the kernels of `sums.py` and its neighbours.

`Operations` chooses the geometry, makes the arrays that kernels share, and says which kernels run
over how many tasks.  How they run is given: `in_order` calls them as plain Python, and `jit.py`
calls what Numba compiled of them, on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from bncore.backends.contract import Fusion, Weights
from bncore.backends.integers import SUMS, is_narrow, no_sums, normalize_blocks, set_moments
from bncore.backends.numba import elementwise, gradients, sums, weighted
from bncore.backends.numba.integers import integer_sums
from bncore.backends.numba.threads import one_type, useful
from bncore.backends.partition import (
    Data,
    Planes,
    Rows,
    Stat,
    computed_in,
    geometry,
    gradient_fill,
    in_chains,
    unfused_gradient,
)

# run(n_threads, n_tasks, kernel, *arguments) runs a kernel over all its tasks.
Run: TypeAlias = Callable[..., None]
Kernels: TypeAlias = tuple[Callable[..., None], Callable[..., None]]

KINDS = {None: elementwise.PLAIN, "relu": elementwise.RELU, "leaky_relu": elementwise.LEAKY}


def in_order(n_threads: int, n_tasks: int, kernel: Callable[..., None], /, *args: Any) -> None:
    """Run a kernel as the Python function that it is, in which NaN and Inf give no warning."""
    with np.errstate(all="ignore"):
        kernel(0, n_tasks, *args)


def columns(values: Data, geo: Rows) -> Data:
    """Repeat values per channel, on the last axis, to the width of a row."""
    return np.tile(values.repeat(geo.inner, axis=-1), geo.repeat)


def flat(array: Data) -> Data:
    """Give all values of an array in a row; those of float16 as the bits that `storage` reads."""
    values = array.reshape(-1)
    return values.view(np.int16) if values.dtype == np.float16 else values


def counted(
    weights: Weights | None, x: Data, geo: Planes | Rows, width: int = 0
) -> weighted.Counted | None:
    """Give the weights as kernels read them; in rows, for lines of `width` values of x."""
    if weights is None:
        return None
    values = weights.values
    if values is None:
        values = np.ones((x.shape[0], 1, x.shape[2]), np.uint8)
    shared = values.size < x.size
    columns = np.arange(width)
    if shared:
        columns = columns // (geo.channels * geo.inner) * geo.inner + columns % geo.inner
    channels = 1 if shared else geo.channels
    return weighted.Counted(
        one_type(values.reshape(-1)),
        channels,
        width // geo.channels * channels,
        columns,
        bool(weights.omit_nan),
        weights.fill is not None,
        computed_in(x)(0.0 if weights.fill is None else weights.fill),
    )


class Operations:
    """The seven functions of `bncore.backends.contract.Backend`, by kernels that `run` calls."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def moments(
        self,
        mean: Stat,
        m2: Stat,
        x: Data,
        n_threads: int,
        float64_sums: bool = False,
        weights: Weights | None = None,
    ) -> None:
        """Write the mean of every channel, and the sum of squares about it; and its weight."""
        self.group_moments(mean, m2, x, n_threads, 1, float64_sums, weights)

    def group_moments(
        self,
        mean: Stat,
        m2: Stat,
        x: Data,
        n_threads: int,
        wide: int,
        float64_sums: bool = False,
        weights: Weights | None = None,
    ) -> None:
        """Write those of groups of `wide` channels, merged in the order of the channels."""
        if float64_sums and sums.sums_about_0(x):
            x = x.astype(np.float64)  # whose sums are never about 0
        geo, threads = geometry(*x.shape), useful(n_threads, x.size)
        chained = in_chains(x, float64_sums)
        if isinstance(geo, Planes):
            width, inner, strips = geo.channels, 1, geo.channels
            kernels: Kernels = sums.planes_moments, weighted.planes_weighted_moments
            rest: tuple[Any, ...] = geo.inner, geo.segment_len, chained
        else:
            width, inner, strips = geo.width, geo.inner, max(geo.width // sums.STRIP, 1)
            kernels = sums.rows_moments, weighted.rows_weighted_moments
            rest = geo.segment_rows, chained
        parts, tasks = np.empty((geo.n_segments, 4, width)), geo.n_segments * strips
        if weights is None:
            self.run(threads, tasks, kernels[0], parts, flat(x), *rest)
        else:
            given = counted(weights, x, geo, width)
            self.run(threads, tasks, kernels[1], parts, flat(x), given, *rest)
        count = np.empty_like(mean) if weights is None else weights.count
        self.run(1, len(mean), sums.merge_moments, count, mean, m2, parts, inner * wide)

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
    ) -> None:
        """Write sum(dy) and sum(dy * xhat) of every channel."""
        geo, threads = geometry(*x.shape), useful(n_threads, x.size)
        chained = in_chains(x)
        invstd, centres = np.empty_like(mean), np.empty_like(mean)
        self.run(1, len(mean), gradients.inverse_stds, invstd, var, float(eps))
        arrays = flat(dy), flat(x)
        self.run(1, len(mean), gradients.sum_means, centres, mean, var, arrays[1])
        if isinstance(geo, Planes):
            parts, inner = np.empty((geo.n_segments, 2, geo.channels)), 1
            tasks, shape = geo.n_segments * geo.channels, (geo.inner, geo.segment_len)
            given = centres, invstd, counted(weights, x, geo)
            kernel = gradients.planes_grad_sums
            self.run(threads, tasks, kernel, parts, *arrays, *given, *shape, chained)
        else:
            parts, inner = np.empty((geo.n_segments, 2, geo.width)), geo.inner
            tasks = geo.n_segments * max(geo.width // sums.STRIP, 1)
            given = columns(centres, geo), columns(invstd, geo), counted(weights, x, geo, geo.width)
            rest = geo.segment_rows, chained
            self.run(threads, tasks, gradients.rows_grad_sums, parts, *arrays, *given, *rest)
        results, statistics = (sum_dy, sum_dy_xhat), (mean, centres, invstd)
        self.run(
            1, len(mean), gradients.add_grad_sums, *results, parts, *statistics, inner, chained
        )

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
    ) -> None:
        """Write ``y = weight * (x - mean) / sqrt(var + eps) + bias``, and what is fused with it."""
        coefficients = self.coefficients(x, mean, var, weight, bias, eps)
        if fusion is not None:
            self.activate(y, None, x, fusion, coefficients, n_threads, weights)
            return
        kernels = elementwise.planes_normalize, elementwise.rows_normalize
        self.elementwise(kernels, (y, x), coefficients, (), n_threads, weights)

    def coefficients(
        self, x: Data, mean: Stat, var: Stat, weight: Stat | None, bias: Stat | None, eps: float
    ) -> Data:
        """Compute those of `normalize`."""
        coefficients = np.empty((3, len(mean)), computed_in(x))
        weight = np.ones_like(mean) if weight is None else weight
        bias = np.zeros_like(mean) if bias is None else bias
        given = mean, var, weight, bias, float(eps)
        self.run(1, len(mean), elementwise.normalize_coefficients, coefficients, *given)
        return coefficients

    def activate(
        self,
        out: Data,
        dy: Data | None,
        x: Data,
        fusion: Fusion,
        coefficients: Data,
        n_threads: int,
        weights: Weights | None,
    ) -> None:
        """Write the activated sum of y and residual; or, given dy, dy by the sign of that sum."""
        given = 0 if dy is None else elementwise.BACKWARD
        residual = fusion.residual
        if residual is not None:
            given += elementwise.ADDED
        arrays = out, x if dy is None else dy, x, x if residual is None else residual
        slope = computed_in(x)(fusion.slope if fusion.activation == "leaky_relu" else 0.0)
        rest = slope, KINDS[fusion.activation], given
        kernels = elementwise.planes_activate, elementwise.rows_activate
        self.elementwise(kernels, arrays, coefficients, rest, n_threads, weights)

    def masked(
        self,
        dx: Data,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        eps: float,
        fusion: Fusion | None,
        n_threads: int,
        weights: Weights | None,
    ) -> Data:
        """Return the gradient by what is activated, which takes the place of dy."""
        zeros = gradient_fill(weights)

        def activate_dy(out: Data, dy: Data, fusion: Fusion) -> None:
            coefficients = self.coefficients(x, mean, var, weight, fusion.bias, eps)
            self.activate(out, dy, x, fusion, coefficients, n_threads, zeros)

        return unfused_gradient(dx, dy, x, fusion, activate_dy, zeros is not None)

    def elementwise(
        self,
        kernels: Kernels,
        arrays: tuple[Data, ...],
        coefficients: Data,
        rest: tuple[Any, ...],
        n_threads: int,
        weights: Weights | None = None,
    ) -> None:
        """Run the kernel for planes or that for rows over arrays like x."""
        size, x = arrays[0].size, arrays[-1]
        geo, threads = geometry(*arrays[0].shape), useful(n_threads, size)
        if isinstance(geo, Planes):
            given = coefficients, counted(weights, x, geo), *rest, geo.inner
            self.run(threads, size, kernels[0], *map(flat, arrays), *given)
        else:
            wide = np.tile(columns(coefficients, geo), max(sums.STRIP // geo.width, 1))
            tasks = -(-size // wide.shape[1])
            given = wide, counted(weights, x, geo, wide.shape[1]), *rest
            self.run(threads, tasks, kernels[1], *map(flat, arrays), *given)

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
    ) -> None:
        """Write ``dx = weight * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count)``."""
        coefficients = np.empty((4, len(mean)), computed_in(x))
        weight = np.ones_like(mean) if weight is None else weight
        given = mean, var, weight, sum_dy, sum_dy_xhat, count, float(eps)
        self.run(1, len(mean), elementwise.gradient_coefficients, coefficients, *given)
        kernels = elementwise.planes_grad_input, elementwise.rows_grad_input
        self.elementwise(kernels, (dx, dy, x), coefficients, (False,), n_threads, weights)

    def integer_moments(self, mean: Stat, m2: Stat, x: Data, n_threads: int) -> None:
        """Write the exact mean and m2 of every channel, each rounded once."""
        outer, channels, inner = x.shape
        threads = useful(n_threads, x.size)
        wanted = max(threads, outer * inner >> 28)  # so that int64 holds the sums of a task
        images = -(-outer // wanted)
        parts_of_run = -(-wanted // -(-outer // images))
        values = -(-inner // parts_of_run)
        per_run = -(-inner // values)
        parts = np.zeros((-(-outer // images) * per_run, SUMS, channels), np.int64)
        given = images, values, per_run, is_narrow(x)
        self.run(threads, len(parts), integer_sums, parts, x, *given)
        total = no_sums(channels, outer * inner)
        for part in parts:
            total += part
        set_moments(mean, m2, np.full(channels, outer * inner), total)

    def integer_normalize(
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
    ) -> None:
        """Write y of `normalize` for an x of integers."""
        with np.errstate(all="ignore"):
            normalize_blocks(self.normalize, y, x, mean, var, weight, bias, eps, n_threads, fusion)

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
    ) -> None:
        """Normalize x by its own moments, and write these."""
        self.moments(mean, m2, x, n_threads, False, weights)
        count = x.size // len(mean) if weights is None else weights.count
        with np.errstate(all="ignore"):  # the caller may have made underflow an error
            var = m2 / count
        self.normalize(y, x, mean, var, weight, bias, eps, n_threads, fusion, weights)

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
    ) -> None:
        """Write the gradients of `train`."""
        dy = self.masked(dx, dy, x, mean, var, weight, eps, fusion, n_threads, weights)
        self.grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads, weights)
        plain = np.full(len(mean), float(x.size // len(mean)))
        count = plain if weights is None else weights.count
        given = mean, var, sum_dy, sum_dy_xhat, count, weight, eps
        self.grad_input(dx, dy, x, *given, n_threads, weights)

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
    ) -> None:
        """Write the gradients of `normalize` by given statistics, which are constants."""
        dy = self.masked(dx, dy, x, mean, var, weight, eps, fusion, n_threads, weights)
        self.grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads, weights)
        coefficients = np.zeros((4, len(mean)), computed_in(x))
        given = var, np.ones_like(mean) if weight is None else weight, float(eps)
        self.run(1, len(mean), elementwise.scale_coefficients, coefficients[:3], *given)
        if weights is None:
            kernels: Kernels = elementwise.planes_normalize, elementwise.rows_normalize
            self.elementwise(kernels, (dx, dy), coefficients[:3], (), n_threads)
        else:
            kernels = elementwise.planes_grad_input, elementwise.rows_grad_input
            self.elementwise(kernels, (dx, dy, x), coefficients, (True,), n_threads, weights)
