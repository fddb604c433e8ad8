"""Measure moments of a mapped file larger than its reader's memory, against reading that file.

    python benchmarks/stream.py [--gib 8] [--repeats 3] [--threads N] [--directory D]

The file is written, read once so that the system's cache has it (it has to fit there), and deleted
in the end.  Then, in turns: reading it block by block into one buffer, and `stream_moments` of its
map.  The peak of this process's memory is reset before and read after each stream; growth is what
counts, with the pages of the map that are resident.  The result is checked against the moments of
one block, of which the file holds copies.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

import bncore
from bncore.data.streaming import BLOCK_BYTES

CHANNELS, PLANE = 64, 56 * 56


def write(path: Path, size: int) -> tuple[np.ndarray, int]:
    """Write copies of one array, (samples, 64, 56*56) float32, and return it and their number."""
    samples = BLOCK_BYTES // (CHANNELS * PLANE * 4)
    piece = np.random.default_rng(0).standard_normal((samples, CHANNELS, PLANE), np.float32) + 3
    copies = -(-size // piece.nbytes)
    with path.open("wb") as file:
        for _ in range(copies):
            file.write(piece)
    return piece, copies


def read(path: Path) -> float:
    """Seconds to read the file into a buffer of one block."""
    buffer = np.zeros(BLOCK_BYTES, np.uint8)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer.data):
            pass
    return time.perf_counter() - start


def resident(what: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+) kB", text)[1]) << 10


def stream(x: np.memmap, threads: int | None) -> tuple[float, int, bncore.Moments]:
    """Seconds, growth of the peak of resident memory in bytes, and the result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    start = time.perf_counter()
    moments = bncore.stream_moments(x, n_threads=threads)
    taken = time.perf_counter() - start
    return taken, resident("VmHWM") - before, moments


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "x"
        piece, copies = write(path, int(options.gib * (1 << 30)))
        size = path.stat().st_size
        x = np.memmap(path, np.float32, "r", shape=(copies * len(piece), *piece.shape[1:]))
        one = bncore.moments(piece)
        bncore.stream_moments(x[: len(piece)], n_threads=options.threads)
        read(path)
        reads, streams, growth = [], [], []
        for _ in range(options.repeats):
            reads.append(read(path))
            taken, grown, moments = stream(x, options.threads)
            streams.append(taken)
            growth.append(grown)
            assert (moments.count == one.count * copies).all()
            np.testing.assert_allclose(moments.mean, one.mean, rtol=1e-12)
            np.testing.assert_allclose(moments.var(), one.var(), rtol=1e-12)
        del x
    speed, limit = (size / median(times) / 1e9 for times in (streams, reads))
    print(
        f"{size / (1 << 30):.2f} GiB, {options.threads or bncore.get_num_threads()} thread(s): "
        f"read {limit:.1f} GB/s, moments {speed:.1f} GB/s, {speed / limit:.0%} of it; "
        f"peak of resident memory grew by {max(growth) / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
