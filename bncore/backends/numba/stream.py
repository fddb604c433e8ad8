"""Planes and rows whose output passes the caches, for the Numba backend.

Planes follow each other in memory, so only the first and the last line of a stretch are shared with
others.  A line in which two planes meet is computed with the coefficients of both, lane by lane.
"""

from __future__ import annotations

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import choose, fence, load, splat, stream
from bncore.backends.partition import LANES, Data


@jit
def whole_lines(begin: int, end: int, line: int) -> tuple[int, int]:
    """Find the first and the end of the vectors within begin to end that start where a line does.

    Where there is none, both are `begin`.
    """
    first = begin + ((line - begin) & (LANES - 1))
    if first + LANES > end:
        return begin, begin
    return first, end - (end - first) % LANES


@jit
def stream_normalize(
    begin: int,
    end: int,
    y: Data,
    x: Data,
    hi: Data,
    scale: Data,
    shift: Data,
    inner: int,
    line: int,
) -> tuple[int, int]:
    """Write the whole lines of y = (x - hi) * scale + shift, and by ordinary stores what is before.

    Returns the range behind them, which is left to the caller.
    """
    i, behind = whole_lines(begin, end, line)
    for k in range(begin, i):
        c = k // inner % len(hi)
        y[k] = (x[k] - hi[c]) * scale[c] + shift[c]
    plane = i // inner
    while i < behind:
        stop = min((plane + 1) * inner, behind)
        c = plane % len(hi)
        center, factor, offset = splat(hi[c]), splat(scale[c]), splat(shift[c])
        while i + LANES <= stop:
            stream(y, i, (load(x, i) - center) * factor + offset)
            i += LANES
        plane += 1
        if i < stop:
            c = plane % len(hi)
            value = (load(x, i) - center) * factor + offset
            center, factor, offset = splat(hi[c]), splat(scale[c]), splat(shift[c])
            other = (load(x, i) - center) * factor + offset
            stream(y, i, choose(value, other, i + LANES - stop))
            i += LANES
    fence()
    return behind, end


@jit
def stream_grad_input(
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
) -> tuple[int, int]:
    """Do as `stream_normalize` for dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    i, behind = whole_lines(begin, end, line)
    for k in range(begin, i):
        c = k // inner % len(hi)
        dx[k] = ((dy[k] + (x[k] - hi[c]) * of_x[c]) + shift[c]) * of_dy[c]
    plane = i // inner
    while i < behind:
        stop = min((plane + 1) * inner, behind)
        c = plane % len(hi)
        center, offset = splat(hi[c]), splat(shift[c])
        factor_dy, factor_x = splat(of_dy[c]), splat(of_x[c])
        while i + LANES <= stop:
            from_x = (load(x, i) - center) * factor_x
            stream(dx, i, ((load(dy, i) + from_x) + offset) * factor_dy)
            i += LANES
        plane += 1
        if i < stop:
            c = plane % len(hi)
            from_x = (load(x, i) - center) * factor_x
            value = ((load(dy, i) + from_x) + offset) * factor_dy
            center, offset = splat(hi[c]), splat(shift[c])
            factor_dy, factor_x = splat(of_dy[c]), splat(of_x[c])
            from_x = (load(x, i) - center) * factor_x
            other = ((load(dy, i) + from_x) + offset) * factor_dy
            stream(dx, i, choose(value, other, i + LANES - stop))
            i += LANES
    fence()
    return behind, end


# Rows: coefficients repeated to the width of a row, and the first LANES of them once more


@jit
def stream_rows_normalize(
    begin: int, end: int, y: Data, x: Data, hi: Data, scale: Data, shift: Data, line: int
) -> None:
    """Write the values begin to end of y = (x - hi) * scale + shift; begin starts a row."""
    width = len(hi) - LANES
    i, behind = whole_lines(begin, end, line)
    for k in range(begin, i):
        j = (k - begin) % width
        y[k] = (x[k] - hi[j]) * scale[j] + shift[j]
    j = (i - begin) % width
    while i < behind:
        stream(y, i, (load(x, i) - load(hi, j)) * load(scale, j) + load(shift, j))
        i += LANES
        j += LANES
        if j >= width:
            j -= width
    for k in range(i, end):
        j = (k - begin) % width
        y[k] = (x[k] - hi[j]) * scale[j] + shift[j]
    fence()


@jit
def stream_rows_grad_input(
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
    """Do as `stream_rows_normalize` for dx = ((dy + (x - hi) * of_x) + shift) * of_dy."""
    width = len(hi) - LANES
    i, behind = whole_lines(begin, end, line)
    for k in range(begin, i):
        j = (k - begin) % width
        dx[k] = ((dy[k] + (x[k] - hi[j]) * of_x[j]) + shift[j]) * of_dy[j]
    j = (i - begin) % width
    while i < behind:
        from_x = (load(x, i) - load(hi, j)) * load(of_x, j)
        stream(dx, i, ((load(dy, i) + from_x) + load(shift, j)) * load(of_dy, j))
        i += LANES
        j += LANES
        if j >= width:
            j -= width
    for k in range(i, end):
        j = (k - begin) % width
        dx[k] = ((dy[k] + (x[k] - hi[j]) * of_x[j]) + shift[j]) * of_dy[j]
    fence()
