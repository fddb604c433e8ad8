"""Nothing replaces subnormal numbers by zero, neither in a kernel nor for the caller."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import oracle
import tolerances


@pytest.mark.parametrize("shape", [(40, 3, 50), (500, 3)], ids=["planes", "rows"])
def test_float32_input(backend, rng, shape):
    """The variance is right; frozen statistics of mean 0 and variance 1 give x back."""
    x = (rng.integers(-4000, 4000, shape) * 2.0**-149).astype(np.float32)
    assert (x != 0).any() and (np.abs(x) < np.finfo(np.float32).tiny).all()
    moments = bncore.moments(x)
    for c in range(shape[1]):
        exact = oracle.exact_moments(x[:, c])
        assert abs(moments.var()[c] / float(exact.var) - 1.0) <= tolerances.VARIANCE_ACCUMULATED
    y = bncore.batch_norm_infer(x, np.zeros(3), np.ones(3), eps=0.0)
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize("shape", [(40, 3, 50), (500, 3)], ids=["planes", "rows"])
def test_float64_input(backend, rng, shape):
    x = rng.integers(-4000, 4000, shape) * 2.0**-1074
    y = bncore.batch_norm_infer(x, np.zeros(3), np.ones(3), eps=0.0)
    assert y.tobytes() == x.tobytes()
    sums = bncore.grad_sums(x, x, bncore.Moments(x.size // 3, np.zeros(3), np.ones(3)))
    exact = [float(oracle.exact_sums(x[:, c])[0]) for c in range(3)]
    assert sums.sum_dy.tolist() == exact


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_arithmetic_keeps_its_subnormals(backend, rng, threads):
    x = rng.standard_normal((8, 16, 64, 64), dtype=np.float32)
    bncore.batch_norm_train(x, n_threads=threads)
    tiny32 = np.full(64, np.finfo(np.float32).smallest_subnormal)
    tiny64 = np.full(64, np.finfo(np.float64).smallest_subnormal)
    assert (tiny32 * np.float32(1.0) != 0).all() and (tiny32 + tiny32 == 2 * tiny32[0]).all()
    assert (tiny64 * 1.0 != 0).all() and (np.finfo(np.float64).tiny / 2 * np.ones(4) > 0).all()
