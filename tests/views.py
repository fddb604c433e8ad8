"""Arrays in every memory order, for the tests of the canonical shape."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st


def numbered(shape: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=dtype).reshape(shape)


def in_memory_order(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The same values, the axes lying in memory in this order, slowest first."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


@st.composite
def views(draw) -> np.ndarray:
    """Arrays of any rank, memory order, step and sign of stride, byte order and alignment."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=2, max_size=5)))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, -1, 2]), min_size=len(shape),
                          max_size=len(shape)))  # fmt: skip
    big = in_memory_order(
        numbered(tuple(n * abs(step) for n, step in zip(shape, steps, strict=True))), order
    )
    array = big[tuple(slice(None, None, step) for step in steps)]
    assert array.shape == shape
    kind = draw(st.sampled_from(["plain", "plain", "big-endian", "unaligned", "read-only"]))
    if kind == "big-endian":
        array = array.astype(">f8", order="K")
    elif kind == "unaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)
        moved = memory[1:].view(np.float64).reshape(shape)
        moved[...] = array
        array = moved
    elif kind == "read-only":
        array.flags.writeable = False
    return array
