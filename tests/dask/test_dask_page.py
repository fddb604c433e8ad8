"""docs/dask.md: its examples run."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import oracle
import tolerances
from checkout import blocks_of

pytestmark = pytest.mark.needs_scale


def test_the_page_runs(rng, tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    folder = tmp_path / "images"
    folder.mkdir()
    parts = [rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (100, 1, 70)]
    for i, part in enumerate(parts):
        np.save(folder / f"{i}.npy", part)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    images, training = blocks_of("docs/dask.md", "python")
    exec(compile(images, "dask.md", "exec"), names)
    exact = [oracle.exact_moments(color) for color in np.concatenate(parts).reshape(-1, 3).T]
    mean = [float(color.mean / 255) for color in exact]
    std = [float(color.var / 255**2) ** 0.5 for color in exact]
    np.testing.assert_allclose(names["mean"], mean, rtol=tolerances.MERGED)
    np.testing.assert_allclose(names["std"], std, rtol=tolerances.MERGED)
    assert names["y"].dtype == np.float32
    assert names["y"].shape == names["images"].shape
    np.testing.assert_allclose(zarr.open("normalized.zarr")[:], names["y"].compute())
    exec(compile(training, "dask.md", "exec"), names)
    assert (names["moments"].count == 256 * 14 * 14).all()
    y, dx = names["y"].compute(), zarr.open("dx.zarr")[:]
    expected = bncore.batch_norm_train_backward(np.cos(y), names["x"].compute(), names["moments"])
    np.testing.assert_allclose(dx, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(names["dweight"], expected[1], rtol=1e-4)
