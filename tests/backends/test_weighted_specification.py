"""Weighted calls of the specification, run as plain Python, beside every backend: to the bit."""

from __future__ import annotations

import numpy as np
import pytest

import operations
import variants
import weighted
from bncore.backends.numba import weighted as kernels
from specified import PLAIN, specification

DTYPES = [np.float32, np.float64, np.float16, np.uint16]  # uint16: the bits of bfloat16
# (outer, channels, inner), and what the additions go through there.
SHAPES = {
    (5, 2, 49): "planes with a rest beside the lanes",
    (3, 2, 1700): "planes that gather into one block and begin the next",
    (6, 3, 5): "rows, not folded",
    (613, 3, 1): "rows, folded, the last one short",
}
LARGE_SHAPES = {
    (1, 2, 9000): "planes of three blocks",
    (2, 1, 33000): "one channel: two segments",
    (300, 257, 1): "rows, too wide to fold, two segments",
    (2100, 16, 1): "rows, folded, three segments",
    (4, 2100, 1): "rows of two strips",
}


def specified(case, run=weighted.run):
    """The results of the plain text."""
    with specification():
        return run(case)


def assert_every_backend_gives(expected, case, run=weighted.run):
    expected = weighted.one_nan(expected)
    for variant in variants.FOUND.present:
        with variant.active():
            got = weighted.one_nan(run(case))
        assert operations.differences(got, expected) == [], variant


@pytest.mark.parametrize("kind", weighted.KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kind_of_weights(rng, shape, kind):
    """Every shape and every kind meets every dtype: the plain text is slow."""
    index = list(weighted.KINDS).index(kind)
    dtype = DTYPES[(index + list(SHAPES).index(shape)) % len(DTYPES)]
    fill, fused = (None, 0.3)[index % 2], index % 3 > 0
    case = weighted.make_case(rng, shape, dtype, kind, fill, fused)
    assert_every_backend_gives(specified(case), case)


@pytest.mark.parametrize("kind", ["late", "numbers, omit"])
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_blocks_and_segments(rng, shape, kind):
    """Some segments and blocks have nothing that counts, others have only ones.

    Every shape and both kinds meet both dtypes.  These are the sums; `test_threads` of
    test_weighted_bits compares whole calls of such shapes.
    """
    even = list(LARGE_SHAPES).index(shape) % 2 == 0
    dtype = np.float32 if even == (kind == "late") else np.uint16
    case = weighted.make_case(rng, shape, dtype, kind)
    run = weighted.run_sums
    assert_every_backend_gives(specified(case, run), case, run)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_without_a_value(rng, shape, dtype):
    case = weighted.make_case(rng, shape, dtype, "mask")
    case.given.values[:, 0] = 0
    expected = specified(case)
    assert expected["moments.count"][0] == expected["moments.m2"][0] == 0.0
    assert np.isnan(expected["moments.mean"]).tolist() == [True] + [False] * (shape[1] - 1)
    assert_every_backend_gives(expected, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mask", "omit"])
@pytest.mark.parametrize("shape", [(5, 2, 49), (70, 5, 3)], ids=str)
def test_values_that_are_not_finite(rng, shape, kind, dtype):
    case = weighted.make_case(rng, shape, dtype, kind, fused=True)
    for place, value in (((0, 0, 1), np.inf), ((1, 1, 0), -np.inf)):
        where = np.zeros(shape, bool)
        where[place] = True
        case = case.with_values("x", where, value).with_values("dy", ~where & (case.w > 2), value)
    case = case.with_values("dy", np.isinf(weighted.in_numbers(case.x)), np.inf)
    assert_every_backend_gives(specified(case), case)


@pytest.mark.parametrize("shape, whole", [((1, 2, 9000), 4096), ((600, 257, 1), 256)], ids=str)
def test_blocks_of_16_bits_take_chains_only_if_all_weights_are_1(rng, shape, whole, monkeypatch):
    """The last block, which is shorter, has a weight of 0.5 and is added up in float64."""
    values = np.ones(weighted.shared(shape))
    values[-1, 0, -1] = 0.5
    given = weighted.Weights(values, False, None, np.empty(shape[1]))
    x = rng.standard_normal(shape).astype(np.float16)
    asked, keeps = [], kernels.keeps_digits

    def spied(s, q, count):
        asked.append(count)
        return keeps(s, q, count)

    monkeypatch.setattr(kernels, "keeps_digits", spied)
    mean, m2 = np.empty((2, shape[1]))
    PLAIN.moments(mean, m2, x, 1, False, given)
    assert set(asked) == {whole}


def test_the_first_pivot_is_of_values_that_count():
    """They are those among 16 places from the first on that counts, and no others."""
    values = np.arange(1.0, 41.0)
    w = np.ones(40)
    w[:5] = w[6:20] = 0.0
    counted = kernels.start(values[5:21], w[5:21], False)
    assert counted == ((6.0 + 21.0) / 2, 7.5**2)
    x = values.copy()
    x[w == 0.0] = np.nan
    assert kernels.start(x[5:21], w[5:21], False) == counted
