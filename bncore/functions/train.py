"""Batch normalization in training, forward and backward.

A call first offers its arguments to the backend's fast path, if the backend has one.  It computes
the result at once, or returns None if an argument is not canonical.  Then `bncore.arguments`
repairs the argument or explains what is wrong with it, and a kernel runs.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments.problem import Problem
from bncore.arguments.scalars import real
from bncore.backends import current
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import (
    Moments,
    checked_moments,
    counts_of,
    frozen_moments,
    require_counts,
    trusted_moments,
)

Array = npt.NDArray[np.floating[Any]]


def batch_norm_train(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: npt.ArrayLike | None = None,
) -> tuple[Array, Moments]:
    """Normalize every channel of a batch by the batch's own mean and variance.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the population
    variance; activation and residual are optional.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        C is its size along `axis`.  Any memory order works without a copy, such as an NCHW-shaped
        view of NHWC memory.  An array is copied once if it is not one contiguous block (a slice,
        a negative stride, a broadcast), is unaligned or has a foreign byte order.  bfloat16 is that
        of ml_dtypes.  Values of 16 bits are converted to float32, and results are rounded once.
    weight, bias : (C,) array_like of float, optional
        gamma and beta, of any real floating dtype, read as float64; 1 and 0 if they are None.
    axis : int, default 1
        The channel axis: 1 for NCHW, -1 for NHWC.  It may be negative.
    eps : float, default 1e-5
        Added to the variance; >= 0, in x's unit squared.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives y.  It may be `x` or `residual`
        itself.  If its memory order or byte order differs from that of x's canonical form, the
        result passes through a temporary array.
    n_threads : int, optional
        The largest number of threads to use; `get_num_threads()` by default.  The result is the
        same to the bit for any number.
    activation : {"relu", "leaky_relu"}, optional
        The activation, applied in the same pass.  If the value z before it is 0 or less, relu gives
        exactly 0 and leaky relu ``negative_slope * z``.  NaN stays NaN.
    negative_slope : float, default 0.01
        The slope of leaky relu, rounded to x's dtype, or to float32 if that has 16 bits; >= 0.
    residual : array_like, optional
        An array of x's shape and dtype (it is not broadcast) that is added before the activation,
        in the same pass.  It is copied once if its memory order differs from x's.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    moments : Moments
        Count, mean and sum of squared deviations per channel, in float64.  Pass them to
        `batch_norm_train_backward` and `update_running_stats`.

    Raises
    ------
    TypeError
        If x has another dtype, `residual` has another dtype than x, an array is masked, or an
        argument has the wrong type.
    ValueError
        If x has fewer than 2 dimensions or exactly one value per channel, or an argument has the
        wrong size or value, or `out` overlaps an input in part.  Nothing has been written in that
        case.

    Notes
    -----
    An empty batch gives an empty y, and moments with count 0 and mean NaN.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> y, moments = bncore.batch_norm_train(x, eps=0.0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> moments.mean, moments.var()
    (array([1., 3.]), array([1., 4.]))

    The end of a residual block:

    >>> residual = np.array([[0.0, 2.0], [0.0, 2.0]])
    >>> y, _ = bncore.batch_norm_train(x, eps=0.0, activation="relu", residual=residual)
    >>> y
    array([[0., 1.],
           [1., 3.]])
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    if fast is not None:
        done = fast.fast_train(
            x, weight, bias, axis, eps, out, threads, activation, negative_slope, residual
        )
        if done is not None:
            y, count, mean, m2 = done
            return y, frozen_moments(count, mean, m2)
    p = Problem(x, axis)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = real("eps", eps, 0.0)
    fusion = p.fusion(activation, negative_slope, residual)
    p.require_batch()
    to = p.output(out, parameters=(gamma, beta), residual=fusion.source)
    mean, m2 = p.no_means(), p.zeros()
    if not p.empty:
        backend.kernels.train(
            to.values, mean, m2, p.x, gamma.values, beta.values, eps, threads, fusion.asked()
        )
    return to.finish(), trusted_moments(counts_of(p.count, p.channels), mean, m2)


def batch_norm_train_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    bias: npt.ArrayLike | None = None,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: npt.ArrayLike | None = None,
    dresidual: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `batch_norm_train`.

    ``dx = weight * invstd * (dy - mean(dy) - xhat * mean(dy * xhat))``, with
    ``invstd = 1 / sqrt(var + eps)`` and ``xhat = (x - mean) * invstd``; the means are per channel.
    With an activation, dy is first multiplied by the activation's derivative.  The forward call
    stores no mask: this function computes the sign of the value before the activation again, with
    the same operations as the forward call.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of x's shape and dtype.  It is copied once if its
        memory order differs from x's.
    x : array_like of float16, bfloat16, float32 or float64
        The input of the forward call.  See `batch_norm_train` for layouts and copies.
    moments : Moments
        As `batch_norm_train` returned them for this x.
    weight : (C,) array_like of float, optional
        As in the forward call.
    axis, eps, n_threads
        As in the forward call.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives dx.  It may be `dy`, `x` or
        `residual` itself.
    bias, activation, negative_slope, residual
        As in the forward call.  Without an activation no gradient depends on `bias` or `residual`.
    dresidual : ndarray, optional
        A writable array of x's shape and dtype that receives the gradient with respect to the
        residual: dy times the activation's derivative, or dy itself without an activation.  It may
        be `dy` or `residual` itself, but must not overlap `x` or `out`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    dweight, dbias : (C,) ndarray
        ``sum(dy * xhat)`` and ``sum(dy)`` per channel, summed in float64, in weight's dtype.
        Without a weight they have x's dtype, or float32 if that has 16 bits.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if dy differs from x in shape or dtype, or `moments` has another
        number of channels or of values.  Nothing has been written in that case.

    See Also
    --------
    grad_sums, grad_input : The same in two steps, for a batch that comes in pieces.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3, the gradients after Algorithm 1, with the terms
    in d(loss)/d(mean) that cancel left out.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[0.0], [2.0]])
    >>> y, moments = bncore.batch_norm_train(x, eps=0.0)
    >>> dx, dweight, dbias = bncore.batch_norm_train_backward(
    ...     np.array([[1.0], [2.0]]), x, moments, eps=0.0)
    >>> dweight, dbias
    (array([1.]), array([3.]))

    The end of a residual block, where the gradient of the residual overwrites dy:

    >>> residual, dy = np.array([[0.5], [0.5]]), np.array([[1.0], [2.0]])
    >>> y, moments = bncore.batch_norm_train(x, eps=0.0, activation="relu", residual=residual)
    >>> dx, dweight, dbias = bncore.batch_norm_train_backward(
    ...     dy, x, moments, eps=0.0, activation="relu", residual=residual, dresidual=dy)
    >>> dy
    array([[0.],
           [2.]])
    >>> dweight, dbias
    (array([2.]), array([2.]))
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    if fast is not None and type(moments) is Moments:
        done = fast.fast_train_backward(
            dy, x, moments.count, moments.mean, moments.m2, weight, axis, eps, out, threads,
            bias, activation, negative_slope, residual, dresidual,
        )  # fmt: skip
        if done is not None:
            gradients: tuple[Array, Array, Array] = done
            return gradients
    p = Problem(x, axis)
    gradient, source = p.gradient(dy)
    moments = checked_moments("moments", moments, p.channels)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = real("eps", eps, 0.0)
    fusion = p.fusion(activation, negative_slope, residual)
    require_counts(
        moments,
        moments.count == p.count,
        f"count {p.count}, the values per channel of x (use grad_sums and grad_input for merged "
        "moments)",
    )
    dx = p.output(out, source, (gamma, beta), fusion.source)
    dr = p.residual_gradient(dresidual, dx, source, fusion.source, (gamma, beta))
    sum_dy, sum_dy_xhat = p.zeros(), p.zeros()
    if not p.empty:
        backend.kernels.train_backward(
            dx.values, sum_dy, sum_dy_xhat, gradient, p.x, moments.mean, moments.var(),
            gamma.values, eps, threads, fusion.backward(beta, dr),
        )  # fmt: skip
    if dr is not None:
        dr.finish()
    dweight = p.parameter_gradient(sum_dy_xhat, gamma)
    dbias = p.parameter_gradient(sum_dy, gamma)
    return dx.finish(), dweight, dbias
