"""Standardize the features of a table on disk in several processes.

    mpiexec -n 4 python -m mpi4py features_mpi.py TABLE.npy SCALED.npy

TABLE.npy holds float32 or float64 values, a row for each sample.  Each process maps the file and
reads its own rows, twice; what travels between them is four numbers per feature.  NaN are gaps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

import bncore
import bncore.mpi


def main(source: Path, target: Path) -> None:
    """Do the part of this process."""
    comm = MPI.COMM_WORLD
    table = np.load(source, mmap_mode="r")
    start, stop = (len(table) * k // comm.size for k in (comm.rank, comm.rank + 1))
    mine = table[start:stop]

    # One thread each: the processes share the processors of this machine.
    local = bncore.stream_moments(mine, nan_policy="omit", n_threads=1)
    moments = bncore.mpi.allreduce(local, comm)

    if comm.rank == 0:
        np.lib.format.open_memmap(target, "w+", table.dtype, table.shape)
    comm.Barrier()
    scaled = np.load(target, mmap_mode="r+")
    for rows in range(start, stop, 1 << 16):
        part = slice(rows, min(rows + (1 << 16), stop))
        bncore.standardize(table[part], moments, out=scaled[part], n_threads=1)
    scaled.flush()
    comm.Barrier()
    if comm.rank == 0:
        print(f"{len(table)} rows on {comm.size} ranks; values per feature: {moments.count}")
        print(f"mean {moments.mean}\nstd  {moments.std()}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: mpiexec -n 4 python -m mpi4py features_mpi.py TABLE.npy SCALED.npy")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
