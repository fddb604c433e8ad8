"""Arrays of 2**31 values and more: every index and count has to be wider than an int.

On Linux, zeros that nobody has written need no memory, so the arrays are almost all zeros. With
only a few other values the sums are known exactly. Ids such as S19 name reports against other
libraries, which crashed or lost counts at these sizes.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import bncore
import oracle
import tolerances
import variants

NEEDED = 12 << 30  # bytes: the 8 GiB of an array, should they be backed by pages after all


def available() -> int:
    """Return how many bytes the system can provide without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


pytestmark = [
    pytest.mark.skipif("native" not in variants.FOUND.names(), reason="the extension is absent"),
    pytest.mark.skipif(sys.platform != "linux", reason="untouched zeros are free on Linux"),
    pytest.mark.skipif(
        sys.platform == "linux" and available() < NEEDED, reason="needs 12 GiB of free memory"
    ),
]

CASES = [  # (outer, channels, inner), and the number of threads
    pytest.param((1, 1, 2**31 + 200), 1, id="planes-1"),
    pytest.param((1, 2, 10**9), 2, id="planes-2-S19"),
    pytest.param((3, 3, 2**28), 1, id="planes-3-S20"),
    pytest.param((40, 16, 2**22), 2, id="planes-16"),
    pytest.param((2, 2048, 2**19), 1, id="planes-2048-S21"),
    pytest.param((2**31 // 3 + 200, 3, 1), 2, id="rows-3"),
    pytest.param((2**27 + 200, 16, 1), 1, id="rows-16"),
    pytest.param((2**22 + 200, 512, 1), 2, id="rows-512"),
]


@pytest.mark.parametrize(("shape", "threads"), CASES)
def test_sums(shape, threads):
    """The very last value is 2**20, and some channels begin their last run with 1."""
    outer, channels, inner = shape
    n = outer * inner
    looked_at = {0, channels // 2, channels - 1}  # to write to more would take memory
    x = np.zeros(shape, np.float32)
    x[-1, list(looked_at), 0] = 1.0
    x[-1, -1, -1] = far = 2.0**20
    assert x.nbytes >= 2**31 and x.size >= 2 * 10**9
    with bncore.use_backend("native"):
        moments = bncore.moments(x, n_threads=threads)
        sums = bncore.grad_sums(x, x, moments, eps=0.0, n_threads=threads)
        mean, var = bncore.mean_var(x, axis=(0, 2), n_threads=threads)
    assert (moments.count == n).all()
    assert np.count_nonzero(moments.mean) == len(looked_at)
    assert mean.tolist() == moments.mean.astype(np.float32).tolist()
    assert var.tolist() == moments.var().astype(np.float32).tolist()
    for c in looked_at:
        values = [1.0] if c < channels - 1 else [1.0, far] if inner > 1 else [far]
        total = sum(Fraction(v) for v in values)
        m2 = sum(Fraction(v) ** 2 for v in values) - total**2 / n
        error = abs(Fraction(float(moments.mean[c])) - total / n)
        assert error <= tolerances.MEAN * math.sqrt(m2 / n)
        assert oracle.relative_error(moments.m2[c], m2) <= tolerances.VARIANCE_ACCUMULATED
        assert sums.sum_dy[c] == total
        # With dy = x and eps = 0 this is n times the standard deviation.
        expected = math.sqrt(m2 * n)
        assert abs(sums.sum_dy_xhat[c] / expected - 1.0) <= tolerances.VARIANCE_ACCUMULATED
