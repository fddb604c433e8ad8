"""Packed moments and sums, and the tree that merges those of many processes."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import tolerances
from bncore.statistics import shifted
from bncore.statistics.travel import merged_pairwise, packed, unpacked


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13])
def test_the_tree_merges_every_part_once(rng, number):
    """Exactly: the values are small integers, so nothing is rounded."""
    values = [rng.integers(0, 2, (2 ** rng.integers(0, 4), 3)) * 2.0**10 for _ in range(number)]
    values[-1] = values[-1][:0]
    parts = np.stack([packed(bncore.moments(v)) for v in values])
    merged = unpacked(merged_pairwise(parts, bncore.Moments), bncore.Moments)
    want = bncore.moments(np.concatenate(values))
    np.testing.assert_array_equal(merged.count, want.count)
    np.testing.assert_allclose(merged.mean, want.mean, rtol=1e-15)
    np.testing.assert_allclose(merged.m2, want.m2, rtol=1e-14)
    sums = np.arange(number * 4.0).reshape(number, 2, 2)
    np.testing.assert_array_equal(merged_pairwise(sums, bncore.GradSums), sums.sum(0))


def test_the_tree_has_the_bits_of_merging_pairs(rng):
    parts = [bncore.moments(rng.normal(1e6, 1.0, (9, 2))) for _ in range(5)]
    a, b, c, d, e = parts
    states = np.stack([packed(part) for part in parts])
    merged = unpacked(merged_pairwise(states, bncore.Moments), bncore.Moments)
    assert merged == a.merge(b).merge(c.merge(d)).merge(e)


def test_shifted_moments_keep_a_mean_of_more_than_53_bits(rng):
    """Merging values about 1e12 has the m2 of the same values about 0, to the last digits."""
    parts = [rng.standard_normal((50, 2)) for _ in range(20)]
    near = bncore.merged_moments(parts)
    by = np.array([1e12, -1e12])
    far = bncore.merged_moments(shifted(bncore.moments(part), by) for part in parts)
    assert far.count.tolist() == near.count.tolist()
    np.testing.assert_allclose(far.mean, by + near.mean, rtol=2.0**-53)
    np.testing.assert_allclose(far.m2, near.m2, rtol=tolerances.SCALER_FAR)
