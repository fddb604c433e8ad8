"""Measure moments of an array larger than its reader's memory, against reading that array.

    python benchmarks/stream.py [--format memmap,zarr,...] [--gib 8] [--repeats 3] [--threads N]
                                [--directory D]

Formats: a mapped file (memmap), Zarr in chunks of 16 MiB without compression (zarr), HDF5 in one
run and in such chunks (hdf5, hdf5-chunks), and Dask over the Zarr array (dask).

The array is written, read once so that the system's cache has it (it has to fit there), and deleted
in the end.  Then, in turns: reading it block by block by the means of its format, and
`stream_moments`.  Memory that exists is read into where the format can (memmap, HDF5).  The peak of
this process's memory is reset before and read after each of both, with the pages of a map that are
resident.  The result is checked against the moments of one block, of which the array holds copies.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import bncore
from bncore.data.streaming import BLOCK_BYTES

CHANNELS, PLANE = 64, 56 * 56
SAMPLES = BLOCK_BYTES // (CHANNELS * PLANE * 4)  # of a block
BLOCK = (SAMPLES, CHANNELS, PLANE)

Read = Callable[[], None]


def write_file(path: Path, piece: np.ndarray, copies: int) -> None:
    """Write copies of one array, one after the other."""
    with path.open("wb") as file:
        for _ in range(copies):
            file.write(piece)


def memmap(folder: Path, piece: np.ndarray, copies: int) -> tuple[Any, Read]:
    path = folder / "x"
    write_file(path, piece, copies)
    x = np.memmap(path, np.float32, "r", shape=(copies * SAMPLES, CHANNELS, PLANE))

    def read() -> None:
        buffer = np.zeros(BLOCK_BYTES, np.uint8)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer.data):
                pass

    return x, read


def zarr(folder: Path, piece: np.ndarray, copies: int) -> tuple[Any, Read]:
    import zarr

    shape = (copies * SAMPLES, CHANNELS, PLANE)
    x = zarr.create_array(
        folder / "x.zarr", shape=shape, chunks=BLOCK, dtype="float32", compressors=None
    )
    for i in range(0, x.shape[0], SAMPLES):
        x[i : i + SAMPLES] = piece

    def read() -> None:
        for i in range(0, x.shape[0], SAMPLES):
            x[i : i + SAMPLES]

    return x, read


def dask(folder: Path, piece: np.ndarray, copies: int) -> tuple[Any, Read]:
    import dask.array as da

    x = da.from_zarr(zarr(folder, piece, copies)[0])

    def read() -> None:
        for i in range(0, x.shape[0], SAMPLES):
            np.asarray(x[i : i + SAMPLES])

    return x, read


def hdf5(
    folder: Path, piece: np.ndarray, copies: int, chunks: tuple[int, ...] | None = None
) -> tuple[Any, Read]:
    import h5py

    shape = (copies * SAMPLES, CHANNELS, PLANE)
    with h5py.File(folder / "x.h5", "w") as file:
        x = file.create_dataset("x", shape=shape, dtype="float32", chunks=chunks)
        for i in range(0, x.shape[0], SAMPLES):
            x[i : i + SAMPLES] = piece
    x = h5py.File(folder / "x.h5", "r")["x"]

    def read() -> None:
        buffer = np.empty(BLOCK, np.float32)
        for i in range(0, x.shape[0], SAMPLES):
            x.read_direct(buffer, np.s_[i : i + SAMPLES])

    return x, read


def hdf5_chunks(folder: Path, piece: np.ndarray, copies: int) -> tuple[Any, Read]:
    return hdf5(folder, piece, copies, BLOCK)


FORMATS = {
    "memmap": memmap, "zarr": zarr, "hdf5": hdf5, "hdf5-chunks": hdf5_chunks, "dask": dask
}  # fmt: skip


def resident(what: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+) kB", text)[1]) << 10


def measured(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return what a call gives, its seconds, and the peak of this process's memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start, resident("VmHWM")


def measure(format: str, folder: Path, options: argparse.Namespace) -> None:
    piece = np.random.default_rng(0).standard_normal(BLOCK, np.float32) + 3
    start = resident("VmRSS")
    copies = -(-int(options.gib * (1 << 30)) // piece.nbytes)
    x, read = FORMATS[format](folder, piece, copies)
    size, one = copies * piece.nbytes, bncore.moments(piece)
    bncore.stream_moments(x[:SAMPLES], n_threads=options.threads)
    read()
    reads, streams = [], []
    for _ in range(options.repeats):
        reads.append(measured(read)[1:])
        moments, *found = measured(lambda: bncore.stream_moments(x, n_threads=options.threads))
        streams.append(found)
        assert (moments.count == one.count * copies).all()
        np.testing.assert_allclose(moments.mean, one.mean, rtol=1e-12)
        np.testing.assert_allclose(moments.var(), one.var(), rtol=1e-12)
    speed, limit = (size / median(taken for taken, _ in runs) / 1e9 for runs in (streams, reads))
    peak, alone = (max(memory for _, memory in runs) for runs in (streams, reads))
    print(
        f"{format}: {size / (1 << 30):.2f} GiB, "
        f"{options.threads or bncore.get_num_threads()} thread(s): "
        f"read {limit:.1f} GB/s, moments {speed:.1f} GB/s, {speed / limit:.0%} of it; "
        f"peak of resident memory {peak / 1e6:.0f} MB, {alone / 1e6:.0f} where it is only read, "
        f"{start / 1e6:.0f} before",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", default="memmap", help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    for format in options.format.split(","):
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            measure(format, Path(folder), options)


if __name__ == "__main__":
    main()
