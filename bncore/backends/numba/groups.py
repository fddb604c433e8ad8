"""Group norm of docs/numerics.md in plain loops: what it has beyond batch norm.

`sums.py` says what this text is.  Arrays of data are flat, of shape (samples, outer, channels,
inner).  Where outer and inner are 1, a group is a *line* of `width` neighbouring values, and each
value has a weight of its own.  Weights and biases of lines have the type of the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.backends.numba.storage import stored, value
from bncore.backends.numba.sums import (
    add_chains,
    add_wide_squares,
    close,
    first_pivot,
    flush,
    fold,
    tree,
)
from bncore.backends.partition import BLOCK, LANES, LINE_TILE, Data, Stat


def add_groups(first: int, last: int, totals: Stat, sums: Stat, weight: Stat, wide: int) -> None:
    """Add weight * sum over the channels of groups first to last, in order."""
    for group in range(first, last):
        total = 0.0
        for i in range(group * wide, (group + 1) * wide):
            total += sums[i] * weight[i % len(weight)]
        totals[group] = total


def add_samples(first: int, last: int, total: Stat, sums: Stat) -> None:
    """Add the sums of all samples for channels first to last, in order."""
    for c in range(first, last):
        total[c] = 0.0
        for i in range(c, len(sums), len(total)):
            total[c] += sums[i]


def group_gradient(dy: Any, x: Any, w: Any, hi: Any, of_all: Any, of_x: Any, shift: Any) -> Any:
    """Compute dx of a value with the weight w of its channel.

    The sums of its group contain the weights, so w is no common factor.
    """
    return ((dy * w + (x - hi) * of_x) + shift) * of_all


def groups_grad_input(
    first: int,
    last: int,
    dx: Data,
    dy: Data,
    x: Data,
    coefficients: Data,
    weight: Data,
    outer: int,
    inner: int,
) -> None:
    """Write dx of `group_gradient`; tasks are runs of `inner` values of one channel."""
    channels = len(weight)
    for run in range(first, last):
        c = run % channels
        hi, of_all, of_x, shift = coefficients[:, run // channels // outer * channels + c]
        for i in range(run * inner, (run + 1) * inner):
            g, v = value(dy[i]), value(x[i])
            dx[i] = stored(group_gradient(g, v, weight[c], hi, of_all, of_x, shift), dx)


# Lines; their coefficients are those of `normalized` without weight and bias


def lines_moments(first: int, last: int, mean: Stat, m2: Stat, x: Data, width: int) -> None:
    """Take the moments of lines of LANES to BLOCK values about 0; tasks are lines.

    Where the squares about 0 are more than 16 times those about the mean, whose digits they would
    hide, the line is added up about a pivot, as a segment in planes is.
    """
    s, q, zero = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    for line in range(first, last):
        at = line * width
        add_wide_squares(s, q, x, at, width, zero)
        total, squares = fold(s), fold(q)
        if 16.0 * (total * total) < 15.0 * (width * squares):
            mean[line] = total / width
            m2[line] = squares - total * mean[line]
            continue
        pivot = first_pivot(x[at : at + LANES], False)
        add_wide_squares(s, q, x, at, width, np.full(LANES, pivot))
        state = flush((0.0, pivot, 0.0, 0.0), fold(s), fold(q), width, x, False)
        _, pivot, offset, m2[line] = close(state)
        mean[line] = pivot + offset


def lines_normalize(
    first: int,
    last: int,
    y: Data,
    x: Data,
    coefficients: Data,
    weight: Data,
    bias: Data,
    width: int,
) -> None:
    """Write ``y = xhat * weight + bias``, where xhat itself is not rounded; tasks are lines."""
    for line in range(first, last):
        hi, scale, shift = coefficients[:, line]
        for i in range(line * width, (line + 1) * width):
            c = i % len(weight)
            number = (value(x[i]) - hi) * (scale * weight[c]) + (shift * weight[c] + bias[c])
            y[i] = stored(number, y)


def lines_sums(
    first: int,
    last: int,
    sum_g: Stat,
    sum_g_xhat: Stat,
    dy: Data,
    x: Data,
    coefficients: Data,
    weight: Data,
    width: int,
) -> None:
    """Add g = weight * dy and g * xhat over lines, in chains; tasks are lines."""
    a, b = np.zeros(LANES), np.zeros(LANES)
    for line in range(first, last):
        hi, scale, shift = coefficients[:, line]
        sum_g[line] = sum_g_xhat[line] = 0.0
        for begin in range(0, width, BLOCK):
            size = min(width - begin, BLOCK)
            g, products = np.empty(size, weight.dtype), np.empty(size, weight.dtype)
            for j in range(size):
                i = line * width + begin + j
                g[j] = value(dy[i]) * weight[i % len(weight)]
                products[j] = g[j] * ((value(x[i]) - hi) * scale + shift)
            add_chains(a, g)
            add_chains(b, products)
            sum_g[line] += fold(a)
            sum_g_xhat[line] += fold(b)


def lines_grad_input(
    first: int,
    last: int,
    dx: Data,
    sums: Stat,
    dy: Data,
    x: Data,
    coefficients: Data,
    slopes: Data,
    weight: Data,
    width: int,
    segment_len: int,
) -> None:
    """Write dx, and sums of dy and of dy * xhat over the samples of a segment.

    Tasks are segments, ``sums[segment, 2, channel]``.  The terms of `LINE_TILE` samples are added
    in a tree: those of dy in float64, those of products in the type of the arithmetic.
    """
    channels = len(weight)
    samples = len(x) // channels
    terms = np.zeros((2, LINE_TILE), weight.dtype)
    for segment in range(first, last):
        begin, end = segment * segment_len, min((segment + 1) * segment_len, samples)
        sums[segment] = 0.0
        for tile in range(begin, end, LINE_TILE):
            for c in range(channels):
                terms[:] = 0.0
                for n in range(min(LINE_TILE, end - tile)):
                    i = (tile + n) * channels + c
                    hi, scale, shift = coefficients[:, i // width]
                    of_x, constant = slopes[2, i // width], slopes[3, i // width]
                    g, v = value(dy[i]), value(x[i])
                    terms[0, n] = g
                    terms[1, n] = g * ((v - hi) * scale + shift)
                    number = group_gradient(g, v, weight[c], hi, scale, of_x, constant)
                    dx[i] = stored(number, dx)
                t = terms[0].astype(np.float64)
                sums[segment, 0, c] += (t[0] + t[1]) + (t[2] + t[3])
                sums[segment, 1, c] += np.float64(tree(terms[1], 0, 1))
