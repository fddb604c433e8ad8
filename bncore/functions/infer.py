"""Batch normalization by given mean and variance, forward and backward."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import integer_scale
from bncore.arguments.problem import Problem
from bncore.arguments.scalars import real
from bncore.backends import current
from bncore.functions import integers
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve

Array = npt.NDArray[np.floating[Any]]


def batch_norm_infer(
    x: npt.ArrayLike,
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
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
    scale: float | None = None,
) -> Array:
    """Normalize every channel by a given mean and variance, such as the running statistics.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``; activation and
    residual are optional.

    Parameters
    ----------
    x : array_like of 2 or more dimensions
        float16, bfloat16, float32, float64, or integers of 8 to 32 bits, or bool.  Integers are
        read as they are; `out`, `residual` and the result are then float32.  See `batch_norm_train`
        for layouts and copies.
    mean, var : (C,) array_like of float
        Statistics per channel, of any real floating dtype, read as float64.  The mean is in x's
        unit, the variance in x's unit squared.  For integers that is the unit of ``x * scale``.
    weight, bias : (C,) array_like of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis, eps, n_threads
        As in `batch_norm_train`.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives y.  It may be `x` or `residual`
        itself.
    activation, negative_slope, residual
        As in `batch_norm_train`.
    scale : float, optional
        What integers are multiplied with, > 0: 1/255 makes numbers from 0 to 1 of pixels.  It goes
        into mean and weight, and costs nothing.  Only integers have a scale.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape, dtype (float32 for integers) and memory order.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`, but one value per channel is allowed; and if `scale` is not positive
        or x has no integers.

    Notes
    -----
    A negative variance is allowed: a channel with ``var + eps < 0`` becomes NaN.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, step 11.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.batch_norm_infer(np.array([[1.0, 8.0]]), [0.0, 4.0], [1.0, 4.0], eps=0.0)
    array([[1., 2.]])
    >>> bncore.batch_norm_infer(np.array([[1.0, 8.0]]), [0.0, 4.0], [1.0, 4.0], eps=0.0,
    ...                         activation="leaky_relu", negative_slope=0.5,
    ...                         residual=np.array([[-3.0, 1.0]]))
    array([[-1.,  3.]])
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    if fast is not None and scale is None:
        y: Array | None = fast.fast_infer(
            x,
            mean,
            var,
            weight,
            bias,
            axis,
            eps,
            out,
            threads,
            activation,
            negative_slope,
            residual,
        )
        if y is not None:
            return y
    p = Problem(x, axis, integers=True)
    factor = integer_scale(scale, p.array)
    given = p.parameter("mean", mean), p.parameter("var", var)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = real("eps", eps, 0.0)
    fusion = p.fusion(activation, negative_slope, residual)
    result = p.output(out, parameters=(*given, gamma, beta), residual=fusion.source)
    if not p.empty:
        values = given[0].values, given[1].values, gamma.values, beta.values
        integers.normalize(
            backend.kernels, result.values, p.x, *values, eps, threads, fusion.asked(), factor
        )
    return result.finish()


def batch_norm_infer_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
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
    """Compute the gradients of `batch_norm_infer`; mean and var are constants.

    ``dx = dy * weight / sqrt(var + eps)``.  With an activation, dy is first multiplied by the
    activation's derivative, as in `batch_norm_train_backward`.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of x's shape and dtype.  It is copied once if its
        memory order differs from x's.
    x : array_like of float16, bfloat16, float32 or float64
        The input of the forward call.  See `batch_norm_train` for layouts and copies.
    mean, var, weight, axis, eps, n_threads
        As in the forward call.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives dx.  It may be `dy`, `x` or
        `residual` itself.
    bias, activation, negative_slope, residual, dresidual
        As in `batch_norm_train_backward`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    dweight, dbias : (C,) ndarray
        ``sum(dy * xhat)`` and ``sum(dy)`` per channel, ``xhat = (x - mean) / sqrt(var + eps)``;
        summed in float64, in weight's dtype.  Without a weight they have x's dtype, or float32 if
        that has 16 bits.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_infer`; and if dy differs from x in shape or dtype.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3: the gradients by gamma and beta after
    Algorithm 1, and its d(loss)/d(x) with mean and variance held constant.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.batch_norm_infer_backward(
    ...     np.array([[3.0]]), np.array([[5.0]]), [1.0], [4.0], [2.0], eps=0.0)
    (array([[3.]]), array([6.]), array([3.]))
    >>> bncore.batch_norm_infer_backward(
    ...     np.array([[3.0]]), np.array([[5.0]]), [1.0], [4.0], [2.0], eps=0.0, bias=[-5.0],
    ...     activation="relu")
    (array([[0.]]), array([0.]), array([0.]))
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    if fast is not None:
        gradients: tuple[Array, Array, Array] | None = fast.fast_infer_backward(
            dy, x, mean, var, weight, axis, eps, out, threads,
            bias, activation, negative_slope, residual, dresidual,
        )  # fmt: skip
        if gradients is not None:
            return gradients
    p = Problem(x, axis)
    gradient, source = p.gradient(dy)
    given = p.parameter("mean", mean), p.parameter("var", var)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = real("eps", eps, 0.0)
    fusion = p.fusion(activation, negative_slope, residual)
    dx = p.output(out, source, (*given, gamma, beta), fusion.source)
    dr = p.residual_gradient(dresidual, dx, source, fusion.source, (*given, gamma, beta))
    sum_dy, sum_dy_xhat = p.zeros(), p.zeros()
    if not p.empty:
        backend.kernels.infer_backward(
            dx.values, sum_dy, sum_dy_xhat, gradient, p.x, given[0].values, given[1].values,
            gamma.values, eps, threads, fusion.backward(beta, dr),
        )  # fmt: skip
    if dr is not None:
        dr.finish()
    dweight = p.parameter_gradient(sum_dy_xhat, gamma)
    dbias = p.parameter_gradient(sum_dy, gamma)
    return dx.finish(), dweight, dbias
