"""Arrays that are read in pieces: every chunk once, and never the whole array."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import bncore
import oracle
import tolerances
from checkout import blocks_of
from stored_arrays import SHAPE, close


class Stored:
    """An array that notes what is read of it, and cannot be read as a whole."""

    def __init__(self, values, chunks):
        self._values = values
        self.shape, self.dtype, self.chunks = values.shape, values.dtype, chunks
        self.places, self.alive = [], []

    def __getitem__(self, place):
        assert not [part for part in self.alive if part() is not None], "two pieces in memory"
        self.places.append(place)
        part = self._values[place].copy()
        self.alive = [weakref.ref(part)]
        return part

    def __array__(self, *args, **options):
        raise AssertionError("the whole array was asked for")


def covered(places):
    """How often each value was read."""
    times = np.zeros(SHAPE, int)
    for place in places:
        times[place] += 1
    return times


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("chunks", [
    (7, 4, 50), (1, 6, 50), (40, 1, 16), (3, 2, 9), (100, 100, 100), None,
    ((30, 9, 1), (2, 4), (50,)), ((0, 40), (2, 0, 4), (50, 0)),
], ids=str)  # fmt: skip
def test_every_chunk_is_read_once(rng, axis, chunks):
    values = rng.normal(3.0, 1.0, SHAPE)
    x = Stored(values, chunks)
    close(bncore.stream_moments(x, axis=axis, block_bytes=2**14), bncore.moments(values, axis=axis))
    assert (covered(x.places) == 1).all()
    if chunks and isinstance(chunks[0], int):
        for place in x.places:
            assert all(part.start % c == 0 for part, c in zip(place, chunks, strict=True))


@pytest.mark.parametrize("chunks, pieces", [
    ((1, 6, 50), 8),  # of 2,400 bytes: six in a block of 16 KiB
    ((1, 2, 50), 8),  # neighbours along the axes that vary faster come first
    ((10, 6, 50), 4),  # of 24,000 bytes: more than a block
    (None, 8),
])  # fmt: skip
def test_a_piece_has_as_many_chunks_as_a_block_holds(rng, chunks, pieces):
    x = Stored(rng.normal(size=SHAPE), chunks)
    bncore.stream_moments(x, block_bytes=2**14)
    assert len(x.places) == pieces - (chunks != (10, 6, 50))


def test_a_chunk_that_is_much_larger_than_a_block_is_refused(rng):
    x = Stored(rng.normal(size=SHAPE), SHAPE)
    with pytest.raises(ValueError, match=r"^x: expected chunks of at most 65536 bytes, 16 times "):
        bncore.stream_moments(x, block_bytes=4096)
    assert not x.places
    assert bncore.stream_moments(x, block_bytes=8192).count[0] == 40 * 50


@pytest.mark.parametrize("lazy", [False, True])
def test_masks_and_weights_may_be_stored_as_well(rng, lazy):
    values = rng.normal(size=SHAPE)
    where, weights = rng.random(SHAPE) < 0.7, rng.random((6, 1))
    x = Stored(values, (7, 4, 50))
    given = {"where": where, "weights": weights}
    own = {"where": Stored(where, (5, 6, 50)), "weights": Stored(weights, None)} if lazy else given
    close(bncore.stream_moments(x, **own, block_bytes=4096), bncore.moments(values, **given))


def test_what_is_in_memory_takes_stored_masks(rng):
    values, where = rng.normal(size=SHAPE), rng.random(SHAPE) < 0.7
    h5py = pytest.importorskip("h5py")
    with h5py.File.in_memory() as file:
        mask = file.create_dataset("mask", data=where)
        found = bncore.stream_moments(values, where=mask, block_bytes=4096)
    close(found, bncore.moments(values, where=where))


def test_progress_counts_all_bytes(rng):
    x, steps = Stored(rng.normal(size=SHAPE), (7, 4, 50)), []
    bncore.stream_moments(x, progress=steps.append, block_bytes=4096)
    assert sum(steps) == 8 * 40 * 6 * 50


@pytest.mark.parametrize("given, message", [
    ({"dtype": np.dtype(complex)}, "x: expected float16, bfloat16"),
    ({"shape": (3,)}, "x: expected at least 2 dimensions, got 1"),
    ({"shape": None}, "x: expected at least 2 dimensions, got 0"),
    ({"shape": (float("nan"), 2)}, "x: expected chunks of known sizes"),
])  # fmt: skip
def test_what_cannot_be_streamed_is_refused_before_a_value_is_read(given, message):
    x = Stored(np.zeros((4, 2)), (2, 2))
    vars(x).update(given)
    with pytest.raises((TypeError, ValueError)) as error:
        bncore.stream_moments(x)
    assert str(error.value).startswith(message)
    assert not x.places


def test_an_empty_stored_array():
    x = Stored(np.zeros((0, 3)), (2, 2))
    assert bncore.stream_moments(x) == bncore.moments(np.zeros((0, 3)))


# Formats


def zarr_array(values, chunks, folder, **options):
    zarr = pytest.importorskip("zarr")
    given = {"shape": values.shape, "dtype": values.dtype, "chunks": chunks}
    array = zarr.create_array(folder / "x.zarr", **given, **options)
    array[:] = values
    return array


def sharded_array(values, chunks, folder):
    return zarr_array(values, chunks, folder, shards=tuple(2 * c for c in chunks))


def hdf5_array(values, _, folder, **options):
    h5py = pytest.importorskip("h5py")
    return h5py.File(folder / "x.h5", "w").create_dataset("x", data=values, **options)


def compressed_array(values, chunks, folder):
    return hdf5_array(values, chunks, folder, chunks=chunks, compression="gzip")


def big_endian_array(values, chunks, folder):
    return hdf5_array(values.astype(values.dtype.newbyteorder(">")), chunks, folder, chunks=chunks)


def dask_array(values, chunks, folder):
    da = pytest.importorskip("dask.array")
    return da.from_array(values, chunks=chunks).map_blocks(np.positive)


@pytest.mark.needs_scale
def test_a_mask_of_dask_is_refused(rng):
    x = pytest.importorskip("dask.array").ma.masked_less(
        dask_array(rng.normal(size=SHAPE), (7, 4, 50), None), 0.0
    )
    with pytest.raises(TypeError, match="x: expected an array without a mask"):
        bncore.stream_moments(x)


def xarray_array(values, chunks, folder):
    xarray = pytest.importorskip("xarray")
    return xarray.DataArray(values, dims=("time", "y", "x"))


FORMATS = [
    zarr_array, sharded_array, hdf5_array, compressed_array, big_endian_array, dask_array,
    xarray_array,
]  # fmt: skip


@pytest.mark.needs_scale
@pytest.mark.parametrize("dtype", [np.float32, np.int16], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=lambda make: make.__name__)
def test_formats(rng, tmp_path, format, dtype):
    values = rng.normal(50.0, 9.0, SHAPE).astype(dtype)
    x = format(values, (7, 4, 50), tmp_path)
    for axis in (0, 1, 2):
        expected = bncore.moments(values, axis=axis)
        close(bncore.stream_moments(x, axis=axis, block_bytes=4096), expected)


@pytest.mark.needs_scale
def test_the_guide_runs(tmp_path, monkeypatch):
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in blocks_of("docs/guides/larger.md", "python"):
        exec(compile(example, "larger.md", "exec"), names)
    images = np.load("images.npy")
    exact = [oracle.exact_moments(color) for color in images.reshape(-1, 3).T]
    mean = np.array([float(color.mean / 255) for color in exact])
    std = np.array([(float(color.var / 255**2) + 1e-5) ** 0.5 for color in exact])
    with h5py.File("normalized.h5") as file:
        written = [np.load("normalized.npy"), file["images"][:], zarr.open("normalized.zarr")[:]]
    for y in written:
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, (images / 255 - mean) / std, atol=1e-6)
    counts = names["counts"].astype(float)
    np.testing.assert_allclose(names["moments"].mean, counts.mean(0), rtol=tolerances.MERGED)
