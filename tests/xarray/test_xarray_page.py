"""docs/xarray.md: its example runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import oracle
import tolerances
from checkout import blocks_of

pytestmark = pytest.mark.needs_scale


def test_the_page_runs(rng, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    time = pd.date_range("2001-01-01", periods=3 * 365, freq="D")
    values = rng.gamma(2.0, 1.5, (len(time), 4, 5)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    rain = xr.DataArray(values, {"time": time}, ("time", "lat", "lon"), attrs={"units": "mm"})
    monkeypatch.chdir(tmp_path)
    chunks = {"time": 100, "lat": 2}
    rain.chunk(chunks).to_dataset(name="rain").to_zarr("rain.zarr", zarr_format=2)
    (example,) = blocks_of("docs/xarray.md", "python")
    names: dict = {}
    exec(compile(example, "xarray.md", "exec"), names)
    mean, var = names["mean"], names["var"]
    assert (mean.name, mean.dims, mean.attrs) == ("rain", ("month", "lat", "lon"), rain.attrs)
    assert mean.dtype == np.float32
    assert mean.month.values.tolist() == list(range(1, 13))
    for month, lat, lon in ((1, 0, 0), (6, 3, 1), (12, 1, 4)):
        place = values[time.month == month, lat, lon]
        exact = oracle.exact_moments(place[~np.isnan(place)])
        got = mean.sel(month=month).values[lat, lon], var.sel(month=month).values[lat, lon]
        expected = float(exact.mean), float(exact.m2 / (exact.count - 1))
        np.testing.assert_allclose(got, expected, rtol=tolerances.VARIANCE_FLOAT32)
        y = names["unusual"].values[time.month == month, lat, lon]
        np.testing.assert_allclose(np.nanstd(y, dtype=float), 1.0, rtol=tolerances.VARIANCE_FLOAT32)
        assert (np.isnan(y) == np.isnan(place)).all()
