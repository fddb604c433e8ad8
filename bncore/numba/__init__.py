"""Batch norm inside functions that Numba compiles: ``import bncore.numba`` imports Numba.

Numba is an extra: ``pip install 'bncore[numba]'`` installs it.

The functions have the names of the package's and compute the same bits, in nopython mode, by
calling the C library.  They differ in what they take: x and dy are C-contiguous arrays of float32
or float64, with channels on any `axis` (1 for NCHW, -1 for NHWC memory); nothing is copied.
Parameters and statistics are arrays of float32 or float64.  `n_threads` is 1 where it is not given.
Called from Python they release its lock.

`Moments` and `GradSums` are tuples here: ``bncore.Moments(*moments)`` is what merges,
``bn.Moments(m.count, m.mean, m.m2)`` the way back.

Errors are ValueErrors when a function runs, where sizes do not fit, and a TypingError when it is
compiled, where dtypes, dimensions or memory order do not.

Examples
--------
>>> import numba
>>> import numpy as np
>>> import bncore.numba as bn
>>> @numba.njit
... def step(x, weight, bias, dy):
...     y, moments = bn.batch_norm_train(x, weight, bias)
...     dx, dweight, dbias = bn.batch_norm_train_backward(dy, x, moments, weight)
...     return y, dx
>>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
>>> y, dx = step(x, np.ones(2), np.zeros(2), np.ones((2, 2)))
>>> y.round(3).tolist()
[[-1.0, -1.0], [1.0, 1.0]]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

try:
    from numba import njit
except ModuleNotFoundError as error:
    if error.name != "numba":  # it is there, and broken
        raise
    raise ModuleNotFoundError(
        "bncore.numba: Numba is not installed; `pip install 'bncore[numba]'` installs it",
        name="numba",
    ) from None

from bncore.numba.calls import as_parameter, call, checked, doubles, same_as, sizes_of

# A call from Python lets other threads of Python run meanwhile.
compiled = njit(nogil=True)


class Moments(NamedTuple):
    """Statistics of a batch.

    Attributes
    ----------
    count : int
        Values per channel.
    mean : (C,) array of float64
        In x's unit.
    m2 : (C,) array of float64
        Sums of squared deviations from the mean, in x's unit squared.
    """

    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    mean: Any
    m2: Any


class GradSums(NamedTuple):
    """Sums of a gradient over a batch, which are those by bias and weight.

    Attributes
    ----------
    sum_dy, sum_dy_xhat : (C,) array of float64
        Of dy, and of ``dy * xhat``, in dy's unit.
    """

    sum_dy: Any
    sum_dy_xhat: Any


@compiled
def _mean_var(moments, channels):
    """Give mean and variance as the C functions read them, once they fit x."""
    mean = doubles(moments.mean, channels, "moments: expected one mean per channel of x")
    m2 = doubles(moments.m2, channels, "moments: expected one m2 per channel of x")
    return mean, m2 / max(moments.count, 1)


@compiled
def _mean_var_of_all(x, moments, channels, count):
    """Refuse moments of a batch that x cannot be, or be a piece of."""
    if moments.count < count and x.size:
        raise ValueError("moments: expected the count of x's values per channel or more, got less")
    return _mean_var(moments, channels)


@compiled
def moments(x, axis=1, n_threads=1):
    """Take mean and sum of squared deviations of every channel, as `bncore.moments` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    axis : int, default 1
        The channel axis, negative allowed.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    Moments
        Of float64, whatever x is.

    Raises
    ------
    ValueError
        If `axis` is none of x's.

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
    >>> count, mean.tolist(), m2.tolist()
    (2, [1.0, 3.0], [2.0, 8.0])
    """
    channels, count = sizes_of(x, axis)
    mean, m2 = np.zeros(channels), np.zeros(channels)
    checked(call("bncore_moments", x, axis, 0.0, n_threads, (mean, m2, x)))
    return Moments(count, mean, m2)


@compiled
def batch_norm_train(x, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Normalize by the batch's own statistics, as `bncore.batch_norm_train` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 where they are None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    y : array
        Of x's shape and dtype.
    moments : Moments
        What backward takes.

    Raises
    ------
    ValueError
        If a parameter has another size than C, or a channel has one value.

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
    if count == 1:
        raise ValueError("x: expected more than one value per channel in training, got 1")
    y, mean, m2 = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    checked(call("bncore_train", x, axis, eps, n_threads, (y, mean, m2, x, gamma, beta)))
    return y, Moments(count, mean, m2)


@compiled
def batch_norm_train_backward(dy, x, moments, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Differentiate `batch_norm_train`, as `bncore.batch_norm_train_backward` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        Of x, from `batch_norm_train` or `moments`.
    weight : (C,) array of float, optional
        gamma; 1 where it is None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    dx : array
        Of x's shape and dtype.
    dweight, dbias : (C,) array
        Of weight's dtype, or x's where it is None; in dy's unit.

    Raises
    ------
    ValueError
        If dy is of another shape than x, or moments are of other channels or another count.

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
    mean, var = _mean_var(moments, channels)
    if moments.count != count:
        raise ValueError("moments: expected the count of x's values per channel, got another one")
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mean, var, gamma)
    checked(call("bncore_train_backward", x, axis, eps, n_threads, arrays))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)


@compiled
def batch_norm_infer(x, mean, var, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Normalize by given statistics, as `bncore.batch_norm_infer` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    mean, var : (C,) array of float
        Statistics per channel; mean in x's unit, var in its square.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 where they are None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    array
        Of x's shape and dtype.

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
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    beta = doubles(bias, channels, "bias: expected one value per channel of x")
    y = np.empty_like(x)
    checked(call("bncore_normalize", x, axis, eps, n_threads, (y, x, mu, sigma, gamma, beta)))
    return y


@compiled
def batch_norm_infer_backward(dy, x, mean, var, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Differentiate `batch_norm_infer`, as `bncore.batch_norm_infer_backward` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    mean, var : (C,) array of float
        Statistics per channel; mean in x's unit, var in its square.
    weight : (C,) array of float, optional
        gamma; 1 where it is None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    dx : array
        Of x's shape and dtype.
    dweight, dbias : (C,) array
        Of weight's dtype, or x's where it is None; in dy's unit.

    Raises
    ------
    ValueError
        If dy is of another shape than x, or a vector of another size than C.

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
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx, sum_dy, sum_dy_xhat = np.empty_like(x), np.zeros(channels), np.zeros(channels)
    arrays = (dx, sum_dy, sum_dy_xhat, dy, x, mu, sigma, gamma)
    checked(call("bncore_infer_backward", x, axis, eps, n_threads, arrays))
    return dx, as_parameter(sum_dy_xhat, weight, x), as_parameter(sum_dy, weight, x)


@compiled
def normalize(x, moments, weight=None, bias=None, axis=1, eps=1e-5, n_threads=1):
    """Normalize by moments, which may be merged ones, as `bncore.normalize` does.

    Parameters
    ----------
    x : array of float32 or float64, C-contiguous, of 2 or more dimensions
        C is its size along `axis`.
    moments : Moments
        Of the batch that x is a part of.
    weight, bias : (C,) array of float, optional
        gamma and beta; 1 and 0 where they are None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    array
        Of x's shape and dtype.

    Raises
    ------
    ValueError
        If moments are of other channels, or of no value where x has some.

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
    mean, var = _mean_var(moments, channels)
    if moments.count < 1 and x.size:
        raise ValueError("moments: expected a count above 0 for an x that is not empty, got less")
    return batch_norm_infer(x, mean, var, weight, bias, axis, eps, n_threads)


@compiled
def grad_sums(dy, x, moments, axis=1, eps=1e-5, n_threads=1):
    """Add up what the gradient needs of a part of a batch, as `bncore.grad_sums` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        Of the whole batch.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    GradSums
        Those of several parts add up, field by field.

    Raises
    ------
    ValueError
        If dy is of another shape than x, or moments count fewer values than x has.

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
    mean, var = _mean_var_of_all(x, moments, channels, count)
    sum_dy, sum_dy_xhat = np.zeros(channels), np.zeros(channels)
    arrays = (sum_dy, sum_dy_xhat, dy, x, mean, var)
    checked(call("bncore_grad_sums", x, axis, eps, n_threads, arrays))
    return GradSums(sum_dy, sum_dy_xhat)


@compiled
def grad_input(dy, x, moments, sums, weight=None, axis=1, eps=1e-5, n_threads=1):
    """Return dx of a part of a batch, as `bncore.grad_input` does.

    Parameters
    ----------
    x, dy : array of float32 or float64, C-contiguous, of one shape and dtype
        C is their size along `axis`.
    moments : Moments
        Of the whole batch.
    sums : GradSums
        Of the whole batch.
    weight : (C,) array of float, optional
        gamma; 1 where it is None.
    axis : int, default 1
        The channel axis, negative allowed.
    eps : float, default 1e-5
        Added to the variance, in x's unit squared.
    n_threads : int, default 1
        At most so many threads; 1 or more.

    Returns
    -------
    array
        dx, of x's shape and dtype.

    Raises
    ------
    ValueError
        If dy, moments or sums do not fit x, as above.

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
    channels, count = sizes_of(x, axis)
    same_as(dy, x)
    mean, var = _mean_var_of_all(x, moments, channels, count)
    total = doubles(sums.sum_dy, channels, "sums: expected one sum_dy per channel of x")
    weighted = doubles(
        sums.sum_dy_xhat, channels, "sums: expected one sum_dy_xhat per channel of x"
    )
    gamma = doubles(weight, channels, "weight: expected one value per channel of x")
    dx = np.empty_like(x)
    if x.size:
        arrays = (dx, dy, x, mean, var, total, weighted, float(moments.count), gamma)
        checked(call("bncore_grad_input", x, axis, eps, n_threads, arrays))
    return dx
