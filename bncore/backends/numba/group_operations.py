"""Group norm as an operation of the contract, composed of the operations of batch norm."""

from __future__ import annotations

import numpy as np

from bncore.backends.numba import elementwise, groups
from bncore.backends.numba.operations import Operations, flat
from bncore.backends.numba.threads import useful
from bncore.backends.partition import (
    Data,
    Stat,
    computed_in,
    group_runs,
    in_one_block,
    line_segment,
)


class GroupOperations(Operations):
    """The functions of the contract, and those of `bncore.backends.group_contract`."""

    def group_norm(
        self,
        y: Data,
        mean: Stat,
        m2: Stat,
        x: Data,
        weight: Stat | None,
        bias: Stat | None,
        number: int,
        eps: float,
        n_threads: int,
    ) -> None:
        """Write y, and the moments of `number` groups of every sample."""
        samples, outer, channels, inner = x.shape
        wide = channels // number
        if in_one_block(x, wide):
            threads = useful(n_threads, x.size)
            self.run(threads, len(mean), groups.lines_moments, mean, m2, flat(x), wide)
        elif outer == 1:  # a group is one run of memory
            self.moments(mean, m2, x.reshape(1, samples * number, wide * inner), n_threads)
        else:
            for sample, one in enumerate(x):
                mine = slice(sample * number, (sample + 1) * number)
                self.group_moments(mean[mine], m2[mine], one, n_threads, wide)
        with np.errstate(all="ignore"):
            var = m2 / (outer * wide * inner)
        if outer == inner == 1 and not (weight is None and bias is None):
            coefficients = self.line_coefficients(x, mean, var, eps)
            arrays = flat(y), flat(x), coefficients, *line_parameters(x, weight, bias)
            threads = useful(n_threads, x.size)
            self.run(threads, len(mean), groups.lines_normalize, *arrays, wide)
            return
        if outer == 1:
            shape, given = group_runs(x.shape, mean, var, weight, bias)
            self.normalize(y.reshape(shape), x.reshape(shape), *given, eps, n_threads)
            return
        means, variances = (v.repeat(wide).reshape(samples, channels) for v in (mean, var))
        for sample, one in enumerate(x):
            statistics = means[sample], variances[sample]
            self.normalize(y[sample], one, *statistics, weight, bias, eps, n_threads)

    def line_coefficients(self, x: Data, mean: Stat, var: Stat, eps: float) -> Data:
        """Compute those of `normalized` for every line."""
        return self.coefficients(x, mean, var, None, None, eps)

    def group_norm_backward(
        self,
        dx: Data,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        number: int,
        eps: float,
        n_threads: int,
    ) -> None:
        """Write the gradients of `group_norm`."""
        samples, outer, channels, inner = x.shape
        if outer == inner == 1:
            self.lines_backward(dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight, eps, n_threads)
            return
        wide = channels // number
        means, variances = (v.repeat(wide).reshape(samples, channels) for v in (mean, var))
        sums = np.empty((2, samples, channels))
        for sample in range(samples):
            one = dy[sample], x[sample], means[sample], variances[sample]
            self.grad_sums(sums[0, sample], sums[1, sample], *one, eps, n_threads)
        ones = np.ones(channels) if weight is None else weight
        a, b = np.empty((2, samples * number))
        for total, result, each in ((a, sum_dy, sums[0]), (b, sum_dy_xhat, sums[1])):
            self.run(1, len(total), groups.add_groups, total, each.reshape(-1), ones, wide)
            self.run(1, channels, groups.add_samples, result, each.reshape(-1))
        coefficients = self.slopes(x, mean, var, a, b, outer * wide * inner, eps)
        given = coefficients.repeat(wide, axis=1), ones.astype(computed_in(x)), outer, inner
        arrays, tasks = (flat(dx), flat(dy), flat(x)), x.size // inner
        self.run(useful(n_threads, x.size), tasks, groups.groups_grad_input, *arrays, *given)

    def slopes(
        self, x: Data, mean: Stat, var: Stat, a: Stat, b: Stat, count: int, eps: float
    ) -> Data:
        """Compute the coefficients of the gradient for groups with these sums of g and g * xhat."""
        coefficients = np.empty((4, len(mean)), computed_in(x))
        given = mean, var, np.ones_like(mean), a, b, np.full(len(mean), float(count)), float(eps)
        self.run(1, len(mean), elementwise.gradient_coefficients, coefficients, *given)
        return coefficients

    def lines_backward(
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
    ) -> None:
        """Write the gradients where each value of a group has a weight of its own."""
        samples, channels, lines = x.shape[0], x.shape[2], len(mean)
        width, threads = x.size // lines, useful(n_threads, x.size)
        coefficients = self.line_coefficients(x, mean, var, eps)
        scale, _ = line_parameters(x, weight, None)
        arrays, (a, b) = (flat(dy), flat(x), coefficients), np.empty((2, lines))
        self.run(threads, lines, groups.lines_sums, a, b, *arrays, scale, width)
        slopes = self.slopes(x, mean, var, a, b, width, eps)
        segment_len = line_segment(samples)
        sums = np.empty((-(-samples // segment_len), 2, channels))
        given = slopes, scale, width, segment_len
        self.run(threads, len(sums), groups.lines_grad_input, flat(dx), sums, *arrays, *given)
        for k, result in enumerate((sum_dy, sum_dy_xhat)):
            each = np.ascontiguousarray(sums[:, k]).reshape(-1)
            self.run(1, channels, groups.add_samples, result, each)


def line_parameters(x: Data, weight: Stat | None, bias: Stat | None) -> tuple[Data, Data]:
    """Return weight and bias of every channel in the type of the arithmetic."""
    channels, kind = x.shape[2], computed_in(x)
    with np.errstate(all="ignore"):
        scale = np.ones(channels, kind) if weight is None else weight.astype(kind)
        shift = np.zeros(channels, kind) if bias is None else bias.astype(kind)
    return scale, shift
