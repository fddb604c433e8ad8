"""Measure bncore.dask: its accuracy, its time and memory beside Dask's, and a small cluster.

    python benchmarks/scale.py [accuracy] [speed] [cluster] [--gb 4] [--virtual-gb 20]
                               [--repeats 3] [--sources mapped,zarr,random] [--directory D]

accuracy: the variance of float32 values with mean/std 1e4, in chunks of random sizes and with gaps,
    against exact rational arithmetic, beside Dask's.
speed: mean and variance in one compute on the threaded scheduler, beside `x.mean()` and `x.var()`
    in one compute: of float32 in Zarr without compression, whose store maps the files of the chunks
    (mapped) or reads them (zarr), and of chunks of uniform random numbers that are made when they
    are needed (random).  Each measurement has a process of its own, and its peak of resident memory
    is compared with that of the process before.
cluster: a `LocalCluster` of two processes with one gigabyte each, and a virtual float32 array of
    many gigabytes whose mean and variance are known.

Without one of these words, all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import dask
import dask.array as da
import numpy as np

import bncore.dask

CHUNK = 2**24  # values; 64 MiB of float32


def resident(what: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+) kB", text)[1]) << 10


# Accuracy


def exact_variance(values: np.ndarray) -> Fraction:
    """The variance of the values that are not NaN, near 1e4, in exact arithmetic."""
    steps = (values[~np.isnan(values)].astype(np.float64) - 1e4) * 2**10
    whole = [int(step) for step in steps]
    assert whole == steps.tolist()
    total, squares = sum(whole), sum(step * step for step in whole)
    return (Fraction(squares, len(whole)) - Fraction(total, len(whole)) ** 2) / 2**20


def accuracy(_: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    size = 1_000_000
    x = rng.normal(1e4, 1.0, size).astype(np.float32)
    cuts = np.sort(rng.choice(size, 40, replace=False))
    chunks = (tuple(np.diff([0, *cuts, size]).tolist()),)
    print(f"accuracy: {size} float32 values, mean/std 1e4, 41 chunks of random sizes")
    for name, share in (("no gaps", 0.0), ("30 % gaps", 0.3)):
        x[rng.random(size) < share] = np.nan
        lazy = da.from_array(x, chunks=chunks)
        exact = exact_variance(x)
        policy = "omit" if share else "propagate"
        own = [
            bncore.dask.mean_var(lazy, nan_policy=policy, dtype=dtype)[1]
            for dtype in (None, np.float64)
        ]
        theirs = (da.nanvar if share else da.var)(lazy)
        wide = (da.nanvar if share else da.var)(lazy, dtype=np.float64)
        found = dask.compute(*own, theirs, wide)
        off = [float(abs(Fraction(float(v)) - exact) / exact) for v in found]
        print(
            f"  {name}: relative error of the variance, float32 result: bncore {off[0]:.1e}, "
            f"Dask {off[2]:.1e}; float64 result: bncore {off[1]:.1e}, Dask {off[3]:.1e}"
        )


# Speed


def source(kind: str, size: int, folder: Path) -> da.Array:
    """A float32 array of so many bytes in chunks of 64 MiB."""
    chunks = size // (CHUNK * 4)
    if kind == "random":
        rng = da.random.default_rng(0)
        return rng.random((chunks * CHUNK,), chunks=CHUNK, dtype=np.float32)
    import zarr

    store = (mapping_store() if kind == "mapped" else zarr.storage.LocalStore)(folder / "x.zarr")
    return da.from_zarr(zarr.open_array(store, mode="r"))


def mapping_store() -> type:
    """Return a kind of store of Zarr that maps the files of chunks instead of reading them."""
    from zarr.storage import LocalStore

    class MappingStore(LocalStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            if byte_range is not None or not key.rpartition("/")[2].isdigit():  # not a whole chunk
                return await super().get(key, prototype, byte_range)
            return prototype.buffer.from_array_like(np.memmap(self.root / key, np.uint8, "r"))

    return MappingStore


def write_zarr(size: int, folder: Path) -> None:
    import zarr

    chunks = size // (CHUNK * 4)
    options = {"chunks": (CHUNK,), "dtype": "float32", "compressors": None}
    x = zarr.create_array(folder / "x.zarr", shape=(chunks * CHUNK,), **options)
    piece = np.random.default_rng(0).standard_normal(CHUNK, np.float32) + 3
    for i in range(chunks):
        x[i * CHUNK : (i + 1) * CHUNK] = piece


def one_measurement(who: str, kind: str, size: int, folder: Path) -> dict[str, Any]:
    """Time one compute of mean and variance in this process, and its peak of memory."""
    x = source(kind, size, folder)
    small = x[:1000]
    calls = {
        "bncore": lambda x: bncore.dask.mean_var(x),
        "dask": lambda x: (x.mean(), x.var()),
        "read": lambda x: (x.map_blocks(_one_value, chunks=((1,) * x.numblocks[0],)),),
    }
    dask.compute(*calls[who](small), scheduler="threads", num_workers=2)
    before = resident("VmRSS")
    start, computed = time.perf_counter(), time.process_time()
    found = dask.compute(*calls[who](x), scheduler="threads", num_workers=2)
    taken, computed = time.perf_counter() - start, time.process_time() - computed
    return {
        "seconds": taken, "processor": computed, "peak": resident("VmHWM") - before,
        "found": [float(np.ravel(v)[0]) for v in found],
    }  # fmt: skip


def _one_value(block: np.ndarray) -> np.ndarray:
    """Read a chunk and drop it."""
    return block[:1].copy()


def speed(options: argparse.Namespace) -> None:
    size = int(options.gb * 1e9)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        folder = Path(name)
        for kind in options.sources.split(","):
            if kind != "random" and not (folder / "x.zarr").exists():
                write_zarr(size, folder)
            results: dict[str, list[dict[str, Any]]] = {"bncore": [], "dask": [], "read": []}
            for _ in range(options.repeats):
                for who, found in results.items():
                    command = [sys.executable, __file__, "one", who, kind, str(size), name]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.append(json.loads(done.stdout))
            np.testing.assert_allclose(
                results["bncore"][0]["found"], results["dask"][0]["found"], rtol=1e-5, atol=1e-4
            )
            report(f"{kind}, {options.gb:g} GB of float32, chunks of 64 MiB", results)


def report(what: str, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the medians, and how many times bncore's Dask's are."""
    print(f"speed: {what}, 2 threads, {len(results['dask'])} repeats")
    for key, unit in (("seconds", "s"), ("processor", "s of the processors"), ("peak", "MB more")):
        scale = 1e6 if key == "peak" else 1.0
        own, theirs, alone = (
            median(r[key] for r in results[who]) / scale for who in ("bncore", "dask", "read")
        )
        print(
            f"  {own:.2f} {unit}, Dask {theirs:.2f}: {theirs / own:.2f} times; "
            f"the chunks alone {alone:.2f}",
            flush=True,
        )


# A cluster


def virtual(gigabytes: float) -> tuple[da.Array, float, float]:
    """An array whose chunks are made when they are needed, with its mean and variance."""
    blocks = int(gigabytes * 1e9 / (CHUNK * 4))

    def make(block_id: tuple[int, ...]) -> np.ndarray:
        values = np.arange(CHUNK, dtype=np.float32)  # exact below 2**24
        np.remainder(values, 256, out=values)
        values += block_id[0]
        return values

    x = da.map_blocks(
        make, chunks=((CHUNK,) * blocks,), dtype=np.float32, meta=np.empty(0, np.float32),
        name=f"virtual-{blocks}",
    )  # fmt: skip
    mean, var = 255 / 2 + (blocks - 1) / 2, (256**2 - 1) / 12 + (blocks**2 - 1) / 12
    return x, mean, var


def cluster(options: argparse.Namespace) -> None:
    from distributed import Client, LocalCluster

    x, mean, var = virtual(options.virtual_gb)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=":0"
        ) as workers,
        Client(workers) as client,
    ):
        before = client.run(resident, "VmRSS")
        start = time.perf_counter()
        found = client.gather(client.compute(list(bncore.dask.mean_var(x, dtype=np.float64))))
        taken = time.perf_counter() - start
        peaks = client.run(resident, "VmHWM")
        assert before.keys() == peaks.keys(), "a worker was replaced"
    np.testing.assert_allclose(found, [mean, var], rtol=1e-12)
    shown = ", ".join(f"{peak / 1e6:.0f} MB" for peak in peaks.values())
    print(
        f"cluster: {x.nbytes / 1e9:.1f} GB in {x.numblocks[0]} chunks on 2 processes of 1 GB: "
        f"{taken:.1f} s, {x.nbytes / taken / 1e9:.1f} GB/s; peaks of the workers: {shown}; "
        f"no worker was replaced, mean and variance are right to 1e-12"
    )


PARTS = {"accuracy": accuracy, "speed": speed, "cluster": cluster}


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        who, kind, size, folder = sys.argv[2:]
        print(json.dumps(one_measurement(who, kind, int(size), Path(folder))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--virtual-gb", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sources", default="mapped,zarr,random")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    for name in options.parts or PARTS:
        PARTS[name](options)


if __name__ == "__main__":
    main()
