"""Compute the moments of a file in several processes: merge_processes.py FILE.npy [PROCESSES].

FILE.npy holds float32 or float64 values, samples along axis 0 and channels along axis 1.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import bncore


def part_of_file(job: tuple[Path, int, int]) -> bncore.Moments:
    """Compute the moments of one part of the samples. Each process does this."""
    path, part, parts = job
    x = np.load(path, mmap_mode="r")
    start, stop = (len(x) * i // parts for i in (part, part + 1))
    return bncore.stream_moments(x[start:stop], n_threads=1)


def moments_of_file(path: Path, processes: int) -> bncore.Moments:
    """Merge the moments that the processes send back pickled, in the order of the parts."""
    jobs = [(path, part, processes) for part in range(processes)]
    with get_context("spawn").Pool(processes) as pool:
        return bncore.merged_moments(pool.imap(part_of_file, jobs))


if __name__ == "__main__":
    found = moments_of_file(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    print(f"count {found.count}\nmean {found.mean}\nstd  {found.std()}")
