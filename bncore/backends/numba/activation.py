"""Loops of the Numba backend for what is fused with batch norm.

They write z = (x - hi) * scale + shift, plus the residual, activated; or, in backward, dy by the
sign of z.  Arrays of data are flat, as in `numba_elementwise`; `value` is dy in backward.  x stands
for what is not there.
"""

from __future__ import annotations

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import load, positive, splat, store
from bncore.backends.partition import LANES, Data

PLAIN, RELU, LEAKY = 0, 1, 2  # the activation
ADDED, BACKWARD = 1, 2  # what is there: a residual, dy


@jit
def planes_activate(
    begin: int,
    end: int,
    to: Data,
    value: Data,
    x: Data,
    residual: Data,
    hi: Data,
    scale: Data,
    shift: Data,
    slopes: Data,
    kind: int,
    given: int,
    inner: int,
) -> None:
    """Planes: one coefficient for a run of `inner` values; `slopes` holds the slope and 0."""
    plane = begin // inner
    slope, zero = slopes[0], slopes[1]
    wide_slope, wide_zero = splat(slope), splat(zero)
    while begin < end:
        c = plane % len(hi)
        stop = min((plane + 1) * inner, end)
        whole = stop - (stop - begin) % LANES
        center, factor, offset = splat(hi[c]), splat(scale[c]), splat(shift[c])
        for i in range(begin, whole, LANES):
            z = (load(x, i) - center) * factor + offset
            if given & ADDED:
                z = z + load(residual, i)
            v = load(value, i) if given & BACKWARD else z
            if kind != PLAIN:
                v = positive(z, v, v * wide_slope if kind == LEAKY else wide_zero)
            store(to, i, v)
        for i in range(whole, stop):
            z1 = (x[i] - hi[c]) * scale[c] + shift[c]
            if given & ADDED:
                z1 = z1 + residual[i]
            v1 = value[i] if given & BACKWARD else z1
            if kind != PLAIN and z1 <= zero:
                v1 = v1 * slope if kind == LEAKY else zero
            to[i] = v1
        begin = stop
        plane += 1


@jit
def rows_activate(
    begin: int,
    end: int,
    to: Data,
    value: Data,
    x: Data,
    residual: Data,
    hi: Data,
    scale: Data,
    shift: Data,
    slopes: Data,
    kind: int,
    given: int,
) -> None:
    """Rows: coefficients repeated to the width of a row; begin and end count rows."""
    width = len(hi)
    slope, zero = slopes[0], slopes[1]
    wide_slope, wide_zero = splat(slope), splat(zero)
    for left in range(begin * width, min(end * width, len(x)), width):
        columns = min(width, len(x) - left)
        whole = columns - columns % LANES
        for j in range(0, whole, LANES):
            i = left + j
            z = (load(x, i) - load(hi, j)) * load(scale, j) + load(shift, j)
            if given & ADDED:
                z = z + load(residual, i)
            v = load(value, i) if given & BACKWARD else z
            if kind != PLAIN:
                v = positive(z, v, v * wide_slope if kind == LEAKY else wide_zero)
            store(to, i, v)
        for j in range(whole, columns):
            i = left + j
            z1 = (x[i] - hi[j]) * scale[j] + shift[j]
            if given & ADDED:
                z1 = z1 + residual[i]
            v1 = value[i] if given & BACKWARD else z1
            if kind != PLAIN and z1 <= zero:
                v1 = v1 * slope if kind == LEAKY else zero
            to[i] = v1
