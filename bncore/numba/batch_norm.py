"""Training and inference in compiled code, forward and backward."""

from __future__ import annotations

import numpy as np

from bncore.numba.calls import as_parameter, call, checked, doubles, same_as, sizes_of
from bncore.numba.counting import counted, filling, with_counts
from bncore.numba.statistics import Moments, compiled, statistics


@compiled
def batch_norm_train(
    x,
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
    """Normalize by the batch's own statistics, as `bncore.batch_norm_train` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.batch_norm_train`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    y : array
        An array of x's shape and dtype.
    moments : Moments
        The moments of the batch, for backward.

    Raises
    ------
    ValueError
        If a parameter has another size than C, or a channel has only one value.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> y, moments = bn.batch_norm_train(x, eps=1e-12)
    >>> y.round(6).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    channels, count = sizes_of(x, axis)
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    given = counted(x, axis, where, weights, nan_policy, fill)
    if count == 1 and given is None:
        raise ValueError("x: expected more than one value per channel in training, got 1")
    y, mean, m2 = np.empty_like(x), np.full(channels, np.nan), np.zeros(channels)
    counts, arrays = np.full(channels, np.float64(count)), (y, mean, m2, x, gamma, beta)
    own = with_counts(given, counts)
    checked(call("bncore_train", x, axis, eps, n_threads, arrays, own))
    return y, Moments(counts, mean, m2)


@compiled
def batch_norm_train_backward(
    dy,
    x,
    moments,
    weight=None,
    axis=1,
    eps=1e-5,
    n_threads=1,
    where=None,
    weights=None,
    nan_policy=None,
    fill=None,
):
    """Differentiate `batch_norm_train`, as `bncore.batch_norm_train_backward` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        The moments of x, from `batch_norm_train` or `moments`.
    weight : (C,) array of float, optional
        gamma; 1 if it is None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.batch_norm_train_backward`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    dx : array
        An array of x's shape and dtype.
    dweight, dbias : (C,) array
        Arrays of weight's dtype, or of x's if weight is None; in dy's unit.

    Raises
    ------
    ValueError
        If dy does not have x's shape, or the moments have other channels or other counts.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> _, moments = bn.batch_norm_train(x)
    >>> dx, dweight, dbias = bn.batch_norm_train_backward(np.ones((2, 2)), x, moments)
    >>> dx.tolist(), dbias.tolist()
    ([[0.0, 0.0], [0.0, 0.0]], [2.0, 2.0])
    """
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    counts, mean, var = statistics(moments, channels)
    given = counted(x, axis, where, weights, nan_policy, fill)
    if np.any(counts != count) and given is None:
        raise ValueError("moments: expected the count of x's values per channel, got another one")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mean, var, gamma)
    own = with_counts(given, counts)
    checked(call("bncore_train_backward", x, axis, eps, n_threads, arrays, own))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)


@compiled
def batch_norm_infer(
    x,
    mean,
    var,
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
    """Normalize by given statistics, as `bncore.batch_norm_infer` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    mean, var : (C,) array of float
        Statistics per channel; mean in x's unit, var in x's unit squared.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.batch_norm_infer`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    array
        An array of x's shape and dtype.

    Raises
    ------
    ValueError
        If a statistic or a parameter has another size than C.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, step 11.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[1.0, 8.0]])
    >>> bn.batch_norm_infer(x, np.array([0.0, 4.0]), np.array([1.0, 4.0]), eps=0.0).tolist()
    [[1.0, 2.0]]
    """
    channels, _ = sizes_of(x, axis)
    mu = doubles(mean, channels, "mean: expected one value per channel of x")
    sigma = doubles(var, channels, "var: expected one value per channel of x")
    if np.any(sigma < 0.0):
        raise ValueError("var: expected variances >= 0, got a negative one")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    y = np.empty_like(x)
    own = filling(counted(x, axis, where, weights, nan_policy, fill), fill)
    arrays = (y, x, mu, sigma, gamma, beta)
    checked(call("bncore_normalize", x, axis, eps, n_threads, arrays, own))
    return y


@compiled
def batch_norm_infer_backward(
    dy,
    x,
    mean,
    var,
    weight=None,
    axis=1,
    eps=1e-5,
    n_threads=1,
    where=None,
    weights=None,
    nan_policy=None,
    fill=None,
):
    """Differentiate `batch_norm_infer`, as `bncore.batch_norm_infer_backward` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    mean, var : (C,) array of float
        Statistics per channel; mean in x's unit, var in x's unit squared.
    weight : (C,) array of float, optional
        gamma; 1 if it is None.
    axis : int, default 1
        The channel axis; it may be negative.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        The largest number of threads to use; at least 1.
    where, weights, nan_policy, fill
        As in `bncore.batch_norm_infer_backward`; a mask and weights are arrays,
        and None is "propagate".

    Returns
    -------
    dx : array
        An array of x's shape and dtype.
    dweight, dbias : (C,) array
        Arrays of weight's dtype, or of x's if weight is None; in dy's unit.

    Raises
    ------
    ValueError
        If dy does not have x's shape, or a vector of another size than C.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3, with constant statistics.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore.numba as bn
    >>> x = np.array([[1.0, 8.0]])
    >>> mean, var = np.array([0.0, 4.0]), np.array([1.0, 4.0])
    >>> dx, _, _ = bn.batch_norm_infer_backward(np.ones((1, 2)), x, mean, var, eps=0.0)
    >>> dx.tolist()
    [[1.0, 0.5]]
    """
    channels, _ = sizes_of(x, axis)
    same_as(dy, x)
    mu = doubles(mean, channels, "mean: expected one value per channel of x")
    sigma = doubles(var, channels, "var: expected one value per channel of x")
    if np.any(sigma < 0.0):
        raise ValueError("var: expected variances >= 0, got a negative one")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mu, sigma, gamma)
    own = with_counts(counted(x, axis, where, weights, nan_policy, fill), None)
    checked(call("bncore_infer_backward", x, axis, eps, n_threads, arrays, own))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)
