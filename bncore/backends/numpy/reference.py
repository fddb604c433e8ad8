"""The algorithm in NumPy: the backend if there is neither the native extension nor Numba.

It gives the same bits as the specification in `bncore.backends.numba`, because it does the same
operations in the same order, but on whole arrays at a time.  The sums are in `statistics.py`.

It works on tiles of at most about `TILE` values, so no temporary array grows with x.  The only
exception is a fused backward that has no output in which to store the masked gradient.  `n_threads`
is accepted and not used.  NaN and Inf give no warning.
"""

from __future__ import annotations

import numpy as np

from bncore.backends import contract
from bncore.backends.contract import Fusion
from bncore.backends.integers import moments_of_blocks, normalize_blocks
from bncore.backends.numpy.gradients import (
    add_columns,
    planes_grad_sums,
    rows_grad_sums,
    scaled,
    sum_mean,
)
from bncore.backends.numpy.order import channel_groups, column_strips
from bncore.backends.numpy.statistics import (
    Partial,
    merge_columns,
    planes_moments,
    rows_moments,
    sums_about_0,
)
from bncore.backends.numpy.storage import computed, store
from bncore.backends.numpy.tiles import tiles
from bncore.backends.numpy.weights import Weights
from bncore.backends.partition import (
    Data,
    Planes,
    Stat,
    computed_in,
    geometry,
    gradient_fill,
    in_chains,
    unfused_gradient,
)

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
def moments(
    mean: Stat,
    m2: Stat,
    x: Data,
    n_threads: int,
    float64_sums: bool = False,
    weights: contract.Weights | None = None,
) -> None:
    """Write the mean of every channel, and the sum of squared deviations from it."""
    group_moments(mean, m2, x, 1, float64_sums, weights)


@np.errstate(all="ignore")
def group_moments(
    mean: Stat,
    m2: Stat,
    x: Data,
    wide: int,
    float64_sums: bool = False,
    weights: contract.Weights | None = None,
) -> None:
    """Write those of groups of `wide` channels, which are merged in the order of the channels."""
    if float64_sums and sums_about_0(x):
        x = x.astype(np.float64)  # whose sums are never about 0
    geo, chained = geometry(*x.shape), in_chains(x, float64_sums)
    w = Weights.of(weights, x, geo)
    count = np.empty_like(mean) if weights is None else weights.count
    if isinstance(geo, Planes):
        planes = x.reshape(geo.outer, geo.channels, geo.inner)
        columns = Partial(*np.empty((4, geo.channels)))
        for group in channel_groups(geo):
            w_group = None if w is None else w.of_group(group)
            columns[group] = planes_moments(planes[:, group], geo, chained, w_group)
    else:
        columns = Partial(*np.empty((4, geo.width)))
        for strip, rows in column_strips(geo):
            columns[strip] = rows_moments(x.reshape(-1), geo, strip, rows, chained, w)
    total = merge_columns(columns, geo, wide)
    count[:], mean[:], m2[:] = total.n, total.pivot + total.offset, total.m2
    mean[count == 0.0] = np.nan


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
    weights: contract.Weights | None = None,
) -> None:
    """Write sum(dy) and sum(dy * xhat) of every channel."""
    geo, chained = geometry(*x.shape), in_chains(x)
    w = Weights.of(weights, x, geo)
    invstd, centre = inverse_std(var, eps), sum_mean(mean, var, x)
    if isinstance(geo, Planes):
        shape = geo.outer, geo.channels, geo.inner
        for group in channel_groups(geo):
            g, values = dy.reshape(shape)[:, group], x.reshape(shape)[:, group]
            w_group = None if w is None else w.of_group(group)
            sum_dy[group], sum_dy_xhat[group] = planes_grad_sums(
                g, values, centre[group], invstd[group], geo, chained, w_group
            )
    else:
        centres, invstds = (np.tile(v.repeat(geo.inner), geo.repeat) for v in (centre, invstd))
        a, b = np.empty((2, geo.width))
        for strip, rows in column_strips(geo):
            g, values = dy.reshape(-1), x.reshape(-1)
            a[strip], b[strip] = rows_grad_sums(
                g, values, centres[strip], invstds[strip], geo, strip, rows, chained, w
            )
        sum_dy[:], sum_dy_xhat[:] = add_columns(a, geo), add_columns(b, geo)
    sum_dy_xhat[:] = scaled(sum_dy_xhat, sum_dy, mean, centre, invstd, chained)


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
    weights: contract.Weights | None = None,
) -> None:
    """Write ``y = weight * (x - mean) / sqrt(var + eps) + bias``."""
    coefficients = normalize_coefficients(x, mean, var, weight, bias, eps)
    if fusion is not None:
        activate(y, None, x, fusion, coefficients, weights)
        return
    geo = geometry(*x.shape)
    w = Weights.of(weights, x, geo)
    for out, value, hi, scale, shift, given in tiles(geo, (y, x), coefficients, w):
        numbers = computed(value)
        result = (numbers - hi) * scale + shift
        store(out, result if w is None else w.filled(given, numbers, result))


def integer_moments(mean: Stat, m2: Stat, x: Data, n_threads: int) -> None:
    """Write the exact mean and m2 of every channel, each rounded once."""
    moments_of_blocks(mean, m2, x)


@np.errstate(all="ignore")
def integer_normalize(
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
    normalize_blocks(normalize, y, x, mean, var, weight, bias, eps, n_threads, fusion)


def activate(
    out: Data,
    dy: Data | None,
    x: Data,
    fusion: Fusion,
    coefficients: tuple[Data, ...],
    weights: contract.Weights | None,
) -> None:
    """Write the activation of z = (x - hi) * scale + shift + residual, or dy masked by z's sign."""
    arrays = (out, x, *(a for a in (dy, fusion.residual) if a is not None))
    geo = geometry(*x.shape)
    w = Weights.of(weights, x, geo)
    for tile in tiles(geo, arrays, coefficients, w):
        to, value, *rest = tile[: len(arrays)]
        hi, scale, shift, given = tile[len(arrays) :]
        numbers = computed(value)
        z = (numbers - hi) * scale + shift
        if fusion.residual is not None:
            z += computed(rest[-1])
        result = activated(fusion, z, z if dy is None else computed(rest[0]))
        store(to, result if w is None else w.filled(given, numbers, result))


def masked(
    dx: Data,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    eps: float,
    fusion: Fusion | None,
    weights: contract.Weights | None,
) -> Data:
    """Return the gradient with respect to z, which replaces dy."""
    zeros = gradient_fill(weights)

    def activate_dy(out: Data, dy: Data, fusion: Fusion) -> None:
        coefficients = normalize_coefficients(x, mean, var, weight, fusion.bias, eps)
        activate(out, dy, x, fusion, coefficients, zeros)

    return unfused_gradient(dx, dy, x, fusion, activate_dy, zeros is not None)


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
    weights: contract.Weights | None = None,
) -> None:
    """Write ``dx = weight * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count)``."""
    hi, of_dy, of_x, shift = np.empty((4, len(mean)), computed_in(x))
    weight = np.ones_like(mean) if weight is None else weight
    invstd = inverse_std(var, eps)
    gradient_coefficients(hi, of_dy, of_x, shift, mean, invstd, weight, sum_dy, sum_dy_xhat, count)
    geo = geometry(*x.shape)
    w = Weights.of(weights, x, geo)
    for tile in tiles(geo, (dx, dy, x), (hi, of_dy, of_x, shift), w):
        out, g, value, hi, of_dy, of_x, shift, given = tile
        numbers = computed(value)
        from_x = (numbers - hi) * of_x
        if w is None:
            store(out, ((computed(g) + from_x) + shift) * of_dy)
        else:
            counted = w.counted(given, numbers)
            store(out, weighted_gradient(w, counted, computed(g), from_x, of_dy, shift))


def weighted_gradient(
    weights: Weights, counted: Stat, g: Data, from_x: Data, of_dy: Data, shift: Data
) -> Data:
    """Return dx of weighted values: 0 if left out, and g * of_dy for others that do not count."""
    w = counted.astype(g.dtype)
    dx = ((g + w * from_x) + w * shift) * of_dy
    dx = np.where(counted == 0.0, g * of_dy, dx)
    return np.where(weights.left_out(counted, g), g.dtype.type(0.0), dx)


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
    weights: contract.Weights | None = None,
) -> None:
    """Normalize x by its own moments, and write the moments."""
    moments(mean, m2, x, n_threads, False, weights)
    var = m2 / (x.size // len(mean) if weights is None else weights.count)
    normalize(y, x, mean, var, weight, bias, eps, n_threads, fusion, weights)


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
    weights: contract.Weights | None = None,
) -> None:
    """Write the gradients of `train`."""
    dy = masked(dx, dy, x, mean, var, weight, eps, fusion, weights)
    grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads, weights)
    plain = np.full(len(mean), float(x.size // len(mean)))
    sums = sum_dy, sum_dy_xhat, plain if weights is None else weights.count
    grad_input(dx, dy, x, mean, var, *sums, weight, eps, n_threads, weights)


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
    weights: contract.Weights | None = None,
) -> None:
    """Write the gradients of `normalize` with given statistics, which are constants."""
    dy = masked(dx, dy, x, mean, var, weight, eps, fusion, weights)
    grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads, weights)
    weight = np.ones_like(mean) if weight is None else weight
    of_dy = (weight * inverse_std(var, eps)).astype(computed_in(x))
    geo = geometry(*x.shape)
    w = Weights.of(weights, x, geo)
    for out, g, value, scale, given in tiles(geo, (dx, dy, x), (of_dy,), w):
        slope = computed(g)
        result = slope * scale
        if w is not None:
            counted = w.counted(given, computed(value))
            result = np.where(w.left_out(counted, slope), slope.dtype.type(0.0), result)
        store(out, result)
