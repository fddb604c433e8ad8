"""Gradient sums of the NumPy backend, in the one fixed order."""

from __future__ import annotations

import numpy as np

from bncore.backends.numpy.order import add_rows, add_to_lanes, blocks, fold, virtual_rows
from bncore.backends.numpy.statistics import is_near_0, sums_about_0
from bncore.backends.numpy.weights import Weights
from bncore.backends.partition import LANES, ROW_BLOCK, Data, Planes, Rows, Stat


def sum_mean(mean: Stat, var: Stat, x: Data) -> Stat:
    """Return what is subtracted from the values of a channel as they are summed."""
    return np.where(is_near_0(1.0, mean, var), 0.0, mean) if sums_about_0(x) else mean


def terms_of(
    g: Data, values: Data, mean: Stat, invstd: Stat, chained: bool, left_out: Data | None = None
) -> tuple[Data, Data]:
    """Return the terms of both sums, which are 0 where values are left out.

    Those in chains, for data of 16 bits, are scaled by the rounded invstd; wide ones are not scaled
    before they are added.
    """
    if chained:
        d = (values - mean.astype(np.float32)) * invstd.astype(np.float32)
    else:
        g, d = g.astype(np.float64), values - mean
    if left_out is not None:
        zero = g.dtype.type(0.0)
        g, d = np.where(left_out, zero, g), np.where(left_out, zero, d)
    return g, g * d


def planes_grad_sums(
    dy: Data,
    x: Data,
    mean: Stat,
    invstd: Stat,
    geo: Planes,
    chained: bool,
    weights: Weights | None,
) -> tuple[Stat, Stat]:
    """Add both terms of these channels."""
    channels = x.shape[1]
    a_total = b_total = np.zeros(channels)
    given = mean[:, np.newaxis], invstd[:, np.newaxis], chained
    for k in range(geo.n_segments):
        a_segment, b_segment = np.zeros(channels), np.zeros(channels)
        for block, _ in blocks(geo, k):
            a = b = np.zeros((channels, LANES))
            for piece in block:
                g, values = piece.of(dy, slice(None)), piece.of(x, slice(None))
                out = None
                if weights is not None:
                    out = weights.left_out(weights.of_piece(piece, slice(None), values), g)
                terms = terms_of(g, values, *given, out)
                a, b = add_to_lanes(a, terms[0]), add_to_lanes(b, terms[1])
            a_segment += fold(a)
            b_segment += fold(b)
        a_total = a_total + a_segment
        b_total = b_total + b_segment
    return a_total, b_total


def rows_grad_sums(
    dy: Data,
    x: Data,
    mean: Stat,
    invstd: Stat,
    geo: Rows,
    columns: slice,
    rows: int,
    chained: bool,
    weights: Weights | None,
) -> tuple[Stat, Stat]:
    """Add both terms of these columns of the virtual matrix; `mean`, `invstd` are per column."""
    zero = np.zeros_like(mean)
    a_total = b_total = zero
    for k in range(geo.n_segments):
        a_segment, b_segment = zero.copy(), zero.copy()
        begin, end = geo.segment(k)
        end = min(end, rows)
        for row in range(begin, end, ROW_BLOCK):
            block = geo, columns, row, min(row + ROW_BLOCK, end)
            g, values, out = virtual_rows(dy, *block), virtual_rows(x, *block), None
            if weights is not None:
                lines = np.arange(row, block[3])[:, np.newaxis]
                out = weights.left_out(weights.in_rows(lines, columns, values), g)
            terms = terms_of(g, values, mean, invstd, chained, out)
            a_segment += add_rows(zero, terms[0])
            b_segment += add_rows(zero, terms[1])
        a_total = a_total + a_segment
        b_total = b_total + b_segment
    return a_total, b_total


def add_columns(columns: Stat, geo: Rows) -> Stat:
    """Add the columns of each channel from left to right."""
    cube = columns.reshape(geo.repeat, geo.channels, geo.inner)
    total = cube[0, :, 0]
    for j in range(1, geo.repeat * geo.inner):
        total = total + cube[j // geo.inner, :, j % geo.inner]
    return total


def scaled(b: Stat, a: Stat, mean: Stat, centre: Stat, invstd: Stat, chained: bool) -> Stat:
    """Scale the sums of products; in chains that is done, and what hi lost is taken away.

    An infinite sum of dy would make NaN of it, and has nothing taken away.  Where the mean is NaN,
    the sum is NaN, or 0 if all values are left out, and stays.  What was summed about 0 instead of
    the mean has the mean taken away.
    """
    if not chained:
        b = np.where((centre == mean) | np.isnan(mean), b, b - mean * a)
        return np.where(np.isnan(mean), b, b * invstd)
    lo = mean - mean.astype(np.float32)
    exact = (lo == 0.0) | ~np.isfinite(a) | np.isnan(mean)
    result: Stat = b - np.where(exact, 0.0, (lo * invstd.astype(np.float32)) * a)
    return result
