"""Elementwise loops of the Numba backend.

Arithmetic is in the type of the data.  An output may be the very memory of an input: every value
is read before it is written.  The last vector of a run ends with it and may overlap the one
before; it is computed first and stored last.  Arrays of data are flat; ``begin`` and ``end``
count their values.
"""

from __future__ import annotations

from bncore.backends.numba_compile import jit
from bncore.backends.numba_lanes import load, splat, store
from bncore.backends.partition import LANES, Data

# Planes: one coefficient for a run of `inner` values


@jit
def planes_normalize(
    begin: int, end: int, y: Data, x: Data, hi: Data, scale: Data, shift: Data, inner: int
) -> None:
    """Write y = (x - hi) * scale + shift."""
    plane = begin // inner
    while begin < end:
        c = plane % len(hi)
        stop = min((plane + 1) * inner, end)
        last = stop - LANES
        if last >= begin:
            center, factor, offset = splat(hi[c]), splat(scale[c]), splat(shift[c])
            end_of_run = (load(x, last) - center) * factor + offset
            for i in range(begin, last, LANES):
                store(y, i, (load(x, i) - center) * factor + offset)
            store(y, last, end_of_run)
        else:
            for i in range(begin, stop):
                y[i] = (x[i] - hi[c]) * scale[c] + shift[c]
        begin = stop
        plane += 1


@jit
def planes_grad_input(
    begin: int,
    end: int,
    dx: Data,
    dy: Data,
    x: Data,
    hi: Data,
    of_dy: Data,
    of_x: Data,
    shift: Data,
    inner: int,
) -> None:
    """Write dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    plane = begin // inner
    while begin < end:
        c = plane % len(hi)
        stop = min((plane + 1) * inner, end)
        last = stop - LANES
        if last >= begin:
            center, offset = splat(hi[c]), splat(shift[c])
            factor_dy, factor_x = splat(of_dy[c]), splat(of_x[c])
            from_x = (load(x, last) - center) * factor_x
            end_of_run = ((load(dy, last) + from_x) + offset) * factor_dy
            for i in range(begin, last, LANES):
                from_x = (load(x, i) - center) * factor_x
                store(dx, i, ((load(dy, i) + from_x) + offset) * factor_dy)
            store(dx, last, end_of_run)
        else:
            for i in range(begin, stop):
                dx[i] = ((dy[i] + (x[i] - hi[c]) * of_x[c]) + shift[c]) * of_dy[c]
        begin = stop
        plane += 1


@jit
def planes_scale(begin: int, end: int, dx: Data, dy: Data, of_dy: Data, inner: int) -> None:
    """Write dx = dy * of_dy."""
    plane = begin // inner
    while begin < end:
        c = plane % len(of_dy)
        stop = min((plane + 1) * inner, end)
        last = stop - LANES
        if last >= begin:
            factor = splat(of_dy[c])
            end_of_run = load(dy, last) * factor
            for i in range(begin, last, LANES):
                store(dx, i, load(dy, i) * factor)
            store(dx, last, end_of_run)
        else:
            for i in range(begin, stop):
                dx[i] = dy[i] * of_dy[c]
        begin = stop
        plane += 1


# Rows: coefficients repeated to the width of a row; begin and end count rows, the last is short


@jit
def rows_normalize(
    begin: int, end: int, y: Data, x: Data, hi: Data, scale: Data, shift: Data
) -> None:
    """Write y = (x - hi) * scale + shift."""
    width = len(hi)
    for left in range(begin * width, min(end * width, len(x)), width):
        columns = min(width, len(x) - left)
        whole = columns - columns % LANES
        for j in range(0, whole, LANES):
            i = left + j
            store(y, i, (load(x, i) - load(hi, j)) * load(scale, j) + load(shift, j))
        for j in range(whole, columns):
            y[left + j] = (x[left + j] - hi[j]) * scale[j] + shift[j]


@jit
def rows_grad_input(
    begin: int,
    end: int,
    dx: Data,
    dy: Data,
    x: Data,
    hi: Data,
    of_dy: Data,
    of_x: Data,
    shift: Data,
) -> None:
    """Write dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    width = len(hi)
    for left in range(begin * width, min(end * width, len(x)), width):
        columns = min(width, len(x) - left)
        whole = columns - columns % LANES
        for j in range(0, whole, LANES):
            i = left + j
            from_x = (load(x, i) - load(hi, j)) * load(of_x, j)
            store(dx, i, ((load(dy, i) + from_x) + load(shift, j)) * load(of_dy, j))
        for j in range(whole, columns):
            i = left + j
            dx[i] = ((dy[i] + (x[i] - hi[j]) * of_x[j]) + shift[j]) * of_dy[j]


@jit
def rows_scale(begin: int, end: int, dx: Data, dy: Data, of_dy: Data) -> None:
    """Write dx = dy * of_dy."""
    width = len(of_dy)
    for left in range(begin * width, min(end * width, len(dy)), width):
        columns = min(width, len(dy) - left)
        whole = columns - columns % LANES
        for j in range(0, whole, LANES):
            store(dx, left + j, load(dy, left + j) * load(of_dy, j))
        for j in range(whole, columns):
            dx[left + j] = dy[left + j] * of_dy[j]
