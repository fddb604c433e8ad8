"""Elementwise loops of the Numba backend.

Arithmetic is in the type of the data.  An output may be the very memory of an input: every value
is read before it is written.  The last vector of a run ends with it and may overlap the one
before; it is computed first and stored last.  Arrays of data are flat; ``begin`` and ``end``
count their values.

``line``: an output too large for the caches is streamed past them in whole vectors that start
`line` values after its own start, or a multiple of LANES later; -1 where it is not.
"""

from __future__ import annotations

from bncore.backends.numba_compile import jit
from bncore.backends.numba_lanes import fence, load, splat, store, stream
from bncore.backends.numba_stream import stream_grad_input, stream_normalize
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
    width = len(hi)
    tiled = (
        min(end, len(x) // width) if line < 0 else begin
    )  # rows that are taken ROW_TILE at a time
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
        columns, j = min(width, len(x) - left), 0
        while j < columns:
            i = left + j
            if j + LANES <= columns and (line < 0 or (i - line) & (LANES - 1) == 0):
                value = (load(x, i) - load(hi, j)) * load(scale, j) + load(shift, j)
                if line < 0:
                    store(y, i, value)
                else:
                    stream(y, i, value)
                j += LANES
            else:
                y[i] = (x[i] - hi[j]) * scale[j] + shift[j]
                j += 1
    if line >= 0:
        fence()


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
    width = len(hi)
    for left in range(begin * width, min(end * width, len(x)), width):
        columns, j = min(width, len(x) - left), 0
        while j < columns:
            i = left + j
            if j + LANES <= columns and (line < 0 or (i - line) & (LANES - 1) == 0):
                from_x = (load(x, i) - load(hi, j)) * load(of_x, j)
                value = ((load(dy, i) + from_x) + load(shift, j)) * load(of_dy, j)
                if line < 0:
                    store(dx, i, value)
                else:
                    stream(dx, i, value)
                j += LANES
            else:
                dx[i] = ((dy[i] + (x[i] - hi[j]) * of_x[j]) + shift[j]) * of_dy[j]
                j += 1
    if line >= 0:
        fence()


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
