"""Pieces and streams of 16-bit data."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
from arrays import SIXTEEN_BITS


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("of", [None, *SIXTEEN_BITS, np.float32])
def test_micro_batches(backend, rng, dtype, of):
    x, dy = (rng.standard_normal((2, 30, 3)) + 1.0).astype(dtype)
    weight = None if of is None else np.array([0.5, -2.0, 1.0], of)
    batch = bncore.MicroBatches(weight)
    cut = [slice(0, 7), slice(7, 30)]
    y = np.concatenate(list(batch.forward([x[part] for part in cut])))
    dx = np.concatenate(list(batch.backward([dy[part] for part in cut], [x[part] for part in cut])))
    assert y.dtype == dx.dtype == dtype
    assert batch.dweight.dtype == batch.dbias.dtype == (of or np.float32)
    assert arrays.same_bits(y, bncore.normalize(x, batch.moments, weight))
    assert arrays.same_bits(dx, bncore.grad_input(dy, x, batch.moments, batch.sums, weight))
    other = np.float32 if dtype == np.float16 else np.float16
    with pytest.raises(TypeError, match=f"^x: expected {x.dtype} as in the first piece, got float"):
        batch.normalize(x[:2].astype(other))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_a_mapped_file(tmp_path, rng, dtype):
    x = (rng.standard_normal((3000, 4)) + 2.0).astype(dtype)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype, "r", shape=x.shape)
    got = bncore.stream_moments(mapped, block_bytes=4096, dtype=np.float64)
    exact = bncore.moments(x.astype(np.float64))
    np.testing.assert_array_equal(got.count, exact.count)
    np.testing.assert_allclose(got.mean, exact.mean, rtol=1e-14)
    np.testing.assert_allclose(got.m2, exact.m2, rtol=1e-13)
    default = bncore.stream_moments(mapped, block_bytes=4096)
    np.testing.assert_allclose(default.m2, exact.m2, rtol=2.0**-22)
