"""Compare bncore.mpi's synchronized batch norm with one process that has the whole batch.

    mpiexec -n 4 python -m mpi4py benchmarks/mpi_batch_norm.py [--repeats 20]

The batch is float64, 64x64x28x28, with a mean of 100 standard deviations; each rank has an uneven
part, and a quarter of the values is masked.  An error is relative to the largest value.  All ranks
compare their bits.  The times are those of forward and backward on this machine's ranks, one thread
each, beside the same calls without a communicator.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
from mpi4py import MPI

import bncore
import bncore.mpi

SHAPE = (64, 64, 28, 28)
NAMES = ("y", "dx", "dweight", "dbias", "mean", "m2")


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value; 0 where a part is empty."""
    return float(np.abs(got - want).max(initial=0.0) / np.abs(want).max(initial=1e-300))


def step(module: Any, x: Any, dy: Any, weight: Any, bias: Any, **options: Any) -> tuple[Any, ...]:
    """Return the results of forward and backward, by the names above."""
    y, moments = module.batch_norm_train(x, weight, bias, n_threads=1, **options)
    gradients = module.batch_norm_train_backward(dy, x, moments, weight, n_threads=1, **options)
    return y, *gradients, moments.mean, moments.m2


def main() -> None:
    """Compare, then time; rank 0 prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    rng = np.random.default_rng(0)
    x, dy = rng.normal(200.0, 2.0, SHAPE), rng.standard_normal(SHAPE)
    where = rng.random((SHAPE[0], 1, *SHAPE[2:])) < 0.75
    parameters = rng.standard_normal((2, SHAPE[1]))
    ends = [SHAPE[0] * k * k // comm.size**2 for k in range(comm.size + 1)]  # uneven
    part = slice(ends[comm.rank], ends[comm.rank + 1])
    own = x[part], dy[part], *parameters
    for name, mask in (("all", None), ("masked", where)):
        given = {} if mask is None else {"where": mask[part]}
        whole = step(bncore, x, dy, *parameters, **({} if mask is None else {"where": mask}))
        mine = step(bncore.mpi, *own, comm=comm, **given)
        wanted = [w[part] if w.ndim > 1 else w for w in whole]
        errors = [error(m, w) for m, w in zip(mine, wanted, strict=True)]
        worst = np.max(comm.allgather(errors), axis=0)
        bits = comm.allgather(b"".join(shared.tobytes() for shared in mine[2:]))
        assert worst.max() <= 1e-12 and len(set(bits)) == 1
        if comm.rank == 0:
            shown = ", ".join(f"{n} {e:.1e}" for n, e in zip(NAMES, worst, strict=True))
            print(f"{comm.size} ranks, {name}: {shown}; the same bits on every rank", flush=True)
    times: dict[str, list[float]] = {"with comm": [], "without": []}
    for _ in range(options.repeats):
        for name, module, given in (
            ("with comm", bncore.mpi, {"comm": comm}),
            ("without", bncore, {}),
        ):
            comm.Barrier()
            start = time.perf_counter()
            step(module, *own, **given)
            comm.Barrier()
            times[name].append(time.perf_counter() - start)
    if comm.rank == 0:
        print(", ".join(f"{name} {1e3 * median(taken):.2f} ms" for name, taken in times.items()))


if __name__ == "__main__":
    main()
