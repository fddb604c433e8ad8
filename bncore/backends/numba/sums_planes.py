"""Sums of the Numba backend over planes: x[(image * channels + channel) * inner + position].

A kernel works on a range of tasks, holds no lock, and writes what no other task writes.  Arrays of
data are flat; `parts` is that of `numba_state`.
"""

from __future__ import annotations

import numpy as np

from bncore.backends.numba.compile import jit
from bncore.backends.numba.lanes import fold, keep_last, load, prefetch, splat, store, widen
from bncore.backends.numba.state import N, P, Q, S, close, first_pivot, flush
from bncore.backends.partition import BLOCK, LANES, Data, Stat


@jit
def planes_moments_segment(
    state: Stat, x: Data, channels: int, inner: int, c0: int, c1: int, e: int, end: int
) -> None:
    """Walk the values e to end of channels c0 to c1, image by image."""
    lanes_s, lanes_q = np.zeros((c1 - c0) * LANES), np.zeros((c1 - c0) * LANES)
    zero = splat(0.0)
    for c in range(c0, c1):
        at = (e // inner * channels + c) * inner + e % inner
        state[N, c] = state[S, c] = state[Q, c] = 0.0
        state[P, c] = first_pivot(x, at, 1, min(inner - e % inner, end - e, LANES))
    pending = 0
    while e < end:
        image, start = e // inner, e % inner
        length = min(inner - start, end - e, BLOCK)
        rest = length % LANES
        for c in range(c0, c1):
            at = (image * channels + c) * inner + start
            lane = (c - c0) * LANES
            pivot, s, q = splat(state[P, c]), load(lanes_s, lane), load(lanes_q, lane)
            for i in range(at, at + length - rest, LANES):
                prefetch(x, i + channels * inner)
                d = widen(load(x, i)) - pivot
                s = s + d
                q = q + d * d
            if rest > 0:
                d = keep_last(widen(load(x, at + length - LANES)) - pivot, rest)
                s = s + d
                q = q + d * d
            store(lanes_s, lane, s)
            store(lanes_q, lane, q)
        e += length
        pending += length
        if pending >= BLOCK or e == end:
            for c in range(c0, c1):
                lane = (c - c0) * LANES
                flush(state, c, fold(load(lanes_s, lane)), fold(load(lanes_q, lane)), pending)
                store(lanes_s, lane, zero)
                store(lanes_q, lane, zero)
            pending = 0
    close(state, c0, c1)


@jit
def planes_sums_segment(
    sums: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    channels: int,
    inner: int,
    c0: int,
    c1: int,
    e: int,
    end: int,
) -> None:
    """Sum dy and dy * (x - mean) over the values e to end of channels c0 to c1."""
    lanes_a, lanes_b = np.zeros((c1 - c0) * LANES), np.zeros((c1 - c0) * LANES)
    zero = splat(0.0)
    sums[:, c0:c1] = 0.0
    pending = 0
    while e < end:
        image, start = e // inner, e % inner
        length = min(inner - start, end - e, BLOCK)
        rest = length % LANES
        for c in range(c0, c1):
            at = (image * channels + c) * inner + start
            lane = (c - c0) * LANES
            center, a, b = splat(mean[c]), load(lanes_a, lane), load(lanes_b, lane)
            for i in range(at, at + length - rest, LANES):
                prefetch(dy, i + channels * inner)
                prefetch(x, i + channels * inner)
                g = widen(load(dy, i))
                a = a + g
                b = b + g * (widen(load(x, i)) - center)
            if rest > 0:
                i = at + length - LANES
                g = widen(load(dy, i))
                a = a + keep_last(g, rest)
                b = b + keep_last(g * (widen(load(x, i)) - center), rest)
            store(lanes_a, lane, a)
            store(lanes_b, lane, b)
        e += length
        pending += length
        if pending >= BLOCK or e == end:
            for c in range(c0, c1):
                lane = (c - c0) * LANES
                sums[0, c] += fold(load(lanes_a, lane))
                sums[1, c] += fold(load(lanes_b, lane))
                store(lanes_a, lane, zero)
                store(lanes_b, lane, zero)
            pending = 0


# Tasks: segment after segment, and in a segment all groups of channels


@jit
def planes_moments(
    first: int, last: int, parts: Stat, x: Data, inner: int, segment_len: int, group: int
) -> None:
    """Compute partial moments; task = segment * groups + group."""
    channels = parts.shape[2]
    count = len(x) // channels
    groups = (channels + group - 1) // group
    for task in range(first, last):
        k, c0 = task // groups, task % groups * group
        end = min((k + 1) * segment_len, count)
        c1 = min(c0 + group, channels)
        planes_moments_segment(parts[k], x, channels, inner, c0, c1, k * segment_len, end)


@jit
def planes_sums(
    first: int,
    last: int,
    parts: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    inner: int,
    segment_len: int,
    group: int,
) -> None:
    """Compute partial gradient sums; task = segment * groups + group."""
    channels = parts.shape[2]
    count = len(x) // channels
    groups = (channels + group - 1) // group
    for task in range(first, last):
        k, c0 = task // groups, task % groups * group
        end = min((k + 1) * segment_len, count)
        c1 = min(c0 + group, channels)
        planes_sums_segment(parts[k], dy, x, mean, channels, inner, c0, c1, k * segment_len, end)
