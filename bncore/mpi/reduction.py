"""Merge what the ranks of a communicator have, so that every rank gets the same bits.

A rank that cannot take part says so before the others wait for its numbers: then all ranks raise an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bncore.arguments import scalars
from bncore.statistics import GradSums, Moments
from bncore.statistics.travel import merged_pairwise, packed, unpacked

Value = TypeVar("Value", Moments, GradSums)

SLAB_BYTES = 1 << 24  # of all ranks' numbers that a rank holds at once
KINDS = (Moments, GradSums)
FAILED = -1


def allreduce(value: Value, comm: MPI.Intracomm) -> Value:
    """Merge the moments, or add the gradient sums, of all ranks; every rank gets the result.

    Every rank gathers the numbers of all ranks and merges them pairwise, rank 0 with 1, 2 with 3,
    then the results of these pairs, and so on.  The tree depends on the number of ranks alone.

    Parameters
    ----------
    value : Moments or GradSums
        What this rank has; the same type with the same number of channels on every rank.  Counts
        may differ, and may be 0.
    comm : mpi4py.MPI.Intracomm
        Every rank of it must call this function.

    Returns
    -------
    Moments or GradSums
        Of the values of all ranks together, with the same bits on every rank.

    Raises
    ------
    TypeError, ValueError
        On every rank, if the types or numbers of channels differ between ranks, or the counts add
        up to more than float64 can represent.
    RuntimeError
        If another rank raised an error.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", COMPSTAT 1982: the pairwise tree.

    Examples
    --------
    >>> from mpi4py import MPI
    >>> import numpy as np
    >>> import bncore.mpi
    >>> part = np.array([[0.0], [2.0]])  # what this rank has; it is alone here
    >>> bncore.mpi.allreduce(bncore.moments(part), MPI.COMM_WORLD)
    Moments(count=array([2.]), mean=array([1.]), m2=array([2.]))
    """
    return gathered(lambda: value, checked_comm(comm))[0]


def checked_comm(comm: object) -> MPI.Intracomm:
    """Return a communicator, or raise TypeError if it is none."""
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, got {scalars.shown(comm)}")
    return comm


def gathered(
    local: Callable[[], Value], comm: MPI.Intracomm, flag: bool = False
) -> tuple[Value, bool]:
    """Merge what `local` returns on every rank; tell whether any rank set the flag.

    If `local` raises on a rank, that rank passes its exception on, and all others raise, too.
    """
    error: Exception | None = None
    state, kind = np.empty((0, 0)), FAILED
    try:
        value = local()
        if type(value) not in KINDS:
            raise TypeError(f"value: expected Moments or GradSums, got {scalars.shown(value)}")
        state, kind = packed(value), KINDS.index(type(value))
    except Exception as caught:
        error = caught
    known = np.empty((comm.size, 3), np.int64)
    comm.Allgather(np.array([kind, state.shape[1], flag], np.int64), known)
    if error is not None:
        raise error
    _require_agreement(known)
    columns: list[npt.NDArray[np.float64]] = []
    channels = state.shape[1]
    run = max(SLAB_BYTES // (comm.size * state.shape[0] * 8), 1)
    for start in range(0, channels, run):
        mine: npt.NDArray[np.float64] = np.ascontiguousarray(state[:, start : start + run])
        parts = np.empty((comm.size, *mine.shape))
        comm.Allgather(mine, parts)
        columns.append(merged_pairwise(parts, KINDS[kind]))
    whole = np.concatenate(columns, axis=1) if columns else state
    return unpacked(whole, KINDS[kind]), bool(known[:, 2].any())


def _require_agreement(known: npt.NDArray[np.int64]) -> None:
    """Refuse values of different kinds or sizes; `known` has a row of each rank."""
    kinds, channels = known[:, 0], known[:, 1]
    for rank in np.flatnonzero(kinds == FAILED):
        raise RuntimeError(f"comm: expected no error on any rank, got one on rank {rank}")
    for rank in np.flatnonzero(kinds != kinds[0]):
        names = [kind.__name__ for kind in KINDS]
        raise TypeError(
            f"value: expected {names[kinds[0]]} on every rank as on rank 0, got "
            f"{names[kinds[rank]]} on rank {rank}"
        )
    for rank in np.flatnonzero(channels != channels[0]):
        raise ValueError(
            f"value: expected {channels[0]} channels on every rank as on rank 0, got "
            f"{channels[rank]} on rank {rank}"
        )
