"""Group norm of the NumPy backend, in the one fixed order."""

from __future__ import annotations

import numpy as np

from bncore.backends.numpy import reference
from bncore.backends.numpy.order import TILE, add_in_order, add_to_lanes, chains, fold, tree
from bncore.backends.numpy.storage import computed, store
from bncore.backends.partition import (
    BLOCK,
    LANES,
    LINE_TILE,
    Data,
    Stat,
    computed_in,
    group_runs,
    in_one_block,
    line_segment,
    tile_slices,
)


@np.errstate(all="ignore")
def group_norm(
    y: Data,
    mean: Stat,
    m2: Stat,
    x: Data,
    weight: Stat | None,
    bias: Stat | None,
    groups: int,
    eps: float,
    n_threads: int,
) -> None:
    """Write y, and the moments of the groups of every sample."""
    samples, outer, channels, inner = x.shape
    wide = channels // groups
    if in_one_block(x, wide):
        lines_moments(mean, m2, x.reshape(-1, wide))
    elif outer == 1:  # a group is one run of memory
        runs = x.reshape(1, samples * groups, wide * inner)
        reference.moments(mean, m2, runs, n_threads)
    else:
        for sample, one in enumerate(x):
            mine = slice(sample * groups, (sample + 1) * groups)
            reference.group_moments(mean[mine], m2[mine], one, wide)
    var = m2 / (outer * wide * inner)
    if outer == inner == 1 and not (weight is None and bias is None):
        lines_normalize(y, mean, var, x, weight, bias, eps)
        return
    if outer == 1:
        shape, statistics = group_runs(x.shape, mean, var, weight, bias)
        reference.normalize(y.reshape(shape), x.reshape(shape), *statistics, eps, n_threads)
        return
    means, variances = (v.repeat(wide).reshape(samples, channels) for v in (mean, var))
    for sample, one in enumerate(x):
        given = means[sample], variances[sample], weight, bias
        reference.normalize(y[sample], one, *given, eps, n_threads)


@np.errstate(all="ignore")
def group_norm_backward(
    dx: Data,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    groups: int,
    eps: float,
    n_threads: int,
) -> None:
    """Write the gradients of `group_norm`."""
    samples, outer, channels, inner = x.shape
    if outer == inner == 1:
        lines_backward(dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight, eps)
        return
    wide = channels // groups
    means, variances = (v.repeat(wide).reshape(samples, channels) for v in (mean, var))
    sums = np.empty((2, samples, channels))
    for sample in range(samples):
        arrays = dy[sample], x[sample], means[sample], variances[sample]
        reference.grad_sums(sums[0, sample], sums[1, sample], *arrays, eps, n_threads)
    weighted = (sums if weight is None else sums * weight).reshape(2, -1, wide)
    totals = np.zeros(weighted.shape[:2])
    for c in range(wide):
        totals = totals + weighted[:, :, c]
    for result, each in zip((sum_dy, sum_dy_xhat), sums, strict=True):
        result[:] = add_in_order(np.zeros(channels), each)
    kind = computed_in(x)
    hi, of_all, of_x, shift = (
        v.repeat(wide).reshape(samples, channels)
        for v in slopes(x, mean, var, totals, outer * wide * inner, eps)
    )
    scale = np.ones(channels, kind) if weight is None else weight.astype(kind)
    for s in range(samples):
        for at in tile_slices(outer, channels, inner, TILE):
            coefficients = scale, hi[s], of_all[s], of_x[s], shift[s]
            w, h, a, k, t = (v[at[1], np.newaxis] for v in coefficients)
            g, numbers = computed(dy[s][at]), computed(x[s][at])
            store(dx[s][at], ((g * w + (numbers - h) * k) + t) * a)


def slopes(
    x: Data, mean: Stat, var: Stat, totals: Stat, count: int, eps: float
) -> tuple[Data, ...]:
    """Return hi, of_dy, of_x and shift of groups with these sums of g and g * xhat."""
    hi, of_dy, of_x, shift = np.empty((4, len(mean)), computed_in(x))
    statistics = mean, reference.inverse_std(var, eps), np.ones_like(mean)
    a, b = totals
    counts = np.full(len(mean), float(count))
    reference.gradient_coefficients(hi, of_dy, of_x, shift, *statistics, a, b, counts)
    return hi, of_dy, of_x, shift


# Lines: groups of one position, in which each value has a weight of its own.  Arrays are
# (samples, groups, width), and their coefficients (samples, groups, 1).


def lines_of(x: Data, lines: int) -> tuple[int, int, int]:
    """Return the shape of x in so many lines."""
    return x.shape[0], lines // x.shape[0], x.size // lines


def parameters(x: Data, given: Stat | None, otherwise: float, shape: tuple[int, ...]) -> Data:
    """Return the parameters of every value of a sample, in the type of the arithmetic."""
    values = np.full(x.shape[2], otherwise) if given is None else given
    return values.astype(computed_in(x)).reshape(shape[1:])


def lines_moments(mean: Stat, m2: Stat, lines: Data) -> None:
    """Write the moments of lines of LANES to BLOCK values, (lines, width).

    The sums are those about 0, where these keep the digits of the squares about the mean.
    """
    width = lines.shape[1]
    step = max(TILE // width, 1)
    for first in range(0, len(lines), step):
        some = slice(first, first + step)
        values = lines[some].astype(np.float64)
        empty = np.zeros((len(values), LANES))
        s, q = (fold(add_to_lanes(empty, terms)) for terms in (values, values * values))
        mean[some] = s / width
        m2[some] = q - s * mean[some]
        others = first + np.flatnonzero(~(16.0 * (s * s) < 15.0 * (width * q)))
        if len(others) > 0:
            found = np.empty((2, len(others)))
            reference.moments(found[0], found[1], lines[others].reshape(1, -1, width), 1)
            mean[others], m2[others] = found


def lines_normalize(
    y: Data, mean: Stat, var: Stat, x: Data, weight: Stat | None, bias: Stat | None, eps: float
) -> None:
    """Write ``y = xhat * weight + bias``."""
    shape = lines_of(x, len(mean))
    scale, constant = parameters(x, weight, 1.0, shape), parameters(x, bias, 0.0, shape)
    lines, out = x.reshape(shape), y.reshape(shape)
    for some, hi, invstd, shift in line_tiles(shape, x, mean, var, eps):
        result = (computed(lines[some]) - hi) * (invstd * scale) + (shift * scale + constant)
        store(out[some], result)


def line_tiles(
    shape: tuple[int, int, int], x: Data, mean: Stat, var: Stat, eps: float
) -> list[tuple[slice, Data, Data, Data]]:
    """Return ranges of some samples, each with hi, scale and shift of its lines."""
    coefficients = reference.normalize_coefficients(x, mean, var, None, None, eps)
    hi, scale, shift = (c.reshape(*shape[:2], 1) for c in coefficients)
    step = max(TILE // (shape[1] * shape[2]) // LINE_TILE, 1) * LINE_TILE
    ranges = [slice(first, first + step) for first in range(0, shape[0], step)]
    return [(some, hi[some], scale[some], shift[some]) for some in ranges]


def lines_backward(
    dx: Data,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    eps: float,
) -> None:
    """Write the gradients where each value of a group has a weight of its own."""
    shape = samples, _, width = lines_of(x, len(mean))
    scale = parameters(x, weight, 1.0, shape)
    arrays = dy.reshape(shape), x.reshape(shape)
    totals = np.empty((2, *shape[:2]))
    tiles = line_tiles(shape, x, mean, var, eps)
    for some, hi, invstd, shift in tiles:
        slope, numbers = (computed(array[some]) for array in arrays)
        g = slope * scale
        products = g * ((numbers - hi) * invstd + shift)
        for total, terms in zip(totals, (g, products), strict=True):
            total[some] = add_lines(terms.reshape(-1, width)).reshape(-1, shape[1])
    slopes_of = slopes(x, mean, var, totals.reshape(2, -1), width, eps)
    of_x, constant = (c.reshape(*shape[:2], 1) for c in slopes_of[2:])
    segment_len = line_segment(samples)
    sums = np.zeros((2, -(-samples // segment_len), x.shape[2]))
    for some, hi, invstd, shift in tiles:
        slope, numbers = (computed(array[some]) for array in arrays)
        d = numbers - hi
        products = slope * (d * invstd + shift)
        result = ((slope * scale + d * of_x[some]) + constant[some]) * invstd
        store(dx.reshape(shape)[some], result)
        for total, terms in zip(sums, (slope.astype(np.float64), products), strict=True):
            add_columns(total, terms.reshape(len(terms), -1), some.start, segment_len)
    for result, each in zip((sum_dy, sum_dy_xhat), sums, strict=True):
        result[:] = add_in_order(np.zeros(x.shape[2]), each)


def add_lines(terms: Data) -> Stat:
    """Add the terms of every line, in chains."""
    total = np.zeros(len(terms))
    for begin in range(0, terms.shape[1], BLOCK):
        block = terms[:, begin : begin + BLOCK]
        rest = block.shape[1] % LANES
        whole = block.shape[1] - rest
        rows = block[:, :whole].reshape(len(terms), -1, LANES).swapaxes(0, 1)
        tail = np.zeros((len(terms), LANES), terms.dtype)
        tail[:, LANES - rest :] = block[:, whole:]
        total += fold(add_in_order(np.zeros((len(terms), LANES)), chains(rows, tail)))
    return total


def add_columns(sums: Stat, terms: Data, first: int, segment_len: int) -> None:
    """Add terms of samples from `first` on to the sums of their segments, some in a tree."""
    for begin in range(0, len(terms), LINE_TILE):
        tile = np.zeros((1, LINE_TILE, terms.shape[1]), terms.dtype)
        some = terms[begin : begin + LINE_TILE]
        tile[0, : len(some)] = some
        sums[(first + begin) // segment_len] += tree(tile)[0]
