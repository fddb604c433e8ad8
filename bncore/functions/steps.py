"""The four steps of batch norm, each as one function.

The forward pass in training is `moments`, then `normalize`; the backward pass is `grad_sums`, then
`grad_input`.  If a batch comes in pieces (micro-batches, chunks, machines), the moments or the sums
of the pieces are merged between the two steps.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments.arrays import integer_scale
from bncore.arguments.problem import Problem
from bncore.arguments.scalars import float64_sums, real
from bncore.arguments.weights import PROPAGATE, GivenWeights, NanPolicy
from bncore.backends import current
from bncore.functions import integers
from bncore.runtime import buffer_pool
from bncore.runtime.threads import resolve
from bncore.statistics import (
    GradSums,
    Moments,
    checked_moments,
    checked_sums,
    counts_of,
    frozen_moments,
    frozen_sums,
    require_counts,
    trusted_moments,
    trusted_sums,
)

Array = npt.NDArray[np.floating[Any]]


def moments(
    x: npt.ArrayLike,
    *,
    axis: SupportsIndex = 1,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Moments:
    """Compute count, mean and sum of squared deviations of every channel, in one pass.

    Parameters
    ----------
    x : array_like of 2 or more dimensions
        float16, bfloat16, float32, float64, or integers of 8 to 32 bits, or bool.  Integers are
        read as they are, and their moments are the exact ones, each rounded once.  See
        `batch_norm_train` for layouts and copies.
    axis : int, default 1
        The channel axis.
    dtype : None or numpy.float64, default None
        What the values are summed in.  With None, values of 16 bits are summed in float32, a few at
        a time, and then in float64: the variance is right to 6e-6, mostly to 2**-22.  With float64
        they are summed in float64 from the start, which takes longer and gives the last digits.
        float32 and float64 are summed in float64 in either case; only where a mean is near 0, the
        last bits for float32 differ.
    n_threads : int, optional
        The largest number of threads to use; `get_num_threads()` by default.
    scale : float, optional
        What integers are multiplied with, > 0: 1/255 makes numbers from 0 to 1 of pixels.  The mean
        is multiplied with it, and m2 with its square.  Only integers have a scale.
    where, weights, nan_policy
        As in `batch_norm_train`.

    Returns
    -------
    Moments
        The moments, in float64.  With one value per channel m2 is 0.  Without values count is 0,
        mean is NaN and m2 is 0.  The count is the sum of the weights.

    Raises
    ------
    TypeError, ValueError
        If x has another dtype or fewer than 2 dimensions, `axis` is not an axis of x, `dtype` is
        neither None nor float64, or `scale` is not positive or x has no integers.

    References
    ----------
    B. P. Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
    Technometrics 4 (1962) 419-420, by blocks; merged by equation 2.1 of T. F. Chan, G. H. Golub,
    R. J. LeVeque, The American Statistician 37 (1983) 242-247.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.moments(np.array([[0.0, 1.0], [2.0, 5.0]]))
    Moments(count=array([2., 2.]), mean=array([1., 3.]), m2=array([2., 8.]))
    """
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    exact = dtype is not None and float64_sums("dtype", dtype)
    if fast is not None and where is weights is scale is None and nan_policy is PROPAGATE:
        done = fast.fast_moments(x, axis, threads, exact)
        if done is not None:
            count, mean, m2 = done
            return frozen_moments(count, mean, m2)
    p = Problem(x, axis, integers=True)
    factor = integer_scale(scale, p.array)
    given = p.weights(where, weights, nan_policy)
    mean, m2, count = p.no_means(), p.zeros(), counts_of(p.count, p.channels)
    if not p.empty:
        own = given.record(count)
        integers.moments(backend.kernels, mean, m2, p.x, threads, exact, factor, own)
    return trusted_moments(count, mean, m2)


def _given_moments(p: Problem, value: Moments, given: GivenWeights) -> Moments:
    """Return moments that have x's channels, and a value in one of them if x has any."""
    moments = checked_moments("moments", value, p.channels)
    if not (p.empty or given.weighs or moments.count.any()):
        raise ValueError(
            "moments: expected a count above 0 for an x that is not empty, got 0 for every channel"
        )
    return moments


def _moments_of_all(p: Problem, value: Moments, given: GivenWeights) -> Moments:
    """Return moments that can be those of x or of a larger batch that contains x."""
    moments = checked_moments("moments", value, p.channels)
    fit = moments.count >= (0 if p.empty or given.weighs else p.count)
    require_counts(moments, fit, f"count >= {p.count}, the values per channel of x")
    return moments


def normalize(
    x: npt.ArrayLike,
    moments: Moments,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> Array:
    """Normalize every channel by given moments: the second half of `batch_norm_train`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with ``var = moments.var()``.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
        See `batch_norm_train` for layouts and copies.
    moments : Moments
        The moments of x, of a larger batch that x is a piece of, or of other data, such as a
        calibration set.  y is NaN in a channel whose count is 0.
    weight, bias : (C,) array_like of float, optional
        gamma and beta; 1 and 0 if they are None.
    axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `batch_norm_train`; what counts matters here for `fill` alone.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape, dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train`; and if `moments` has another number of channels, or no value in any
        channel although x is not empty.  One value per channel is allowed.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1, steps 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> a, b = np.array([[0.0], [2.0]]), np.array([[4.0], [6.0]])  # two micro-batches
    >>> both = bncore.moments(a).merge(bncore.moments(b))
    >>> y = bncore.normalize(a, both)
    >>> whole, _ = bncore.batch_norm_train(np.concatenate([a, b]))
    >>> np.allclose(y, whole[:2], rtol=1e-15)
    True
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    plain = where is weights is fill is None and nan_policy is PROPAGATE
    if fast is not None and type(moments) is Moments and plain:
        three = moments.count, moments.mean, moments.m2
        done: Array | None = fast.fast_normalize(x, *three, weight, bias, axis, eps, out, threads)
        if done is not None:
            return done
    p = Problem(x, axis)
    counted = p.weights(where, weights, nan_policy, fill)
    moments = _given_moments(p, moments, counted)
    gamma, beta = p.optional("weight", weight), p.optional("bias", bias)
    eps = real("eps", eps, 0.0)
    y = p.output(out, parameters=(gamma, beta, *counted.sources))
    if not p.empty:
        backend.kernels.normalize(
            y.values, p.x, moments.mean, moments.var(), gamma.values, beta.values, eps, threads,
            None, counted.filling(p.channels),
        )  # fmt: skip
    return y.finish()


def grad_sums(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> GradSums:
    """Sum dy and dy * xhat over every channel: the first half of `batch_norm_train_backward`.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of x's shape and dtype.  It is copied once if its
        memory order differs from x's.
    x : array_like of float16, bfloat16, float32 or float64
        See `batch_norm_train` for layouts and copies.
    moments : Moments
        The moments that x was normalized by: those of x, or of a larger batch that x is a piece of.
    axis, eps, n_threads
        As in `batch_norm_train`.
    where, weights, nan_policy, fill
        As in `batch_norm_train_backward`.

    Returns
    -------
    GradSums
        ``sum_dy`` is the gradient of bias and ``sum_dy_xhat`` is the gradient of weight, in
        float64, with ``xhat = (x - mean) / sqrt(var + eps)``.  The sums of the pieces of a batch
        add up to those of the batch.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_train_backward`, except that the counts of `moments` may be larger (but not
        smaller) than the number of values that x has per channel.  If some values count less or not
        at all, the counts are not checked.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3: the gradients by gamma and beta after
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[0.0], [2.0]])
    >>> bncore.grad_sums(np.array([[1.0], [2.0]]), x, bncore.moments(x), eps=0.0)
    GradSums(sum_dy=array([3.]), sum_dy_xhat=array([1.]))
    """
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    plain = where is weights is fill is None and nan_policy is PROPAGATE
    if fast is not None and type(moments) is Moments and plain:
        three = moments.count, moments.mean, moments.m2
        done = fast.fast_grad_sums(dy, x, *three, axis, eps, threads)
        if done is not None:
            return frozen_sums(done[0], done[1])
    p = Problem(x, axis)
    gradient, _ = p.gradient(dy)
    counted = p.weights(where, weights, nan_policy, fill)
    moments = _moments_of_all(p, moments, counted)
    eps = real("eps", eps, 0.0)
    sum_dy, sum_dy_xhat = p.zeros(), p.zeros()
    if not p.empty:
        backend.kernels.grad_sums(
            sum_dy, sum_dy_xhat, gradient, p.x, moments.mean, moments.var(), eps, threads,
            counted.record(moments.count),
        )  # fmt: skip
    return trusted_sums(sum_dy, sum_dy_xhat)


def grad_input(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
    sums: GradSums,
    weight: npt.ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    eps: float = 1e-5,
    out: Array | None = None,
    n_threads: int | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> Array:
    """Compute dx from the sums: the second half of `batch_norm_train_backward`.

    ``dx = weight * invstd * (dy - (sum_dy + xhat * sum_dy_xhat) / n)``, with ``n = moments.count``,
    ``invstd = 1 / sqrt(var + eps)`` and ``xhat = (x - mean) * invstd``.  A weight w stands before
    the quotient.

    Parameters
    ----------
    dy, x : array_like
        As in `grad_sums`.
    moments : Moments
        The moments that x was normalized by: those of the whole batch.  x may be a piece of it.
    sums : GradSums
        The sums over the whole batch.
    weight : (C,) array_like of float, optional
        gamma; 1 if it is None.
    axis, eps, n_threads
        As in `batch_norm_train`.
    out : ndarray, optional
        A writable array of x's shape and dtype that receives dx.  It may be `dy` or `x` itself.
    where, weights, nan_policy, fill
        As in `batch_norm_train_backward`.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape, dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As `grad_sums`; and if `sums`, `weight` or `out` has the wrong type or size.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3: d(loss)/d(x) after Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [0.0], [1.0]])
    >>> moments = bncore.moments(x)
    >>> dx = bncore.grad_input(dy, x, moments, bncore.grad_sums(dy, x, moments))
    >>> np.array_equal(dx, bncore.batch_norm_train_backward(dy, x, moments)[0])
    True
    """
    if out is None:
        out = buffer_pool.output(x)
    backend = current()
    fast = backend.fast
    threads = resolve(n_threads)
    plain = where is weights is fill is None and nan_policy is PROPAGATE
    if fast is not None and type(moments) is Moments and type(sums) is GradSums and plain:
        five = moments.count, moments.mean, moments.m2, sums.sum_dy, sums.sum_dy_xhat
        done: Array | None = fast.fast_grad_input(dy, x, *five, weight, axis, eps, out, threads)
        if done is not None:
            return done
    p = Problem(x, axis)
    gradient, source = p.gradient(dy)
    counted = p.weights(where, weights, nan_policy, fill)
    moments = _moments_of_all(p, moments, counted)
    sums = checked_sums("sums", sums, p.channels)
    gamma = p.optional("weight", weight)
    eps = real("eps", eps, 0.0)
    dx = p.output(out, source, (gamma, *counted.sources))
    if not p.empty:
        backend.kernels.grad_input(
            dx.values, gradient, p.x, moments.mean, moments.var(), sums.sum_dy, sums.sum_dy_xhat,
            moments.count, gamma.values, eps, threads, counted.record(moments.count),
        )  # fmt: skip
    return dx.finish()
