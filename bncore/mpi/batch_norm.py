"""Batch norm over the parts of a batch that the ranks of a communicator hold."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from bncore.arguments.problem import Problem
from bncore.arguments.weights import NanPolicy
from bncore.functions.steps import grad_input, grad_sums, moments, normalize
from bncore.mpi.reduction import checked_comm, gathered
from bncore.statistics import GradSums, Moments

Array = npt.NDArray[np.floating[Any]]


def batch_norm_train(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    comm: MPI.Intracomm,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Moments]:
    """Normalize this rank's part of a batch by the statistics of the whole batch.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        This rank's part, with the same number of channels on every rank.  The other sizes may
        differ and may be 0, and so may `where`, `weights` and the dtype.
    weight, bias : (C,) array_like of float, optional
        gamma and beta, the same on every rank; 1 and 0 if they are None.
    comm : mpi4py.MPI.Intracomm
        Every rank of it must call this function.
    axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `bncore.batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    moments : Moments
        Of the whole batch, with the same bits on every rank.  Pass them to
        `batch_norm_train_backward` and, on every rank, to `bncore.update_running_stats`.

    Raises
    ------
    TypeError, ValueError
        As `bncore.batch_norm_train`, and if the numbers of channels differ, or there is one value
        per channel on all ranks together.
    RuntimeError
        If another rank raised an error.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1.

    Examples
    --------
    >>> from mpi4py import MPI
    >>> import numpy as np
    >>> import bncore.mpi
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])  # this rank's part; it is alone here
    >>> y, moments = bncore.mpi.batch_norm_train(x, comm=MPI.COMM_WORLD, eps=0.0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> dy = np.array([[1.0, 0.0], [0.0, 0.0]])
    >>> bncore.mpi.batch_norm_train_backward(dy, x, moments, comm=MPI.COMM_WORLD, eps=0.0)[1]
    array([-1.,  0.])
    """
    comm = checked_comm(comm)
    common: dict[str, Any] = {
        "axis": axis, "n_threads": n_threads,
        "where": where, "weights": weights, "nan_policy": nan_policy,
    }  # fmt: skip
    weighs = where is not None or weights is not None or nan_policy == "omit"

    def local() -> Moments:
        p = Problem(x, axis)
        p.optional("weight", weight), p.optional("bias", bias)
        return moments(x, **common)

    found, any_weighs = gathered(local, comm, weighs)
    if not any_weighs and (found.count == 1.0).any():
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 on all ranks together"
        )
    y = normalize(x, found, weight, bias, eps=eps, out=out, fill=fill, **common)
    return y, found


def batch_norm_train_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    weight: npt.ArrayLike | None = None,
    *,
    comm: MPI.Intracomm,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `batch_norm_train` for this rank's part.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to y, of x's shape and dtype.
    x, weight, comm, axis, eps, where, weights, nan_policy, fill
        As in `batch_norm_train`.
    moments : Moments
        Of the whole batch, as `batch_norm_train` returned them.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives dx; it may be dy or x.
    n_threads : int, optional
        As in `bncore.batch_norm_train`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    dweight, dbias : (C,) ndarray
        Of the whole batch, with the same bits on every rank, in weight's dtype.  Without a weight
        they have x's dtype, or float32 if that has 16 bits.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in `batch_norm_train`.
    """
    comm = checked_comm(comm)
    common: dict[str, Any] = {
        "axis": axis, "n_threads": n_threads, "eps": eps, "fill": fill,
        "where": where, "weights": weights, "nan_policy": nan_policy,
    }  # fmt: skip

    def local() -> GradSums:
        Problem(x, axis).optional("weight", weight)
        return grad_sums(dy, x, moments, **common)

    sums, _ = gathered(local, comm)
    p = Problem(x, axis)
    gamma = p.optional("weight", weight)
    dx = grad_input(dy, x, moments, sums, weight, out=out, **common)
    dweight, dbias = (p.parameter_gradient(each, gamma) for each in (sums.sum_dy_xhat, sums.sum_dy))
    return dx, dweight, dbias
