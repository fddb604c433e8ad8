"""The gradient sums of docs/numerics.md in plain loops: those of dy and of dy * xhat.

They walk as the moments in `sums.py` do, but no pivot moves.  Wide terms are dy and dy * (x - mean)
in float64, and the sum of products is scaled by invstd at the end.  Where a mean is near 0, float32
data have the terms dy * x, and mean * sum(dy) is taken away at the end.  Terms in chains, of data
of 16 bits, are dy and dy * ((x - hi) * r) in float32, where hi and r are mean and invstd, rounded.

With weights, both factors of a value that is left out are 0.  `weights` is None without.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.backends.numba.storage import unsigned, value
from bncore.backends.numba.sums import (
    CHAIN,
    STRIP,
    add_chains,
    fold,
    is_near_0,
    lines,
    longer,
    piece,
    sums_about_0,
)
from bncore.backends.numba.weighted import Counted, left_out, line_weights, piece_weights
from bncore.backends.partition import BLOCK, LANES, ROW_BLOCK, Data, Stat


def inverse_std(var: Any, eps: float) -> Any:
    """Compute 1 / sqrt(var + eps)."""
    return 1.0 / np.sqrt(np.float64(var + eps))


def sum_means(first: int, last: int, centres: Stat, mean: Stat, var: Stat, x: Data) -> None:
    """Compute what is subtracted from the values of every channel as they are summed."""
    for c in range(first, last):
        near_0 = sums_about_0(x) and is_near_0(1.0, mean[c], var[c])
        centres[c] = 0.0 if near_0 else mean[c]


def inverse_stds(first: int, last: int, invstd: Stat, var: Stat, eps: float) -> None:
    """Compute it for every channel."""
    for c in range(first, last):
        invstd[c] = inverse_std(var[c], eps)


def add_product(
    a: Stat, b: Stat, j: int, dy: Data, x: Data, i: int, means: Stat, w: Stat | None, filled: bool
) -> None:
    """Add value i, whose weight is w[i], to totals j."""
    g, d = np.float64(value(dy[i])), np.float64(value(x[i])) - means[j]
    if w is not None and left_out(w[i], g, filled):
        g = d = np.float64(0.0)
    a[j] += g
    b[j] += g * d


def add_wide_products(
    a: Stat,
    b: Stat,
    dy: Data,
    x: Data,
    at: int,
    count: int,
    means: Stat,
    w: Stat | None = None,
    filled: bool = False,
) -> None:
    """Add `count` values from x[at] on in float64, as `add_squares` says; w[i] belongs to x[i]."""
    width, stop = len(a), at + count
    while at + width <= stop:
        for j in range(width):
            add_product(a, b, j, dy, x, unsigned(at + j), means, w, filled)
        at += width
    skip = at + width - stop
    for j in range(skip, width):
        add_product(a, b, j, dy, x, unsigned(at + j - skip), means, w, filled)


def add_products(
    a: Stat,
    b: Stat,
    dy: Data,
    x: Data,
    means: Stat,
    invstds: Stat,
    chained: bool,
    w: Stat | None = None,
    filled: bool = False,
) -> None:
    """Add a piece to its totals, as `add_squares` does; w has the weights, or is None."""
    if not chained:
        add_wide_products(a, b, dy, x, 0, len(x), means, w, filled)
        return
    width = len(a)
    g_terms, w_terms = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    hi, r = means.astype(np.float32), invstds.astype(np.float32)
    for at in range(0, len(x), width):
        for j in range(min(width, len(x) - at)):
            i = at + j
            g, h = value(dy[i]), (value(x[i]) - hi[j]) * r[j]
            out = w is not None and left_out(w[i], g, filled)
            g_terms[i] = np.float32(0.0) if out else g
            w_terms[i] = np.float32(0.0) if out else g * h
    add_chains(a, g_terms)
    add_chains(b, w_terms)


def planes_grad_sums(
    first: int,
    last: int,
    parts: Stat,
    dy: Data,
    x: Data,
    means: Stat,
    invstds: Stat,
    weights: Counted | None,
    inner: int,
    segment_len: int,
    chained: bool,
) -> None:
    """Take the gradient sums of segments; task = segment * channels + channel."""
    channels = parts.shape[2]
    count = len(x) // channels
    a, b = np.zeros(LANES), np.zeros(LANES)
    for task in range(first, last):
        k, c = task // channels, task % channels
        e, end, pending = k * segment_len, min((k + 1) * segment_len, count), 0
        mean, invstd = np.full(LANES, means[c]), np.full(LANES, invstds[c])
        parts[k, 0, c] = parts[k, 1, c] = 0.0
        while e < end:
            at, size = piece(c, channels, inner, e, end)
            if weights is None and not chained:  # directly, as in `add_block`
                add_wide_products(a, b, dy, x, at, size, mean)
            else:
                grads, values = dy[at : at + size], x[at : at + size]
                if weights is None:
                    add_products(a, b, grads, values, mean, invstd, True)
                else:
                    w = piece_weights(weights, values, c, inner, e)
                    add_products(a, b, grads, values, mean, invstd, chained, w, weights.filled)
            e += size
            pending += size
            if pending >= BLOCK or e == end:
                parts[k, 0, c] += fold(a)
                parts[k, 1, c] += fold(b)
                pending = 0


def rows_grad_sums(
    first: int,
    last: int,
    parts: Stat,
    dy: Data,
    x: Data,
    means: Stat,
    invstds: Stat,
    weights: Counted | None,
    segment_rows: int,
    chained: bool,
) -> None:
    """Take the gradient sums of segments; task = segment * strips + strip."""
    width = parts.shape[2]
    strips = max(width // STRIP, 1)
    for task in range(first, last):
        k, j0 = task // strips, task % strips * STRIP
        j1 = width if task % strips == strips - 1 else j0 + STRIP
        begin, end = k * segment_rows, min((k + 1) * segment_rows, -(-len(x) // width))
        middle = longer(len(x), width, j0, j1, end)
        parts[k, :, j0:j1] = 0.0
        for left, right, stop in ((j0, middle, end), (middle, j1, end - 1)):
            columns, a, b = right - left, np.zeros(right - left), np.zeros(right - left)
            mean, invstd = means[left:right], invstds[left:right]
            for block in range(begin, stop if columns > 0 else begin, ROW_BLOCK):
                block_end = min(block + ROW_BLOCK, stop)
                for row in range(block, block_end, CHAIN):
                    rows = width, columns, row, min(row + CHAIN, block_end)
                    grads, values = lines(dy[left:], *rows), lines(x[left:], *rows)
                    if weights is None:
                        add_products(a, b, grads, values, mean, invstd, chained)
                    else:
                        w = line_weights(weights, values, left, columns, row)
                        filled = weights.filled
                        add_products(a, b, grads, values, mean, invstd, chained, w, filled)
                for j in range(columns):
                    parts[k, 0, left + j] += a[j]
                    parts[k, 1, left + j] += b[j]
                a[:] = 0.0
                b[:] = 0.0


def add_grad_sums(
    first: int,
    last: int,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    parts: Stat,
    mean: Stat,
    centres: Stat,
    invstd: Stat,
    inner: int,
    chained: bool,
) -> None:
    """Add the segments of each column, then the columns of channels first to last."""
    for c in range(first, last):
        a = b = 0.0
        for left in range(c * inner, parts.shape[2], len(sum_dy) * inner):
            for j in range(left, left + inner):
                column_a = column_b = 0.0
                for k in range(len(parts)):
                    column_a += parts[k, 0, j]
                    column_b += parts[k, 1, j]
                a += column_a
                b += column_b
        sum_dy[c] = a
        if mean[c] != mean[c]:  # b is NaN, or 0 if all values are left out
            sum_dy_xhat[c] = b
        elif not chained:
            sum_dy_xhat[c] = (b if centres[c] == mean[c] else b - mean[c] * a) * invstd[c]
        else:  # the products are scaled already; take away what the rounding of the mean added
            lo = mean[c] - np.float64(np.float32(mean[c]))
            exact = lo == 0.0 or not np.isfinite(a)  # an infinite sum would make NaN of it
            added = 0.0 if exact else (lo * np.float64(np.float32(invstd[c]))) * a
            sum_dy_xhat[c] = b - added
