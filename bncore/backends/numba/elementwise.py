"""Elementwise loops of the Numba backend.

Arithmetic is in the type of the data.  An output may be the very memory of an input: every value
is read before it is written.  The last vector of a run ends with it and may overlap the one
before; it is computed first and stored last.  Arrays of data are flat; ``begin`` and ``end``
count their values.

``line``: an output too large for the caches is streamed past them in whole vectors that start
`line` values after its own start, or a multiple of LANES later; -1 where it is not.
"""

from __future__ import annotations

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import load, splat, store
from bncore.backends.numba.stream import (
    stream_grad_input,
    stream_normalize,
    stream_rows_grad_input,
    stream_rows_normalize,
)
from bncore.backends.partition import LANES, Data

ROW_TILE = 4  # rows at a time: their coefficients are loaded once


# Planes: one coefficient for a run of `inner` values


@jit
def planes_normalize(
    begin: int,
    end: int,
    y: Data,
    x: Data,
    hi: Data,
    scale: Data,
    shift: Data,
    inner: int,
    line: int,
) -> None:
    """Write y = (x - hi) * scale + shift."""
    if line >= 0:
        begin, end = stream_normalize(begin, end, y, x, hi, scale, shift, inner, line)
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
    line: int,
) -> None:
    """Write dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    if line >= 0:
        begin, end = stream_grad_input(begin, end, dx, dy, x, hi, of_dy, of_x, shift, inner, line)
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
    begin: int, end: int, y: Data, x: Data, hi: Data, scale: Data, shift: Data, line: int
) -> None:
    """Write y = (x - hi) * scale + shift."""
    if line >= 0:
        width = len(hi) - LANES
        stop = min(end * width, len(x))
        stream_rows_normalize(begin * width, stop, y, x, hi, scale, shift, line)
        return
    width = len(hi)
    tiled = min(end, len(x) // width)  # up to it ROW_TILE rows at a time
    tiled -= (tiled - begin) % ROW_TILE
    whole = width - width % LANES
    for left in range(begin * width, tiled * width, ROW_TILE * width):
        for j in range(0, whole, LANES):
            center, factor, offset = load(hi, j), load(scale, j), load(shift, j)
            for i in range(left + j, left + j + ROW_TILE * width, width):
                store(y, i, (load(x, i) - center) * factor + offset)
        for j in range(whole, width):
            for i in range(left + j, left + j + ROW_TILE * width, width):
                y[i] = (x[i] - hi[j]) * scale[j] + shift[j]
    for left in range(tiled * width, min(end * width, len(x)), width):
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
    line: int,
) -> None:
    """Write dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    if line >= 0:
        width = len(hi) - LANES
        stop = min(end * width, len(x))
        stream_rows_grad_input(begin * width, stop, dx, dy, x, hi, of_dy, of_x, shift, line)
        return
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
