"""What the tests of stored arrays share."""

from __future__ import annotations

import numpy as np

import tolerances

SHAPE = (40, 6, 50)


def close(got, expected):
    for name in ("count", "mean", "m2"):
        pair = getattr(got, name), getattr(expected, name)
        np.testing.assert_allclose(*pair, rtol=tolerances.MERGED, atol=tolerances.MERGED)
