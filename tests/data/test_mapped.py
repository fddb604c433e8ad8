"""Stored arrays are mapped where their bytes in the file are their values, and only there."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import bncore
from bncore.data import hdf5_files, zarr_files
from stored_arrays import SHAPE, close

pytestmark = [
    pytest.mark.needs_scale,
    pytest.mark.skipif(sys.platform == "win32", reason="files are not mapped on Windows"),
]
BLOCK_BYTES = 1 << 14


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.fixture
def counted(monkeypatch):
    """The number of parts that were found in the map, and of those that were not."""
    found = {"mapped": 0, "read": 0}

    def counting(part):
        def wrapped(self, place):
            block = part(self, place)
            found["read" if block is None else "mapped"] += 1
            return block

        return wrapped

    for kind in hdf5_files.MappedDataset, zarr_files.MappedChunks:
        monkeypatch.setattr(kind, "part", counting(kind.part))
    return found


def written(h5py, path, values, mode="r", file_options=None, **options):
    with h5py.File(path, "w", **(file_options or {})) as file:
        if "dtype" not in options:
            options["dtype"] = values.dtype
        file.create_dataset("x", data=values, **options)
    return h5py.File(path, mode)["x"]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "u1", "<i2"])
@pytest.mark.parametrize("chunks", [None, SHAPE, (16, 6, 50), (40, 4, 50)], ids=str)
def test_plain_values_are_mapped(rng, tmp_path, h5py, counted, dtype, chunks):
    values = rng.normal(50.0, 9.0, SHAPE).astype(dtype)
    x = written(h5py, tmp_path / "x.h5", values, chunks=chunks)
    block_bytes = 4096 if chunks is None else int(np.prod(chunks)) * values.itemsize
    for axis in (0, 1, 2):
        expected = bncore.moments(values, axis=axis)
        close(bncore.stream_moments(x, axis=axis, block_bytes=block_bytes), expected)
    assert counted["mapped"] >= 3 and counted["read"] == 0


def test_a_mapped_part_is_a_view_of_the_file(rng, tmp_path, h5py):
    values = rng.normal(size=SHAPE)
    mapped = hdf5_files.mapped(written(h5py, tmp_path / "x.h5", values))
    block = mapped.part(np.s_[3:9, 0:6, 0:50])
    np.testing.assert_array_equal(block, values[3:9])
    assert not block.flags.owndata and not block.flags.writeable
    mapped.drop(block)
    np.testing.assert_array_equal(block, values[3:9])


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path, h5py, counted):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", (64, 3, 32), "f4", chunks=(16, 3, 32), fillvalue=2.0)
        x[16:32] = 5.0
    x = h5py.File(tmp_path / "x.h5", "r")["x"]
    moments = bncore.stream_moments(x, block_bytes=8192)
    assert counted == {"mapped": 1, "read": 3}
    np.testing.assert_array_equal(moments.mean, np.full(3, 2.75))


def test_several_chunks_in_a_block_are_read(rng, tmp_path, h5py, counted):
    values = rng.normal(size=SHAPE)
    x = written(h5py, tmp_path / "x.h5", values, chunks=(2, 3, 10))
    close(bncore.stream_moments(x, block_bytes=1 << 15), bncore.moments(values))
    assert counted["mapped"] == 0 < counted["read"]


def odd_floats(h5py):
    """A type of the file that HDF5 converts: float32 with a mantissa of 15 bits."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 23, 8, 8, 15)
    return kind


REFUSED = {
    "open for writing": {"mode": "r+"},
    "compressed": {"chunks": (10, 6, 50), "compression": "gzip"},
    "with checksums": {"chunks": (10, 6, 50), "fletcher32": True},
    "behind a user block": {"file_options": {"userblock_size": 512}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_data_sets_are_read_by_h5py(rng, tmp_path, h5py, counted, why):
    values = rng.normal(size=SHAPE)
    x = written(h5py, tmp_path / "x.h5", values, **REFUSED[why])
    close(bncore.stream_moments(x, block_bytes=BLOCK_BYTES), bncore.moments(values))
    assert counted == {"mapped": 0, "read": 0}


def test_what_was_written_a_moment_ago_is_counted(rng, tmp_path, h5py):
    values = rng.normal(size=SHAPE)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", SHAPE, "f8", chunks=(40, 6, 50))
        x[...] = values
        close(bncore.stream_moments(x, block_bytes=1 << 17), bncore.moments(values))


def test_types_that_hdf5_converts_are_read(rng, tmp_path, h5py, counted):
    values = rng.integers(0, 99, SHAPE).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        space = h5py.h5s.create_simple(SHAPE)
        made = h5py.h5d.create(file.id, b"x", odd_floats(h5py), space)
        h5py.Dataset(made)[...] = values
    x = h5py.File(tmp_path / "x.h5", "r")["x"]
    close(bncore.stream_moments(x, block_bytes=BLOCK_BYTES), bncore.moments(values))
    assert counted == {"mapped": 0, "read": 0}


def test_external_and_virtual_data_sets_are_read(rng, tmp_path, h5py, counted):
    values = rng.normal(size=SHAPE)
    raw = tmp_path / "raw"
    values.tofile(raw)
    written(h5py, tmp_path / "part.h5", values).file.close()
    layout = h5py.VirtualLayout(SHAPE, "f8")
    layout[...] = h5py.VirtualSource(tmp_path / "part.h5", "x", SHAPE)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "external", SHAPE, "f8", external=[(os.fspath(raw), 0, raw.stat().st_size)]
        )
        file.create_virtual_dataset("virtual", layout)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        for x in file.values():
            close(bncore.stream_moments(x, block_bytes=BLOCK_BYTES), bncore.moments(values))
    assert counted == {"mapped": 0, "read": 0}


def test_a_file_with_another_driver_is_read(rng, tmp_path, h5py, counted):
    values = rng.normal(size=SHAPE)
    written(h5py, tmp_path / "x.h5", values).file.close()
    with h5py.File(tmp_path / "x.h5", "r", driver="core") as file:
        close(bncore.stream_moments(file["x"], block_bytes=BLOCK_BYTES), bncore.moments(values))
    assert counted == {"mapped": 0, "read": 0}


# ------------------------------------------------------------------------------------------- Zarr


def zarr_array(path, values, chunks, **options):
    zarr = pytest.importorskip("zarr")
    options = {"compressors": None, "shape": values.shape, "dtype": values.dtype} | options
    x = zarr.create_array(path, chunks=chunks, **options)
    x[...] = values
    return x


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "u1", "<i2"])
@pytest.mark.parametrize("chunks", [SHAPE, (16, 6, 50), (40, 4, 50)], ids=str)
def test_plain_chunks_of_zarr_are_mapped(rng, tmp_path, counted, version, dtype, chunks):
    values = rng.normal(50.0, 9.0, SHAPE).astype(dtype)
    x = zarr_array(tmp_path / "x.zarr", values, chunks, zarr_format=version)
    for axis in (0, 1, 2):
        expected = bncore.moments(values, axis=axis)
        block_bytes = int(np.prod(chunks)) * values.itemsize
        close(bncore.stream_moments(x, axis=axis, block_bytes=block_bytes), expected)
    assert counted["mapped"] >= 3 and counted["read"] == 0


def test_zarr_in_the_other_byte_order_is_mapped(rng, tmp_path, counted):
    zarr = pytest.importorskip("zarr")
    values = rng.normal(size=SHAPE)
    big = zarr.codecs.BytesCodec(endian="big")
    x = zarr_array(tmp_path / "x.zarr", values, SHAPE, serializer=big)
    close(bncore.stream_moments(x, block_bytes=values.nbytes), bncore.moments(values))
    assert counted == {"mapped": 1, "read": 0}


def test_an_array_of_a_group_of_zarr_is_mapped(rng, tmp_path, counted):
    zarr = pytest.importorskip("zarr")
    values = rng.normal(size=SHAPE)
    group = zarr.create_group(tmp_path / "x.zarr").create_group("inner")
    x = group.create_array("x", data=values, chunks=(20, 6, 50), compressors=None)
    close(bncore.stream_moments(x, block_bytes=1 << 16), bncore.moments(values))
    assert counted == {"mapped": 2, "read": 0}


def test_chunks_of_zarr_without_a_file_have_the_fill_value(tmp_path, counted):
    zarr = pytest.importorskip("zarr")
    x = zarr.create_array(
        tmp_path / "x.zarr", shape=(64, 3, 32), chunks=(16, 3, 32), dtype="f4", fill_value=2.0,
        compressors=None,
    )  # fmt: skip
    x[16:32] = 5.0
    moments = bncore.stream_moments(x, block_bytes=8192)
    assert counted == {"mapped": 1, "read": 3}
    np.testing.assert_array_equal(moments.mean, np.full(3, 2.75))


OTHER_ARRAYS = {
    "compressed": {"compressors": "auto"},
    "in shards": {"shards": (40, 6, 50)},
    "in Fortran's order": {"order": "F", "zarr_format": 2},
}


@pytest.mark.parametrize("why", [*OTHER_ARRAYS, "in memory"])
def test_other_arrays_of_zarr_are_read(rng, tmp_path, counted, why):
    values = rng.normal(size=SHAPE)
    place = {} if why == "in memory" else tmp_path / "x.zarr"
    x = zarr_array(place, values, (10, 6, 50), **OTHER_ARRAYS.get(why, {}))
    close(bncore.stream_moments(x, block_bytes=BLOCK_BYTES), bncore.moments(values))
    assert counted == {"mapped": 0, "read": 0}
