"""The algorithm of docs/numerics.md once more: one value at a time, in plain Python.

It shares no line with the backends, not even the constants, and is as slow as it is plain.
Every function takes arrays of shape (outer, channels, inner) and follows one channel, or one
virtual column, from its first value to its last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def plan(outer: int, channels: int, inner: int) -> tuple[str, tuple[int, int, int]]:
    if channels == 1:
        outer, inner = 1, outer * inner
    return ("planes" if inner >= 16 else "rows"), (outer, channels, inner)


def plane_blocks(outer: int, inner: int) -> Iterator[list[list[list[int]]]]:
    """Per segment its blocks, per block its pieces, per piece the numbers of its values."""
    n = outer * inner
    parts = min(max(n // 32768, 1), 64)
    seg_len = math.ceil(math.ceil(n / parts) / 4096) * 4096
    for k in range(parts):
        begin, end = k * seg_len, min(n, (k + 1) * seg_len)
        if begin >= end:
            continue
        blocks, block, pending, e = [], [], 0, begin
        while e < end:
            length = min(inner - e % inner, end - e, 4096)
            block.append(list(range(e, e + length)))
            pending += length
            e += length
            if pending >= 4096 or e == end:
                blocks.append(block)
                block, pending = [], 0
        yield blocks


def row_plan(outer: int, channels: int, inner: int) -> tuple[int, list[tuple[int, int]]]:
    """Columns of the virtual matrix, and its segments of rows."""
    base = channels * inner
    repeat = 1
    if base <= 256:
        repeat = 16 // math.gcd(16, base)
        while repeat * base < 64:
            repeat *= 2
    if outer < 8 * repeat:
        repeat = 1
    rows = outer // repeat + (outer % repeat > 0)
    blocks = math.ceil(rows / 256)
    seg_rows = math.ceil(blocks / min(blocks, 64)) * 256
    return repeat * base, [(r, min(rows, r + seg_rows)) for r in range(0, rows, seg_rows)]


def fold(lanes: list[float]) -> float:
    for w in (8, 4, 2, 1):
        for j in range(w):
            lanes[j] += lanes[j + w]
    return lanes[0]


def lane(i: int, length: int) -> int:
    rest = length % 16
    return i % 16 if i < length - rest else 16 - rest + (i - (length - rest))


def pivot(values: list[float]) -> float:
    total = 0.0
    for v in values[1:]:
        total += v - values[0]
    p = values[0] + total / len(values)
    return p if math.isfinite(p) else 0.0


class Running:
    def __init__(self, first: list[float]) -> None:
        self.n, self.p, self.s, self.q = 0.0, pivot(first), 0.0, 0.0

    def flush(self, s: float, q: float, nb: int) -> None:
        self.s += s
        self.q += q
        self.n += float(nb)
        p2 = self.p + self.s / self.n
        if not math.isfinite(p2):
            return
        t = p2 - self.p
        nt = self.n * t
        self.q = self.q - t * (2.0 * self.s - nt)
        if self.q < 0:
            self.q = 0.0
        self.s = self.s - nt
        self.p = p2

    def close(self) -> tuple[float, float, float, float]:
        o = self.s / self.n
        m2 = self.q - self.s * o
        return self.n, self.p, o, 0.0 if m2 < 0 else m2


EMPTY = (0.0, 0.0, 0.0, 0.0)


def merge(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    n_a, p_a, o_a, m_a = a
    n_b, p_b, o_b, m_b = b
    if n_b == 0:
        return a
    if n_a == 0:
        return b
    delta = (p_b - p_a) + (o_b - o_a)
    nn = n_a + n_b
    r = n_b / nn
    return nn, p_a, o_a + delta * r, (m_a + m_b) + (delta * delta) * (n_a * r)


def moments(x: np.ndarray) -> tuple[list[float], list[float]]:
    kind, shape = plan(*x.shape)
    outer, channels, inner = shape
    if x.size == 0:
        return [0.0] * channels, [0.0] * channels
    totals = [EMPTY] * channels
    if kind == "planes":
        for c in range(channels):
            values = [float(v) for v in x.reshape(shape)[:, c].ravel()]
            for blocks in plane_blocks(outer, inner):
                first = blocks[0][0][:16]
                state = Running([values[e] for e in first])
                for block in blocks:
                    s, q = [0.0] * 16, [0.0] * 16
                    for piece in block:
                        for i, e in enumerate(piece):
                            d = values[e] - state.p
                            s[lane(i, len(piece))] += d
                            q[lane(i, len(piece))] += d * d
                    state.flush(fold(s), fold(q), sum(map(len, block)))
                totals[c] = merge(totals[c], state.close())
    else:
        flat = [float(v) for v in x.ravel()]
        width, segments = row_plan(*shape)
        for j in range(width):
            column = flat[j::width]
            total = EMPTY
            for begin, end in segments:
                part = column[begin:end]
                if not part:
                    continue
                state = Running(part[:8])
                for r in range(0, len(part), 256):
                    s = q = 0.0
                    for v in part[r : r + 256]:
                        d = v - state.p
                        s += d
                        q += d * d
                    state.flush(s, q, len(part[r : r + 256]))
                total = merge(total, state.close())
            c = (j // inner) % channels
            totals[c] = merge(totals[c], total)
    return [p + o for _, p, o, _ in totals], [m2 for *_, m2 in totals]


def invstd(var: float, eps: float) -> float:
    if math.isnan(var):
        return math.nan
    return math.inf if var + eps == 0 else 1.0 / math.sqrt(var + eps)


def grad_sums(
    dy: np.ndarray, x: np.ndarray, mean: list[float], var: list[float], eps: float
) -> tuple[list[float], list[float]]:
    kind, shape = plan(*x.shape)
    outer, channels, inner = shape
    sums_a, sums_b = [0.0] * channels, [0.0] * channels
    if x.size == 0:
        return sums_a, sums_b
    if kind == "planes":
        for c in range(channels):
            values = [float(v) for v in x.reshape(shape)[:, c].ravel()]
            grads = [float(v) for v in dy.reshape(shape)[:, c].ravel()]
            for blocks in plane_blocks(outer, inner):
                a_segment = b_segment = 0.0
                for block in blocks:
                    a, b = [0.0] * 16, [0.0] * 16
                    for piece in block:
                        for i, e in enumerate(piece):
                            a[lane(i, len(piece))] += grads[e]
                            b[lane(i, len(piece))] += grads[e] * (values[e] - mean[c])
                    a_segment += fold(a)
                    b_segment += fold(b)
                sums_a[c] += a_segment
                sums_b[c] += b_segment
    else:
        flat_x, flat_dy = ([float(v) for v in array.ravel()] for array in (x, dy))
        width, segments = row_plan(*shape)
        for j in range(width):
            c = (j // inner) % channels
            a_column = b_column = 0.0
            for begin, end in segments:
                a_segment = b_segment = 0.0
                xs, gs = flat_x[j::width][begin:end], flat_dy[j::width][begin:end]
                for r in range(0, len(xs), 256):
                    a = b = 0.0
                    for v, g in zip(xs[r : r + 256], gs[r : r + 256], strict=True):
                        a += g
                        b += g * (v - mean[c])
                    a_segment += a
                    b_segment += b
                a_column += a_segment
                b_column += b_segment
            sums_a[c] += a_column
            sums_b[c] += b_column
    return sums_a, [b * invstd(v, eps) for b, v in zip(sums_b, var, strict=True)]


def normalize(
    x: np.ndarray,
    mean: list[float],
    var: list[float],
    weight: list[float] | None,
    bias: list[float] | None,
    eps: float,
) -> np.ndarray:
    t = x.dtype.type
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        scale = invstd(var[c], eps) if weight is None else weight[c] * invstd(var[c], eps)
        b = 0.0 if bias is None else bias[c]
        hi, sc = t(mean[c]), t(scale)
        lo = mean[c] - float(hi)
        shift = t(b if lo == 0 else b - lo * float(sc))
        for o in range(x.shape[0]):
            for i in range(x.shape[2]):
                y[o, c, i] = (x[o, c, i] - hi) * sc + shift
    return y


def fused(
    z: np.ndarray,
    value: np.ndarray,
    activation: str | None,
    slope: float,
    residual: np.ndarray | None,
) -> np.ndarray:
    """y of z = bn(x) and value = None, or dy's gradient by z and value = dy."""
    t = z.dtype.type
    result = np.empty_like(z)
    for i in np.ndindex(z.shape):
        total = z[i] if residual is None else z[i] + residual[i]
        given = total if value is None else value[i]
        if activation is None or not total <= 0:
            result[i] = given
        else:
            result[i] = t(slope) * given if activation == "leaky_relu" else t(0)
    return result


def grad_input(
    dy: np.ndarray,
    x: np.ndarray,
    mean: list[float],
    var: list[float],
    sum_dy: list[float],
    sum_dy_xhat: list[float],
    count: float,
    weight: list[float] | None,
    eps: float,
) -> np.ndarray:
    t = x.dtype.type
    dx = np.empty_like(x)
    for c in range(x.shape[1]):
        inv = invstd(var[c], eps)
        a = inv if weight is None else weight[c] * inv
        k = -inv * (sum_dy_xhat[c] / count)
        shift = -(sum_dy[c] / count)
        hi, ga, gk = t(mean[c]), t(a), t(k)
        lo = mean[c] - float(hi)
        gc = t(shift if lo == 0 else shift - lo * float(gk))
        for o in range(x.shape[0]):
            for i in range(x.shape[2]):
                dx[o, c, i] = ((dy[o, c, i] + (x[o, c, i] - hi) * gk) + gc) * ga
    return dx


def infer_backward(
    dy: np.ndarray, var: list[float], weight: list[float] | None, eps: float
) -> np.ndarray:
    t = dy.dtype.type
    dx = np.empty_like(dy)
    for c in range(dy.shape[1]):
        inv = invstd(var[c], eps)
        dx[:, c] = dy[:, c] * t(inv if weight is None else weight[c] * inv)
    return dx
