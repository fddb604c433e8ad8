"""Statistics and normalization by the names of dimensions: right values, and labels kept."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bncore
import bncore.xarray
import tolerances
from bncore.extras import pip_install

pytestmark = pytest.mark.needs_scale

SHAPE = (24, 5, 6)


@pytest.fixture(params=[False, True], ids=["numpy", "dask"])
def x(request, rng):
    """Rain by month and place, in memory or in chunks."""
    values = rng.normal(3.0, 2.0, SHAPE)
    time = pd.date_range("2001-01-01", periods=SHAPE[0], freq="MS")
    coords = {
        "time": time, "y": [10, 20, 30, 40, 50], "height": 2.0,
        "season": ("time", np.arange(24) % 4), "area": (("y", "x"), rng.random((5, 6))),
    }  # fmt: skip
    x = xr.DataArray(values, coords, ("time", "y", "x"), name="rain", attrs={"units": "mm"})
    return x.chunk({"time": 7, "y": 2}) if request.param else x


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dim", [None, ..., "time", ["y"], ("x", "time"), ["x", "y"]], ids=str)
def test_labels_are_those_that_xarray_gives(x, dim, keepdims):
    mean, var = bncore.xarray.mean_var(x, dim, keepdims=keepdims, ddof=1)
    same = x.reduce(np.mean, dim, keep_attrs=True, keepdims=keepdims)
    for got, expected in ((mean, same), (var, x.var(dim, ddof=1))):
        assert (got.name, got.attrs) == ("rain", {"units": "mm"})
        assert got.dims == same.dims
        assert got.dtype == x.dtype
        xr.testing.assert_equal(got.coords.to_dataset(), same.coords.to_dataset())
        assert (got.chunks is None) == (x.chunks is None)
        np.testing.assert_allclose(
            got.values.ravel(), expected.values.ravel(), rtol=tolerances.MERGED
        )


@pytest.mark.parametrize("dim", ["time", "y", "x", ["x", "y"], None], ids=str)
def test_normalize_over_any_dimensions(x, dim):
    y = bncore.xarray.normalize(x, dim, eps=0.25)
    assert y.dtype == x.dtype
    xr.testing.assert_equal(y.coords.to_dataset(), x.coords.to_dataset())
    assert (y.name, y.attrs, y.dims) == (x.name, x.attrs, x.dims)
    assert (y.chunks is None) == (x.chunks is None)
    expected = (x - x.mean(dim)) / np.sqrt(x.var(dim) + 0.25)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerances.PIECES_FLOAT64 * 10)


def test_what_is_normalized_is_stored_as_any_other_array(x):
    x.encoding = {"dtype": "int16", "scale_factor": 0.5, "chunks": SHAPE}
    for given in (x, x.groupby("time.month")):
        assert bncore.xarray.normalize(given, "time").encoding == {}
    assert x.encoding["dtype"] == "int16"


def test_masks_and_weights_follow_the_names(x, rng):
    area = xr.DataArray(rng.random((6, 5)), dims=("x", "y"), coords={"y": x.y})
    land = xr.DataArray(rng.random(5) < 0.8, dims="y", coords={"y": x.y})
    mean, var = bncore.xarray.mean_var(x, ["x", "y"], weights=area, where=land)
    weights = np.where(land.values[:, None], area.values.T, 0.0)
    whole = bncore.mean_var(x.values, axis=(1, 2), weights=weights)
    for got, expected in zip((mean, var), whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerances.WEIGHTED)
    y = bncore.xarray.normalize(x, "time", where=land, fill=-9.0)
    assert (y.values[:, ~land.values] == -9.0).all()


def test_gaps(x, rng):
    gaps = x.where(x > 0.5)
    mean, var = bncore.xarray.mean_var(gaps, "time", nan_policy="omit")
    np.testing.assert_allclose(mean, gaps.mean("time"), rtol=tolerances.MERGED)
    np.testing.assert_allclose(var, gaps.var("time"), rtol=tolerances.WEIGHTED)
    y = bncore.xarray.normalize(gaps, "time", nan_policy="omit")
    assert (np.isnan(y.values) == np.isnan(gaps.values)).all()
    np.testing.assert_allclose(y.std("time"), 1.0, rtol=tolerances.WEIGHTED)


def test_groups(x):
    months = x.groupby("time.month")
    mean, var = bncore.xarray.mean_var(months, "time")
    for got, expected in ((mean, months.mean("time")), (var, months.var("time"))):
        assert (got.name, got.attrs, got.dims) == ("rain", {"units": "mm"}, expected.dims)
        xr.testing.assert_allclose(got, expected.rename("rain"), rtol=tolerances.WEIGHTED)
    y = bncore.xarray.normalize(months, "time")
    assert y.dims == x.dims
    expected = (months - mean).groupby("time.month") / np.sqrt(var)
    np.testing.assert_allclose(y, expected.values, rtol=0, atol=tolerances.PIECES_FLOAT64 * 10)


def test_what_takes_the_place_of_resample_coarsen_and_rolling(x):
    quarters = x.groupby(time=xr.groupers.TimeResampler("QS"))
    blocks = x.coarsen(x=3).construct(x=("block", "of_block"))
    windows = x.rolling(time=3).construct("window")
    for given, dim, own in (
        (quarters, "time", x.resample(time="QS")),
        (blocks, "of_block", x.coarsen(x=3)),
        (windows, "window", x.rolling(time=3, min_periods=1)),
    ):
        mean, var = bncore.xarray.mean_var(given, dim, nan_policy="omit")
        assert mean.sizes == var.sizes
        np.testing.assert_allclose(mean, own.mean().values, rtol=tolerances.WEIGHTED)
        np.testing.assert_allclose(var, own.var().values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("by, dim", [("y", "x"), ("column", ["x"]), ("area_of", ...)])
def test_groups_have_the_dimensions_that_xarray_gives(x, by, dim):
    places = np.add.outer(np.arange(5), np.arange(6)) % 3
    labels = {"area_of": (("y", "x"), places), "column": ("x", places[0])}
    groups = x.assign_coords(labels).groupby(by)
    mean, var = bncore.xarray.mean_var(groups, dim)
    for got, expected in ((mean, groups.mean(dim)), (var, groups.var(dim))):
        assert got.dims == expected.dims
        np.testing.assert_allclose(got.values, expected.values, rtol=tolerances.WEIGHTED)


@pytest.mark.parametrize("by", ["time.month", "y", "area_of"])
@pytest.mark.parametrize("dims", [("time", "y", "x"), ("x", "time"), ("y",)], ids=str)
def test_groups_have_their_part_of_masks_and_weights(x, by, dims, rng):
    """As a copy of x with gaps, or with each value as often as its weight says."""
    places = np.add.outer(np.arange(5), np.arange(6)) % 3
    x = x.assign_coords(area_of=(("y", "x"), places))
    like = (
        x.isel({d: 0 for d in x.dims if d not in dims}, drop=True)
        .transpose(*dims)
        .reset_coords(drop=True)
    )
    where = like.copy(data=rng.random(like.shape) < 0.7)
    often = like.copy(data=rng.integers(1, 3, like.shape))
    dim = ("time", "x") if by == "y" else ... if by == "area_of" else "time"
    groups, gaps = x.groupby(by), x.where(where).groupby(by)
    for got, want in zip(
        bncore.xarray.mean_var(groups, dim, where=where),
        bncore.xarray.mean_var(gaps, dim, nan_policy="omit"),
        strict=True,
    ):
        xr.testing.assert_allclose(got, want, rtol=tolerances.WEIGHTED)
    y = bncore.xarray.normalize(groups, dim, where=where, eps=0.5, fill=np.nan)
    want = bncore.xarray.normalize(gaps, dim, nan_policy="omit", eps=0.5)
    np.testing.assert_allclose(y, want.transpose(*y.dims), rtol=0, atol=1e-13)
    if "time" in dims:  # so that a copy of some times stands for weights
        return
    twice = xr.concat([x, x.where(often == 2)], "time", coords="minimal")
    weighted = bncore.xarray.mean_var(groups, dim, weights=often)
    copies = bncore.xarray.mean_var(twice.groupby(by), dim, nan_policy="omit")
    for got, want in zip(weighted, copies, strict=True):
        np.testing.assert_allclose(got.values, want.values, rtol=tolerances.WEIGHTED)


def test_groups_without_a_value_are_left_out_with_their_masks(x, rng):
    where = xr.ones_like(x.time, dtype=bool).copy(data=rng.random(24) < 0.5)
    bins = x.groupby_bins("y", [0, 15, 17, 60])
    mean, _ = bncore.xarray.mean_var(bins, ..., where=where)
    want = bncore.xarray.mean_var(
        x.where(where).groupby_bins("y", [0, 15, 17, 60]), ..., nan_policy="omit"
    )[0]
    xr.testing.assert_allclose(mean, want, rtol=tolerances.MERGED)


def test_coordinates_of_groups_may_have_any_name(x):
    groups = x.rename(y="mean", area="var").groupby("time.month")
    mean, var = bncore.xarray.mean_var(groups, "time")
    xr.testing.assert_allclose(mean, groups.mean("time").rename("rain"), rtol=tolerances.WEIGHTED)
    assert mean.dims == var.dims == ("month", "mean", "x")
    np.testing.assert_array_equal(mean.coords["var"], x.area)


def test_one_pass_computes_both(rng):
    loads = []

    def load(block):
        loads.append(block.shape)
        return block

    values = da.ones((20, 3), chunks=(5, 3)).map_blocks(load, meta=np.empty((0, 0)))
    x = xr.DataArray(values, dims=("time", "place"))
    mean, var = bncore.xarray.mean_var(x, "time")
    assert not loads
    dask.compute(mean, var, scheduler="synchronous")
    assert len(loads) == 4


def test_float32_far_from_zero_keeps_its_digits(rng):
    values = rng.normal(1e4, 1.0, (1000, 2)).astype(np.float32)
    y = bncore.xarray.normalize(xr.DataArray(values, dims=("time", "place")), "time")
    exact = values.astype(np.float64)
    expected = (exact - exact.mean(0)) / exact.std(0)
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        y,
        expected,
        rtol=0,
        atol=tolerances.FORWARD_ULP * 2 * tolerances.EPS32 * abs(expected).max(),
    )


@pytest.mark.parametrize("call, message", [
    (lambda x: bncore.xarray.mean_var(x.values, "time"), "x: expected a DataArray, got ndarray"),
    (lambda x: bncore.xarray.mean_var(x.resample(time="MS"), "time"),
     "x: expected a DataArray, got DataArrayResample (group it: .groupby("),
    (lambda x: bncore.xarray.normalize(x.coarsen(x=2)),
     "x: expected a DataArray, got DataArrayCoarsen (make blocks a dimension: "),
    (lambda x: bncore.xarray.normalize(x.rolling(time=3)),
     "x: expected a DataArray, got DataArrayRolling (make windows a dimension: "),
    (lambda x: bncore.xarray.mean_var(x.weighted(x[0, 0])),
     "x: expected a DataArray, got DataArrayWeighted (pass weights=)"),
    (lambda x: bncore.xarray.mean_var(x.to_dataset(name="rain")),
     "x: expected a DataArray, got Dataset (pass one of its variables"),
    (lambda x: bncore.xarray.mean_var(x.to_dataset(name="rain").groupby("time.month")),
     "x: expected a DataArray, got DatasetGroupBy (group one of its variables)"),
    (lambda x: bncore.xarray.mean_var(x, "z"), "dim: expected some of ('time', 'y', 'x'), got 'z'"),
    (lambda x: bncore.xarray.mean_var(x, keepdims=3), "keepdims: expected"),
    (lambda x: bncore.xarray.mean_var(x, where=x.values > 1), "where: expected a DataArray"),
    (lambda x: bncore.xarray.mean_var(x, where=x.rename(x="z") > 1), "where: expected some of the"),
    (lambda x: bncore.xarray.mean_var(x, where=x[:, :3] > 1), "where: expected x's coordinates"),
    (lambda x: bncore.xarray.mean_var(x, where=x), "where: expected bool, got float64"),
    (lambda x: bncore.xarray.mean_var(x.groupby("time.month"), where=x[:, :3] > 1),
     "where: expected x's coordinates"),
    (lambda x: bncore.xarray.normalize(x.groupby("y"), weights=x.rename(x="z")),
     "weights: expected some of the dimensions ('time', 'y', 'x')"),
    (lambda x: bncore.xarray.normalize(x, eps=-1.0), "eps: expected"),
])  # fmt: skip
def test_bad_arguments(x, call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(x)
    assert str(error.value).startswith(message)


def test_without_xarray_the_import_names_the_extra():
    code = "import sys; sys.modules['xarray'] = None; import bncore.xarray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: bncore.xarray: expected xarray" in done.stderr
    assert pip_install("xarray") in done.stderr


def test_the_examples_run():
    failed, tried = doctest.testmod(importlib.import_module("bncore.xarray.labelled"))
    assert failed == 0
    assert tried >= 8
