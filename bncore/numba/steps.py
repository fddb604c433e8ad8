"""The four steps in compiled code: moments, normalize, grad_sums, grad_input."""

from __future__ import annotations

import numpy as np

from bncore.numba.calls import call, checked, doubles, same_as, sizes_of
from bncore.numba.counting import counted, filling, with_counts
from bncore.numba.statistics import (
    GradSums,
    Moments,
    compiled,
    statistics,
    statistics_of_all,
)


@compiled
def moments(x, axis=1, n_threads=1, where=None, weights=None, nan_policy=None):
    """Compute mean and sum of squared deviations of every channel, as `bncore.moments` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    axis : int, default 1
        The channel axis; it may be negative.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy
        As in `bncore.moments`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    Moments
        The moments, always in float64.

    Raises
    ------
    ValueError
        If `axis` is not an axis of x.

    References
    ----------
    B. P. Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
    Technometrics 4 (1962) 419-420, by blocks; merged by equation 2.1 of T. F. Chan, G. H. Golub,
    R. J. LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37
    (1983) 242-247.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> count, mean, m2 = bn.moments(x)
    >>> count.tolist(), mean.tolist(), m2.tolist()
    ([2.0, 2.0], [1.0, 3.0], [2.0, 8.0])
    """
    channels, count = sizes_of(x, axis)
    mean, m2 = np.full(channels, np.nan), np.zeros(channels)
    counts = np.full(channels, np.float64(count))
    own = with_counts(counted(x, axis, where, weights, nan_policy, None), counts)
    checked(call("bncore_moments", x, axis, 0.0, n_threads, (mean, m2, x), own))
    return Moments(counts, mean, m2)


@compiled
def normalize(
    x,
    moments,
    weight=None,
    bias=None,
    axis=1,
    eps=1e-5,
    n_threads=1,
    where=None,
    weights=None,
    nan_policy=None,
    fill=None,
):
    """Normalize by moments, which may be merged ones, as `bncore.normalize` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    moments : Moments
        The moments of the batch that x is a part of.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.normalize`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    ValueError
        If the moments have other channels, or no value in any channel although x is not empty.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> bn.normalize(x, bn.moments(x), eps=1e-12).round(6).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    channels, _ = sizes_of(x, axis)
    count, mean, var = statistics(moments, channels)
    given = counted(x, axis, where, weights, nan_policy, fill)
    if x.size and given is None and not np.any(count > 0.0):
        raise ValueError("moments: expected a count above 0 for an x that is not empty, got less")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    y, own = np.empty_like(x), filling(given, fill)
    arrays = (y, x, mean, var, gamma, beta)
    checked(call("bncore_normalize", x, axis, eps, n_threads, arrays, own))
    return y


@compiled
def grad_sums(
    dy,
    x,
    moments,
    axis=1,
    eps=1e-5,
    n_threads=1,
    where=None,
    weights=None,
    nan_policy=None,
    fill=None,
):
    """Compute the gradient sums of a part of a batch, as `bncore.grad_sums` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        Those of the whole batch.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.grad_sums`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    GradSums
        The sums of the part.  Add those of several parts field by field.

    Raises
    ------
    ValueError
        If dy does not have x's shape, or moments count fewer values than x has.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3: the
    gradients by gamma and beta.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> bn.grad_sums(np.ones((2, 2)), x, bn.moments(x)).sum_dy.tolist()
    [2.0, 2.0]
    """
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    given = counted(x, axis, where, weights, nan_policy, fill)
    least = count if given is None else 0
    counts, mean, var = statistics_of_all(x, moments, channels, least)
    sum_dy, sum_dy_xhat = np.zeros(channels), np.zeros(channels)
    arrays = (sum_dy, sum_dy_xhat, dy, x, mean, var)
    own = with_counts(given, counts)
    checked(call("bncore_grad_sums", x, axis, eps, n_threads, arrays, own))
    return GradSums(sum_dy, sum_dy_xhat)


@compiled
def grad_input(
    dy,
    x,
    moments,
    sums,
    weight=None,
    axis=1,
    eps=1e-5,
    n_threads=1,
    where=None,
    weights=None,
    nan_policy=None,
    fill=None,
):
    """Compute dx of a part of a batch, as `bncore.grad_input` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        Those of the whole batch.
    sums : GradSums
        Those of the whole batch.
    weight : (C,) array of float, optional
        gamma; 1 if it is None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.grad_input`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    array
        dx, of x's shape and dtype.

    Raises
    ------
    ValueError
        If dy, moments or sums do not fit x.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3: the
    gradient by x.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> dy, moments = np.ones((2, 2)), bn.moments(x)
    >>> bn.grad_input(dy, x, moments, bn.grad_sums(dy, x, moments)).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    channels, number = sizes_of(x, axis)
    same_as(dy, x)
    given = counted(x, axis, where, weights, nan_policy, fill)
    least = number if given is None else 0
    count, mean, var = statistics_of_all(x, moments, channels, least)
    total = doubles(sums.sum_dy, channels, "sums: expected one sum_dy per channel of x")
    weighted = doubles(
        sums.sum_dy_xhat, channels, "sums: expected one sum_dy_xhat per channel of x"
    )
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx = np.empty_like(x)
    if x.size:
        arrays = (dx, dy, x, mean, var, total, weighted, count, gamma)
        own = with_counts(given, count)
        checked(call("bncore_grad_input", x, axis, eps, n_threads, arrays, own))
    return dx
