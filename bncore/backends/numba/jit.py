"""The algorithm compiled by Numba: what runs where the native extension is absent.

Importing this module imports Numba.  A kernel is compiled on the first call for each type of
data, and its machine code is kept on disk: next to this file, or, where that cannot be written,
in the user's cache directory; ``NUMBA_CACHE_DIR`` names another place.

Work is cut into tasks that no thread shares: segments of channel groups or of column strips, and
stretches of memory.  In planes, a group of channels is summed and then normalized while it is
still in cache.  Which thread does what never changes the order of an addition.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bncore.backends.contract import Fusion
from bncore.backends.numba.activation import (
    ADDED,
    BACKWARD,
    LEAKY,
    PLAIN,
    RELU,
    planes_activate,
    rows_activate,
)
from bncore.backends.numba.elementwise import (
    planes_grad_input,
    planes_normalize,
    planes_scale,
    rows_grad_input,
    rows_normalize,
    rows_scale,
)
from bncore.backends.numba.fused import planes_train, planes_train_backward
from bncore.backends.numba.state import add_parts, merge_parts
from bncore.backends.numba.sums_planes import planes_moments, planes_sums
from bncore.backends.numba.sums_rows import STRIP, rows_moments, rows_sums
from bncore.backends.numba.threads import spread, useful
from bncore.backends.numpy import reference as numpy_reference
from bncore.backends.partition import (
    LANES,
    Data,
    Planes,
    Rows,
    Stat,
    geometry,
    gradient_coefficients,
    inverse_std,
    normalize_coefficients,
    unfused_gradient,
)

name = "numba"

CACHE = 3 << 18  # bytes of a channel group that stay in cache from the sums to the second read
RUN = 3 << 13  # bytes of one image of a group: enough for the prefetcher
GROUP = 32  # most channels of a group: their lanes fit in the first-level cache
STREAMED = 24 << 20  # bytes of output and input together from which the output passes the caches
BALANCE = 4  # groups per thread that keep all threads busy to the end


def _shape(x: Data) -> Planes | Rows | None:
    """Choose the geometry; None where a row is shorter than a vector: the NumPy twin does those.

    They are small: so few columns are folded into wider rows wherever there are rows enough.
    """
    geo = geometry(*x.shape)
    return None if isinstance(geo, Rows) and geo.width < LANES else geo


def _group(geo: Planes, threads: int, value_bytes: int) -> int:
    """Choose how many channels a task takes."""
    fits = CACHE // (geo.count * value_bytes)
    wide = -(-RUN // (geo.inner * value_bytes))
    fair = geo.channels if threads == 1 else geo.channels // (BALANCE * threads)
    return max(1, min(max(fits, wide, 1), GROUP, fair))


def _columns(values: Data, geo: Rows, line: int = -1) -> Data:
    """Repeat per-channel values to the width of a row; a streamed one goes round the corner."""
    if not geo.repeat == geo.inner == 1:
        values = np.tile(values.repeat(geo.inner), geo.repeat)
    return values if line < 0 else np.concatenate([values, values[:LANES]])


def _first_line(geo: Planes | Rows, out: Data, *inputs: Data) -> int:
    """Find the value of `out` that starts its first line, or -1 where it is not to be streamed.

    Rows are never shorter than a vector here: see `_shape`.
    """
    in_place = any(out.ctypes.data == array.ctypes.data for array in inputs)
    if in_place or out.nbytes * (1 + len(inputs)) < STREAMED:
        return -1
    line = LANES * out.itemsize
    return int(-out.ctypes.data % line) // out.itemsize


def _is_fused(geo: Planes | Rows, threads: int) -> bool:
    """Tell whether channels alone feed the threads, so that a group can stay in cache."""
    return isinstance(geo, Planes) and (threads == 1 or geo.channels >= BALANCE * threads)


def _normalized(
    y: Data, x: Data, geo: Planes | Rows, coefficients: tuple[Data, ...], threads: int
) -> None:
    line = _first_line(geo, y, x)
    if isinstance(geo, Planes):
        spread(threads, x.size, planes_normalize, y, x, *coefficients, geo.inner, line)
    else:
        wide = (_columns(c, geo, line) for c in coefficients)
        spread(threads, geo.rows, rows_normalize, y, x, *wide, line)


@np.errstate(all="ignore")
def moments(mean: Stat, m2: Stat, x: Data, n_threads: int) -> None:
    """Write the mean of every channel, and the sum of squares about it."""
    geo = _shape(x)
    if geo is None:
        numpy_reference.moments(mean, m2, x, n_threads)
        return
    threads, flat = useful(n_threads, x.size), x.reshape(-1)
    if isinstance(geo, Planes):
        group = _group(geo, threads, x.itemsize)
        parts = np.empty((geo.n_segments, 4, geo.channels))
        tasks = geo.n_segments * -(-geo.channels // group)
        spread(threads, tasks, planes_moments, parts, flat, geo.inner, geo.segment_len, group)
        merge_parts(mean, m2, parts, 1, 0, geo.channels)
    else:
        parts = np.empty((geo.n_segments, 4, geo.width))
        tasks = geo.n_segments * max(geo.width // STRIP, 1)
        spread(threads, tasks, rows_moments, parts, flat, geo.segment_rows)
        merge_parts(mean, m2, parts, geo.inner, 0, geo.channels)


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
    geo = _shape(x)
    if geo is None:
        numpy_reference.grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads)
        return
    threads, flat = useful(n_threads, x.size), (dy.reshape(-1), x.reshape(-1))
    if isinstance(geo, Planes):
        group = _group(geo, threads, 2 * x.itemsize)
        parts = np.empty((geo.n_segments, 2, geo.channels))
        tasks = geo.n_segments * -(-geo.channels // group)
        fixed = (geo.inner, geo.segment_len, group)
        spread(threads, tasks, planes_sums, parts, *flat, mean, *fixed)
        add_parts(sum_dy, sum_dy_xhat, parts, 1, 0, geo.channels)
    else:
        parts = np.empty((geo.n_segments, 2, geo.width))
        tasks = geo.n_segments * max(geo.width // STRIP, 1)
        spread(threads, tasks, rows_sums, parts, *flat, _columns(mean, geo), geo.segment_rows)
        add_parts(sum_dy, sum_dy_xhat, parts, geo.inner, 0, geo.channels)
    sum_dy_xhat *= inverse_std(var, eps)


def _ones(weight: Stat | None, like: Stat) -> Stat:
    return np.ones_like(like) if weight is None else weight


def _zeros(bias: Stat | None, like: Stat) -> Stat:
    return np.zeros_like(like) if bias is None else bias


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
    geo = _shape(x)
    if geo is None:
        numpy_reference.normalize(y, x, mean, var, weight, bias, eps, n_threads, fusion)
        return
    hi, scale, shift = np.empty((3, len(mean)), x.dtype)
    invstd = inverse_std(var, eps)
    normalize_coefficients(hi, scale, shift, mean, invstd, _ones(weight, mean), _zeros(bias, mean))
    if fusion is not None:
        _activate(y, None, x, fusion, (hi, scale, shift), n_threads)
        return
    threads = useful(n_threads, x.size)
    _normalized(y.reshape(-1), x.reshape(-1), geo, (hi, scale, shift), threads)


def _activate(
    out: Data,
    dy: Data | None,
    x: Data,
    fusion: Fusion,
    coefficients: tuple[Data, ...],
    n_threads: int,
) -> None:
    """Do as `numpy_reference.activate`."""
    geo, threads = _shape(x), useful(n_threads, x.size)
    if geo is None:
        numpy_reference.activate(out, dy, x, fusion, coefficients)
        return
    kinds = {None: PLAIN, "relu": RELU, "leaky_relu": LEAKY}
    value, residual = x if dy is None else dy, x if fusion.residual is None else fusion.residual
    given = (0 if dy is None else BACKWARD) + (0 if fusion.residual is None else ADDED)
    flat = tuple(a.reshape(-1) for a in (out, value, x, residual))
    rest = (np.array([fusion.slope, 0.0], x.dtype), kinds[fusion.activation], given)
    if isinstance(geo, Planes):
        spread(threads, x.size, planes_activate, *flat, *coefficients, *rest, geo.inner)
    else:
        wide = (_columns(c, geo) for c in coefficients)
        spread(threads, geo.rows, rows_activate, *flat, *wide, *rest)


@np.errstate(all="ignore")
def grad_input(
    dx: Data,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    count: float,
    weight: Stat | None,
    eps: float,
    n_threads: int,
) -> None:
    """Write ``dx = weight * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count)``."""
    geo = _shape(x)
    sums = (sum_dy, sum_dy_xhat, count)
    if geo is None:
        numpy_reference.grad_input(dx, dy, x, mean, var, *sums, weight, eps, n_threads)
        return
    coefficients = hi, of_dy, of_x, shift = tuple(np.empty((4, len(mean)), x.dtype))
    invstd = inverse_std(var, eps)
    gradient_coefficients(hi, of_dy, of_x, shift, mean, invstd, _ones(weight, mean), *sums)
    threads = useful(n_threads, x.size)
    flat = (dx.reshape(-1), dy.reshape(-1), x.reshape(-1))
    line = _first_line(geo, *flat)
    if isinstance(geo, Planes):
        spread(threads, x.size, planes_grad_input, *flat, *coefficients, geo.inner, line)
    else:
        wide = (_columns(c, geo, line) for c in coefficients)
        spread(threads, geo.rows, rows_grad_input, *flat, *wide, line)


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
    """Normalize x by its own moments, and write these."""
    geo, threads = _shape(x), useful(n_threads, x.size)
    if geo is None or fusion is not None or not _is_fused(geo, threads):
        moments(mean, m2, x, n_threads)
        normalize(y, x, mean, m2 / (x.size // len(mean)), weight, bias, eps, n_threads, fusion)
        return
    assert isinstance(geo, Planes)
    group = _group(geo, threads, x.itemsize)
    spread(
        threads,
        -(-geo.channels // group),
        planes_train,
        y.reshape(-1),
        mean,
        m2,
        x.reshape(-1),
        _ones(weight, mean),
        _zeros(bias, mean),
        eps,
        np.empty((geo.n_segments, 4, geo.channels)),
        *np.empty((3, geo.channels), x.dtype),
        geo.inner,
        geo.segment_len,
        group,
        _first_line(geo, y, x),
    )


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
    activate = partial(_activate, n_threads=n_threads)
    dy = unfused_gradient(dx, dy, x, mean, var, weight, eps, fusion, activate)
    geo, threads = _shape(x), useful(n_threads, x.size)
    if geo is None or not _is_fused(geo, threads):
        sums = (sum_dy, sum_dy_xhat)
        grad_sums(*sums, dy, x, mean, var, eps, n_threads)
        count = float(x.size // len(mean))
        grad_input(dx, dy, x, mean, var, *sums, count, weight, eps, n_threads)
        return
    assert isinstance(geo, Planes)
    group = _group(geo, threads, 2 * x.itemsize)
    spread(
        threads,
        -(-geo.channels // group),
        planes_train_backward,
        dx.reshape(-1),
        sum_dy,
        sum_dy_xhat,
        dy.reshape(-1),
        x.reshape(-1),
        mean,
        inverse_std(var, eps),
        _ones(weight, mean),
        np.empty((geo.n_segments, 2, geo.channels)),
        *np.empty((4, geo.channels), x.dtype),
        geo.inner,
        geo.segment_len,
        group,
        _first_line(geo, dx, dy, x),
    )


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
    """Write the gradients of `normalize` by given statistics, which are constants."""
    activate = partial(_activate, n_threads=n_threads)
    dy = unfused_gradient(dx, dy, x, mean, var, weight, eps, fusion, activate)
    geo, threads = _shape(x), useful(n_threads, x.size)
    if geo is None:
        numpy_reference.infer_backward(
            dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight, eps, n_threads
        )
        return
    grad_sums(sum_dy, sum_dy_xhat, dy, x, mean, var, eps, n_threads)
    of_dy = (_ones(weight, mean) * inverse_std(var, eps)).astype(x.dtype)
    flat = (dx.reshape(-1), dy.reshape(-1))
    if isinstance(geo, Planes):
        spread(threads, x.size, planes_scale, *flat, of_dy, geo.inner)
    else:
        spread(threads, geo.rows, rows_scale, *flat, _columns(of_dy, geo))
