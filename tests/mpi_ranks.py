"""What each rank of an MPI job computes on its part; started by a test with mpiexec.

mpiexec -n RANKS python mpi_ranks.py FOLDER: each rank writes to FOLDER/RANKS-RANK.npz.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import bncore
import bncore.mpi

SHAPE = (14, 5, 4, 3)
EPS = 1e-5
# Where each rank's part of the batch starts; uneven, and with three and four ranks one is empty.
SPLITS = {1: [0, 14], 2: [0, 5, 14], 3: [0, 6, 6, 14], 4: [0, 1, 6, 6, 14]}
CASES = ("all", "where", "weights", "gaps", "channels last")


def data(case: str) -> dict[str, np.ndarray]:
    """The whole batch: x with a mean far from 0, dy, parameters, and what counts."""
    rng = np.random.default_rng(7)
    x, dy = rng.normal(100.0, 2.0, SHAPE), rng.standard_normal(SHAPE)
    found = {"x": x, "dy": dy, "weight": rng.standard_normal(5), "bias": rng.standard_normal(5)}
    if case == "where":
        found["where"] = rng.random((SHAPE[0], 1, 4, 3)) < rng.random((SHAPE[0], 1, 1, 1))
        found["where"][:3] = False  # so that a part has nothing that counts
    if case == "weights":
        found["weights"] = rng.random(SHAPE) * rng.integers(0, 2, SHAPE)
        found["weights"][:, 1] = 0.0  # a channel without a value
    if case == "gaps":
        x[rng.random(SHAPE) < 0.3] = np.nan
    if case == "channels last":
        found |= {name: np.moveaxis(found[name], 1, -1).copy() for name in ("x", "dy")}
    return found


def options(case: str) -> dict:
    return {
        "eps": EPS,
        "axis": -1 if case == "channels last" else 1,
        "nan_policy": "omit" if case == "gaps" else "propagate",
        "fill": 0.0 if case in ("where", "weights", "gaps") else None,
    }


def counted(given: dict, part: slice) -> dict:
    return {name: given[name][part] for name in ("where", "weights") if name in given}


def step(case: str, part: slice, comm: MPI.Intracomm) -> dict[str, np.ndarray]:
    """Forward and backward on a part."""
    given = data(case)
    how = {**options(case), **counted(given, part), "comm": comm, "n_threads": 1}
    x, dy = given["x"][part], given["dy"][part]
    y, moments = bncore.mpi.batch_norm_train(x, given["weight"], given["bias"], **how)
    dx, dweight, dbias = bncore.mpi.batch_norm_train_backward(
        dy, x, moments, given["weight"], **how
    )
    named = {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
    named |= {name: getattr(moments, name) for name in ("count", "mean", "m2")}
    return {f"{case} {name}": value for name, value in named.items()}


def far(rank: int) -> bncore.Moments:
    """Moments of a rank's values, whose mean is 1e12 std from 0: merging has to keep digits."""
    rng = np.random.default_rng(rank)
    return bncore.moments(rng.normal(1e12, 1.0, (50 + rank, 3)))


def said(call) -> np.ndarray:
    """The error of a call, as text."""
    try:
        call()
    except Exception as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array("nothing")


def errors(comm: MPI.Intracomm) -> dict[str, np.ndarray]:
    """What every rank says where rank 1 does something else than the others."""
    odd = comm.rank == 1
    sums = bncore.GradSums([1.0], [2.0])
    one = bncore.moments(np.zeros((2, 1)))
    train, backward = bncore.mpi.batch_norm_train, bncore.mpi.batch_norm_train_backward
    x = np.zeros((2, 2))
    known = bncore.moments(x)
    calls = {
        "kind": lambda: bncore.mpi.allreduce(sums if odd else one, comm),
        "channels": lambda: bncore.mpi.allreduce(bncore.moments(np.zeros((2, 1 + odd))), comm),
        "type": lambda: bncore.mpi.allreduce("a" if odd else one, comm),
        "x": lambda: train(np.zeros((2, 2), "int64") if odd else x, comm=comm),
        "weight": lambda: train(x, np.ones(3 if odd else 2), comm=comm),
        "weight of backward": lambda: backward(x, x, known, np.ones(2 + odd), comm=comm),
        "one value": lambda: train(np.zeros((int(comm.rank == 0), 2)), comm=comm),
        "no comm": lambda: train(x, comm=None),
    }
    return {f"error {name}": said(call) for name, call in calls.items()}


def main(folder: Path) -> None:
    """Do everything, each call after a pause of random length."""
    comm = MPI.COMM_WORLD
    part = slice(*SPLITS[comm.size][comm.rank : comm.rank + 2])
    found: dict[str, np.ndarray] = {}
    for case in CASES:
        time.sleep(random.random() / 50)  # in another order each time
        found |= step(case, part, comm)
    merged = bncore.mpi.allreduce(far(comm.rank), comm)
    found |= {f"far {name}": getattr(merged, name) for name in ("count", "mean", "m2")}
    backwards = comm.Split(key=-comm.rank)  # other ranks for the same processes
    again = bncore.mpi.allreduce(far(backwards.rank), backwards)
    found["far again"] = np.array(again == merged)
    none = bncore.mpi.batch_norm_train(np.zeros((0, 2)), comm=comm)[1]
    found["none"] = none.count
    if comm.size > 1:
        found |= errors(comm)
    np.savez(folder / f"{comm.size}-{comm.rank}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
