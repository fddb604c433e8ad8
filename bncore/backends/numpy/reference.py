"""The algorithm in NumPy: the backend if there is neither the native extension nor Numba.

It gives the same bits as the specification in `bncore.backends.numba`, because it does the same
operations in the same order, but on whole arrays at a time.  The sums are in `statistics.py`.

It works on tiles of at most about `TILE` values, so no temporary array grows with x.  The only
exception is a fused backward that has no output in which to store the masked gradient.  `n_threads`
is accepted and not used.  NaN and Inf give no warning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bncore.backends.contract import Fusion
from bncore.backends.numpy.gradients import (
    add_columns,
    planes_grad_sums,
    rows_grad_sums,
    scaled,
)
from bncore.backends.numpy.order import TILE, channel_groups, column_strips
from bncore.backends.numpy.statistics import Partial, merge_columns, planes_moments, rows_moments
from bncore.backends.numpy.storage import computed, store
from bncore.backends.partition import (
    Data,
    Planes,
    Rows,
    Stat,
    computed_in,
    geometry,
    in_chains,
    unfused_gradient,
)

name = "numpy"


def tiles(
    geo: Planes | Rows, arrays: tuple[Data, ...], coefficients: tuple[Data, ...]
) -> Iterator[tuple[Data, ...]]:
    """Yield the same tile of every array, and the coefficients that broadcast against it."""
    flat = [array.reshape(-1) for array in arrays]
    if isinstance(geo, Planes):
        shapes = [(geo.outer, geo.channels, geo.inner)]
    else:
        shapes = [(geo.full, geo.width, 1), (1, geo.short, 1)]
        coefficients = tuple(np.tile(c.repeat(geo.inner), geo.repeat) for c in coefficients)
    begin = 0
    for shape in shapes:
        end = begin + shape[0] * shape[1] * shape[2]
        views = [array[begin:end].reshape(shape) for array in flat]
        for tile in tile_slices(*shape):
            per_channel = tile[1]
            yield (
                *(view[tile] for view in views),
                *(c[: shape[1]][per_channel, np.newaxis] for c in coefficients),
            )
        begin = end


def tile_slices(outer: int, channels: int, inner: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a 3-D array into tiles of at most TILE values, each as contiguous as it can be."""
    i_step = max(1, min(inner, TILE))
    c_step = max(1, min(channels, TILE // i_step))
    o_step = max(1, TILE // (i_step * c_step))
    for o in range(0, outer, o_step):
        for c in range(0, channels, c_step):
            for i in range(0, inner, i_step):
                yield slice(o, o + o_step), slice(c, c + c_step), slice(i, i + i_step)


# The coefficients of the elementwise formulas are computed in float64; assigning them to an array
# of the type that is computed in rounds them once.


def inverse_std(var: Stat, eps: float) -> Stat:
    """Compute ``1 / sqrt(var + eps)`` in float64."""
    return 1.0 / np.sqrt(var + eps)


def normalize_coefficients(
    x: Data, mean: Stat, var: Stat, weight: Stat | None, bias: Stat | None, eps: float
) -> tuple[Data, Data, Data]:
    """Return hi, scale and shift of ``y = (x - hi) * scale + shift``.

    `hi` is the mean, rounded.  The rounding error times the scale is added to
    the shift.  So x is centered before it is scaled, and nothing is lost.
    """
    hi, scale, shift = np.empty((3, len(mean)), computed_in(x))
    constant = np.zeros_like(mean) if bias is None else bias
    invstd = inverse_std(var, eps)
    hi[:] = mean
    scale[:] = invstd if weight is None else weight * invstd
    lo = mean - hi
    shift[:] = np.where(lo == 0.0, constant, constant - lo * scale)
    return hi, scale, shift


def gradient_coefficients(
    hi: Data,
    of_dy: Data,
    of_x: Data,
    shift: Data,
    mean: Stat,
    invstd: Stat,
    weight: Stat,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    count: Stat,
) -> None:
    """Fill the coefficients of ``dx = ((dy + (x - hi) * of_x) + shift) * of_dy``.

    This is ``weight * invstd * (dy - sum_dy / n - xhat * sum_dy_xhat / n)`` (Ioffe & Szegedy
    2015, section 3), arranged by the terms that change from value to value.  The common factor is
    applied last: multiplied into the other coefficients, invstd squared would leave the range of
    float32 for a standard deviation beyond 1e19.
    """
    c = -(sum_dy / count)
    hi[:] = mean
    of_dy[:] = weight * invstd
    of_x[:] = -invstd * (sum_dy_xhat / count)
    lo = mean - hi
    shift[:] = np.where(lo == 0.0, c, c - lo * of_x)


# The operations: outputs, then inputs, then parameters, as in every backend.
# Shapes: x, y, dy, dx (outer, channels, inner); every statistic and parameter (channels,).


@np.errstate(all="ignore")
def moments(mean: Stat, m2: Stat, x: Data, n_threads: int, float64_sums: bool = False) -> None:
    """Write the mean of every channel, and the sum of squared deviations from it."""
    geo, chained = geometry(*x.shape), in_chains(x, float64_sums)
    if isinstance(geo, Planes):
        planes = x.reshape(geo.outer, geo.channels, geo.inner)
        for group in channel_groups(geo):
            total = planes_moments(planes[:, group], geo, chained)
            mean[group], m2[group] = total.pivot + total.offset, total.m2
    else:
        columns = Partial(*np.empty((4, geo.width)))
        for strip, rows in column_strips(geo):
            columns[strip] = rows_moments(x.reshape(-1), geo, strip, rows, chained)
        total = merge_columns(columns, geo)
        mean[:], m2[:] = total.pivot + total.offset, total.m2


@np.errstate(all="ignore")
def grad_sums(
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    eps: float,
    n_threads: int,
) -> None:
    """Write sum(dy) and sum(dy * xhat) of every channel."""
    geo, chained = geometry(*x.shape), in_chains(x)
    invstd = inverse_std(var, eps)
    if isinstance(geo, Planes):
        shape = geo.outer, geo.channels, geo.inner
        for group in channel_groups(geo):
            g, values = dy.reshape(shape)[:, group], x.reshape(shape)[:, group]
            sum_dy[group], sum_dy_xhat[group] = planes_grad_sums(
                g, values, mean[group], invstd[group], geo, chained
            )
    else:
        means, invstds = (np.tile(v.repeat(geo.inner), geo.repeat) for v in (mean, invstd))
        a, b = np.empty((2, geo.width))
        for strip, rows in column_strips(geo):
            g, values = dy.reshape(-1), x.reshape(-1)
            a[strip], b[strip] = rows_grad_sums(
                g, values, means[strip], invstds[strip], geo, strip, rows, chained
            )
        sum_dy[:], sum_dy_xhat[:] = add_columns(a, geo), add_columns(b, geo)
    sum_dy_xhat[:] = scaled(sum_dy_xhat, sum_dy, mean, invstd, chained)


@np.errstate(all="ignore")
def normalize(
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
    """Write ``y = weight * (x - mean) / sqrt(var + eps) + bias``."""
    coefficients = normalize_coefficients(x, mean, var, weight, bias, eps)
    if fusion is not None:
        activate(y, None, x, fusion, coefficients)
        return
    for tile in tiles(geometry(*x.shape), (y, x), coefficients):
        out, value, hi, scale, shift = tile
        store(out, (computed(value) - hi) * scale + shift)


def activate(
    out: Data, dy: Data | None, x: Data, fusion: Fusion, coefficients: tuple[Data, ...]
) -> None:
    """Write the activation of z = (x - hi) * scale + shift + residual, or dy masked by z's sign."""
    arrays = [out, x, *(a for a in (dy, fusion.residual) if a is not None)]
    for tile in tiles(geometry(*x.shape), tuple(arrays), coefficients):
        to, value, *rest, hi, scale, shift = tile
        z = (computed(value) - hi) * scale + shift
        if fusion.residual is not None:
            z += computed(rest[-1])
        store(to, activated(fusion, z, z if dy is None else computed(rest[0])))


def masked(
    dx: Data,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    eps: float,
    fusion: Fusion | None,
) -> Data:
    """Return the gradient with respect to z, which replaces dy."""

    def activate_dy(out: Data, dy: Data, fusion: Fusion) -> None:
        coefficients = normalize_coefficients(x, mean, var, weight, fusion.bias, eps)
        activate(out, dy, x, fusion, coefficients)

    return unfused_gradient(dx, dy, x, fusion, activate_dy)


def activated(fusion: Fusion, z: Data, value: Data) -> Data:
    """Return `value` where z is positive or NaN, and 0 or slope * value elsewhere."""
    if fusion.activation is None:
        return value
    leaky = fusion.activation == "leaky_relu"
    below = value * value.dtype.type(fusion.slope) if leaky else value.dtype.type(0.0)
    result: Data = np.where(z <= 0.0, below, value)
    return result


@np.errstate(all="ignore")
def grad_input(
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
) -> None:
    """Write ``dx = weight * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count)``."""
    hi, of_dy, of_x, shift = np.empty((4, len(mean)), computed_in(x))
    weight = np.ones_like(mean) if weight is None else weight
    invstd = inverse_std(var, eps)
    gradient_coefficients(hi, of_dy, of_x, shift, mean, invstd, weight, sum_dy, sum_dy_xhat, count)
    for tile in tiles(geometry(*x.shape), (dx, dy, x), (hi, of_dy, of_x, shift)):
        out, g, value, hi, of_dy, of_x, shift = tile
        from_x = (computed(value) - hi) * of_x
        store(out, ((computed(g) + from_x) + shift) * of_dy)


@np.errstate(all="ignore")
def train(
    y: Data,
    mean: Stat,
    m2: Stat,
    x: Data,
    weight: Stat | None,
    bias: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None = None,
) -> None:
    """Normalize x by its own moments, and write the moments."""
    moments(mean, m2, x, n_threads)
    normalize(y, x, mean, m2 / (x.size // len(mean)), weight, bias, eps, n_threads, fusion)


@np.errstate(all="ignore")
def train_backward(
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
) -> None:
    """Write the gradients of `train`."""
    dy = masked(dx, dy, x, mean, var, weight, eps, fusion)
    grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads)
    count = np.full(len(mean), float(x.size // len(mean)))
    grad_input(dx, dy, x, mean, var, sum_dy, sum_dy_xhat, count, weight, eps, n_threads)


@np.errstate(all="ignore")
def infer_backward(
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
) -> None:
    """Write the gradients of `normalize` with given statistics, which are constants."""
    dy = masked(dx, dy, x, mean, var, weight, eps, fusion)
    grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads)
    weight = np.ones_like(mean) if weight is None else weight
    of_dy = (weight * inverse_std(var, eps)).astype(computed_in(x))
    for out, g, scale in tiles(geometry(*x.shape), (dx, dy), (of_dy,)):
        store(out, computed(g) * scale)
