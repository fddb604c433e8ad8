"""The elementwise formulas of docs/numerics.md in plain loops, and their coefficients.

`sums.py` says what this text is, and what its kernels take.  Coefficients are computed in float64
and rounded once, when they are stored: ``coefficients[k, channel]`` has the type that the
arithmetic is done in, which is float32 for data of 16 bits.  A result is rounded to the storage
type when it is written.  An output may be the very memory of an input.

`weights` is None if all weights are 1.  With weights, a value with weight 0 may be filled.
"""

from __future__ import annotations

from typing import Any

from bncore.backends.numba.gradients import inverse_std
from bncore.backends.numba.storage import stored, value
from bncore.backends.numba.weighted import Counted, left_out, line_weights, piece_weights
from bncore.backends.partition import Data, Stat

PLAIN, RELU, LEAKY = 0, 1, 2  # the activation
ADDED, BACKWARD = 1, 2  # what is given besides x, which stands for it if it is not: a residual, dy


# The formulas


def normalized(x: Any, hi: Any, scale: Any, shift: Any) -> Any:
    """Compute y."""
    return (x - hi) * scale + shift


def gradient(dy: Any, x: Any, hi: Any, of_dy: Any, of_x: Any, shift: Any) -> Any:
    """Compute dx (Ioffe & Szegedy 2015, section 3), sorted by what changes from value to value.

    The common factor comes last: in one with the others, invstd squared would leave the range of
    float32 for std beyond 1e19.
    """
    return ((dy + (x - hi) * of_x) + shift) * of_dy


def weighted_gradient(
    dy: Any, x: Any, w: Any, hi: Any, of_dy: Any, of_x: Any, shift: Any, filled: bool, frozen: bool
) -> Any:
    """Compute dx of a value with weight w; if `frozen`, the statistics are constants."""
    if left_out(w, dy, filled):
        return type(hi)(0.0)
    if frozen or w == 0.0:
        return dy * of_dy
    w = type(hi)(w)
    return ((dy + w * ((x - hi) * of_x)) + w * shift) * of_dy


def activated(z: Any, number: Any, slope: Any, kind: int) -> Any:
    """Take `number`, or what the activation leaves of it where z <= 0; `slope` is 0 for relu.

    The comparison is false for NaN, which stays.
    """
    if kind == PLAIN or not z <= 0.0:
        return number
    return number * slope if kind == LEAKY else slope


def filled(number: Any, w: Any, weights: Counted) -> Any:
    """Take the number, or the constant that stands where the weight is 0."""
    return weights.fill if weights.filled and w == 0.0 else number


# Their coefficients; tasks are channels


def normalize_coefficients(
    first: int,
    last: int,
    coefficients: Data,
    mean: Stat,
    var: Stat,
    weight: Stat,
    bias: Stat,
    eps: float,
) -> None:
    """Fill hi, scale and shift of `normalized`.

    `hi` is the mean, rounded.  What the rounding lost moves into the shift, so that centering
    comes before scaling and loses nothing.
    """
    hi, scale, shift = coefficients
    for c in range(first, last):
        hi[c] = mean[c]
        scale[c] = weight[c] * inverse_std(var[c], eps)
        lo = mean[c] - hi[c]
        shift[c] = bias[c] if lo == 0.0 else bias[c] - lo * scale[c]


def gradient_coefficients(
    first: int,
    last: int,
    coefficients: Data,
    mean: Stat,
    var: Stat,
    weight: Stat,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    count: Stat,
    eps: float,
) -> None:
    """Fill hi, of_dy, of_x and shift of `gradient`."""
    hi, of_dy, of_x, shift = coefficients
    for c in range(first, last):
        invstd = inverse_std(var[c], eps)
        constant = -(sum_dy[c] / count[c])
        hi[c] = mean[c]
        of_dy[c] = weight[c] * invstd
        of_x[c] = -invstd * (sum_dy_xhat[c] / count[c])
        lo = mean[c] - hi[c]
        shift[c] = constant if lo == 0.0 else constant - lo * of_x[c]


def scale_coefficients(
    first: int, last: int, coefficients: Data, var: Stat, weight: Stat, eps: float
) -> None:
    """Fill those of dx = dy * scale, the gradient by x where the statistics are constants.

    It is computed by `normalized` with hi = 0 and shift = -0, which change no value and no sign.
    """
    hi, scale, shift = coefficients
    for c in range(first, last):
        hi[c], scale[c], shift[c] = 0.0, weight[c] * inverse_std(var[c], eps), -0.0


# Planes: a run of `inner` values of one channel; tasks are values


def run_weights(weights: Counted, values: Data, at: int, channels: int, inner: int) -> Stat:
    """Give the weights of a part of a run that begins with value `at` of x."""
    run = at // inner
    return piece_weights(
        weights, values, run % channels, inner, run // channels * inner + at % inner
    )


def planes_normalize(
    first: int,
    last: int,
    y: Data,
    x: Data,
    coefficients: Data,
    weights: Counted | None,
    inner: int,
) -> None:
    """Write y of `normalized`."""
    channels = coefficients.shape[1]
    while first < last:
        stop = min((first // inner + 1) * inner, last)
        hi, scale, shift = coefficients[:, first // inner % channels]
        out, values = y[first:stop], x[first:stop]
        if weights is None:
            for i in range(len(out)):
                out[i] = stored(normalized(value(values[i]), hi, scale, shift), out)
        else:
            w = run_weights(weights, values, first, channels, inner)
            for i in range(len(out)):
                number = normalized(value(values[i]), hi, scale, shift)
                out[i] = stored(filled(number, w[i], weights), out)
        first = stop


def planes_grad_input(
    first: int,
    last: int,
    dx: Data,
    dy: Data,
    x: Data,
    coefficients: Data,
    weights: Counted | None,
    frozen: bool,
    inner: int,
) -> None:
    """Write dx of `gradient`, or of `weighted_gradient`."""
    channels = coefficients.shape[1]
    while first < last:
        stop = min((first // inner + 1) * inner, last)
        hi, of_dy, of_x, shift = coefficients[:, first // inner % channels]
        out, grads, values = dx[first:stop], dy[first:stop], x[first:stop]
        if weights is None:
            for i in range(len(out)):
                g, v = value(grads[i]), value(values[i])
                out[i] = stored(gradient(g, v, hi, of_dy, of_x, shift), out)
        else:
            w = run_weights(weights, values, first, channels, inner)
            rest = hi, of_dy, of_x, shift, weights.filled, frozen
            for i in range(len(out)):
                number = weighted_gradient(value(grads[i]), value(values[i]), w[i], *rest)
                out[i] = stored(number, out)
        first = stop


def planes_activate(
    first: int,
    last: int,
    out: Data,
    dy: Data,
    x: Data,
    residual: Data,
    coefficients: Data,
    weights: Counted | None,
    slope: Any,
    kind: int,
    given: int,
    inner: int,
) -> None:
    """Write y + residual, activated; or, given dy, dy by the sign of that sum."""
    channels = coefficients.shape[1]
    while first < last:
        stop = min((first // inner + 1) * inner, last)
        hi, scale, shift = coefficients[:, first // inner % channels]
        grads, values = dy[first:stop], x[first:stop]
        to, added = out[first:stop], residual[first:stop]
        w = None if weights is None else run_weights(weights, values, first, channels, inner)
        for i in range(len(to)):
            z = normalized(value(values[i]), hi, scale, shift)
            if given & ADDED:
                z = z + value(added[i])
            number = value(grads[i]) if given & BACKWARD else z
            number = activated(z, number, slope, kind)
            if weights is not None and w is not None:
                number = filled(number, w[i], weights)
            to[i] = stored(number, to)
        first = stop


# Rows: coefficients repeated to the width of a row; tasks are rows, the last one may be short.
# They are taken by index, since Numba does not know that what iteration gives is contiguous.


def rows_normalize(
    first: int, last: int, y: Data, x: Data, coefficients: Data, weights: Counted | None
) -> None:
    """Write y of `normalized`."""
    hi, scale, shift = coefficients[0], coefficients[1], coefficients[2]
    for left in range(first * len(hi), min(last * len(hi), len(x)), len(hi)):
        out, values = y[left : left + len(hi)], x[left : left + len(hi)]
        if weights is None:
            for j in range(len(out)):
                out[j] = stored(normalized(value(values[j]), hi[j], scale[j], shift[j]), out)
        else:
            w = line_weights(weights, values, 0, len(hi), left // len(hi))
            for j in range(len(out)):
                number = normalized(value(values[j]), hi[j], scale[j], shift[j])
                out[j] = stored(filled(number, w[j], weights), out)


def rows_grad_input(
    first: int,
    last: int,
    dx: Data,
    dy: Data,
    x: Data,
    coefficients: Data,
    weights: Counted | None,
    frozen: bool,
) -> None:
    """Do as `planes_grad_input`."""
    hi, of_dy, of_x = coefficients[0], coefficients[1], coefficients[2]
    shift = coefficients[3]
    for left in range(first * len(hi), min(last * len(hi), len(x)), len(hi)):
        right = left + len(hi)
        out, grads, values = dx[left:right], dy[left:right], x[left:right]
        if weights is None:
            for j in range(len(out)):
                g, v = value(grads[j]), value(values[j])
                out[j] = stored(gradient(g, v, hi[j], of_dy[j], of_x[j], shift[j]), out)
        else:
            w = line_weights(weights, values, 0, len(hi), left // len(hi))
            for j in range(len(out)):
                g, v = value(grads[j]), value(values[j])
                rest = hi[j], of_dy[j], of_x[j], shift[j], weights.filled, frozen
                out[j] = stored(weighted_gradient(g, v, w[j], *rest), out)


def rows_activate(
    first: int,
    last: int,
    out: Data,
    dy: Data,
    x: Data,
    residual: Data,
    coefficients: Data,
    weights: Counted | None,
    slope: Any,
    kind: int,
    given: int,
) -> None:
    """Do as `planes_activate`."""
    hi, scale, shift = coefficients[0], coefficients[1], coefficients[2]
    for left in range(first * len(hi), min(last * len(hi), len(x)), len(hi)):
        right = left + len(hi)
        grads, values = dy[left:right], x[left:right]
        to, added = out[left:right], residual[left:right]
        w = None if weights is None else line_weights(weights, values, 0, len(hi), left // len(hi))
        for j in range(len(to)):
            z = normalized(value(values[j]), hi[j], scale[j], shift[j])
            if given & ADDED:
                z = z + value(added[j])
            number = value(grads[j]) if given & BACKWARD else z
            number = activated(z, number, slope, kind)
            if weights is not None and w is not None:
                number = filled(number, w[j], weights)
            to[j] = stored(number, to)
