"""What travels between workers keeps every digit."""

from __future__ import annotations

import numpy as np
import pytest
from distributed.protocol import deserialize, serialize

import bncore

pytestmark = pytest.mark.needs_scale


def test_moments_keep_the_rounding_errors_of_their_means(rng):
    """The next merge needs them, and `==` compares only what is public."""
    parts = [bncore.moments(rng.normal(1e6, 1.0, (50, 3))) for _ in range(4)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert np.any(merged._low)
    travelled = deserialize(*serialize(merged))
    assert travelled == merged
    assert travelled.merge(parts[3])._low.tolist() == merged.merge(parts[3])._low.tolist()


def test_gradient_sums_travel(rng):
    x = rng.normal(size=(50, 3))
    sums = bncore.grad_sums(x, x, bncore.moments(x))
    assert deserialize(*serialize(sums)) == sums
