"""Instance norm: group norm in which every channel is a group."""

from __future__ import annotations

from typing import SupportsIndex

import numpy.typing as npt

from bncore.arguments.weights import NanPolicy
from bncore.functions.group_norm import Array, backward, forward
from bncore.statistics import Moments


def instance_norm(
    x: npt.ArrayLike,
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
) -> tuple[Array, Moments]:
    """Normalize every channel of every sample by its own mean and variance.

    `group_norm` with as many groups as channels; see there for results and errors.

    Parameters
    ----------
    x, weight, bias, axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `group_norm`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022 (2016), equation 6.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> y, moments = bncore.instance_norm(np.array([[[0.0, 2.0], [5.0, 9.0]]]), eps=0.0)
    >>> y
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    counted = where, weights, nan_policy, fill
    return forward(x, None, weight, bias, axis, eps, out, n_threads, counted)


def instance_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    moments: Moments,
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
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `instance_norm`.

    `group_norm_backward` with as many groups as channels; see there for results and errors.

    Parameters
    ----------
    dy, x, moments, weight, axis, eps, out, n_threads, where, weights, nan_policy, fill
        As in `group_norm_backward`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, arXiv:1607.08022 (2016), equation 6, differentiated.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.array([[[0.0, 2.0]]]), np.array([[[1.0, 3.0]]])
    >>> y, moments = bncore.instance_norm(x, eps=0.0)
    >>> bncore.instance_norm_backward(dy, x, moments, eps=0.0)[1:]
    (array([2.]), array([4.]))
    """
    counted = where, weights, nan_policy, fill
    return backward(dy, x, moments, None, weight, axis, eps, out, n_threads, counted)
