"""The specification of sums of 16-bit values, run as plain Python, beside every backend."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import SIXTEEN_BITS
from bncore.backends.numba import storage, sums
from specified import assert_every_backend_gives, specification

# Pieces, blocks and rows that end in a chain of 8, of 4 and of less.
SHORT_SHAPES = [
    (3, 2, 20),
    (5, 2, 49),
    (3, 2, 1700),
    (6, 3, 5),
    (100, 3, 1),
    (613, 3, 1),
    (9, 90, 3),
]


def sixteen_bits(rng, shape, dtype, values):
    """A case in 16 bits, of values that are made as float32."""
    case = operations.make_case(rng, shape, np.float32, values)
    return case.rebuilt(lambda array: array.astype(dtype))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", SHORT_SHAPES, ids=str)
def test_every_operation_on_16_bits(rng, shape, dtype):
    case = sixteen_bits(rng, shape, dtype, "normal")
    with specification():
        expected = operations.run_all(case)
    assert_every_backend_gives(expected, lambda: operations.run_all(case))


def steps(rng, shape, dtype):
    """The values of one block leave the range in which float32 holds their squares."""
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(1e-8)
    x.reshape(-1)[x.size * 2 // 3 :] *= np.float32(1e30)
    return x


SHORT_VALUES = {"steps": steps} | {
    name: arrays.VALUES[name] for name in ("huge", "subnormal", "tiny_spread", "sorted")
}
# How blocks of bfloat16 are added up: in chains (True), in float64 (False).
WAYS = {
    "steps": {True, False},
    "huge": {False},
    "subnormal": {False},
    "tiny_spread": {False},
    "sorted": {True},
}


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("values", [*SHORT_VALUES, "not_finite"])
@pytest.mark.parametrize("shape", [(5, 3, 49), (310, 5, 3)], ids=str)
def test_every_kind_of_values_in_16_bits(rng, shape, values, dtype, monkeypatch):
    """What float32 cannot hold is added up in float64, by every channel for itself."""
    with np.errstate(over="ignore"):
        x = SHORT_VALUES.get(values, arrays.normal)(rng, shape, np.float32).astype(dtype)
    if values == "not_finite":
        x[0, 0, 1], x[1, 1, 2] = np.nan, np.inf
    dy = rng.standard_normal(shape).astype(dtype)

    def run():
        mean_m2 = bncore.moments(x)
        exact = bncore.moments(x, dtype=np.float64)
        g = bncore.grad_sums(dy, x, mean_m2)
        return {
            f"{k}.{n}": v
            for k, m in (("own", mean_m2), ("exact", exact), ("g", g))
            for n, v in vars_of(m).items()
        }

    with specification():
        expected = run()
    if dtype != np.float16 and values in WAYS:
        assert ways_of(monkeypatch, x) >= WAYS[values]
    assert_every_backend_gives(expected, run)


def ways_of(monkeypatch, x):
    """How the specification adds up blocks of x: in chains (True), in float64 (False)."""
    ways = set()

    def spied(add, chained):
        def call(*arguments):
            ways.add(chained)
            add(*arguments)

        return call

    with monkeypatch.context() as patched, specification():
        patched.setattr(sums, "add_chains", spied(sums.add_chains, True))
        patched.setattr(sums, "add_wide_squares", spied(sums.add_wide_squares, False))
        bncore.moments(x)
    return ways


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", [(1, 3, 271), (1, 3, 272), (135, 257, 1), (136, 257, 1)], ids=str)
def test_a_pivot_that_is_far_from_its_block(shape, dtype, monkeypatch):
    """All values are 1 but the first ones, 4 and 6, which make the pivot 5.

    Chains count as long as there are less than 16 times as many others.
    """
    x = np.ones(shape, dtype)
    line = x if shape[2] == 1 else x.swapaxes(0, 2)  # a view along the values of a channel
    first = 8 if shape[2] == 1 else 16
    line[0:first:2], line[1:first:2] = 4.0, 6.0
    ways = ways_of(monkeypatch, x)
    assert ways == ({True} if len(line) < 17 * first else {True, False})
    with specification():
        expected = vars_of(bncore.moments(x))
    assert_every_backend_gives(expected, lambda: vars_of(bncore.moments(x)))


def vars_of(result):
    names = ("sum_dy", "sum_dy_xhat") if hasattr(result, "sum_dy") else ("mean", "m2")
    return {name: getattr(result, name) for name in names}


def test_the_tree_of_a_chain():
    """Terms of very different size: another order gives another sum."""
    terms = np.float32(2.0) ** np.array([24, 0, 0, 0, 1, 25, 0, -24, 3, 27, 0, 1, 0, 24, 2], "f")
    rows = np.concatenate([terms, terms[:6]]).repeat(2).astype(np.float32)
    t = rows[::2]
    expected = np.float64(((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7])))
    expected += np.float64(((t[8] + t[9]) + (t[10] + t[11])) + ((t[12] + t[13]) + (t[14] + t[15])))
    expected += np.float64((t[16] + t[17]) + (t[18] + t[19]))
    expected += np.float64(t[20])
    totals = np.zeros(2)
    sums.add_chains(totals, rows)
    assert totals.tolist() == [expected, expected]
    assert expected != float(np.sum(t, dtype=np.float64))
    tail = np.zeros(
        3
    )  # 2 rows of 3, and 2 values beside: they are the last term of the last totals
    sums.add_chains(tail, t[:8])
    last = np.float64((t[1] + t[4]) + (np.float32(0.0) + t[6]))
    assert tail.tolist() == [np.float64(t[0] + t[3]), last, np.float64((t[2] + t[5]) + t[7])]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_the_rounding_to_16_bits(dtype):
    """At every number, half-way to the next one, and beside that, as NumPy or ml_dtypes rounds."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    kind = np.int16 if dtype == np.float16 else np.uint16
    read = np.array([storage.READ[kind](bits) for bits in numbers.view(kind)])
    assert read.dtype == np.float32
    with np.errstate(invalid="ignore"):  # of signalling NaN
        expected = numbers.astype(np.float32)
    assert arrays.same_bits(arrays.one_nan(read), arrays.one_nan(expected))
    up = read[:-1][np.isfinite(read[:-1]) & np.isfinite(read[1:])][::7]
    step = np.nextafter(up.astype(dtype), np.array(np.inf, dtype)).astype(np.float32) - up
    half = up + step / 2
    values = np.concatenate([half, np.nextafter(half, 0), np.nextafter(half, np.float32(np.inf))])
    edges = [65519.0, 65520.0, 3.39e38, np.inf, -np.inf, 2.0**-25, 2.0**-26, 1e-45, -0.0, np.nan]
    values = np.concatenate([values, np.array(edges, np.float32)])
    with np.errstate(all="ignore"):
        expected = values.astype(dtype)
        got = np.array([storage.ROUND[kind](value) for value in values], kind).view(dtype)
    assert arrays.same_bits(arrays.one_nan(got), arrays.one_nan(expected))
    signalling = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert all(np.isnan(storage.READ[kind](storage.ROUND[kind](value))) for value in signalling)
