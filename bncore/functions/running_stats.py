"""Update running statistics in place with the statistics of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import cast, writable_array
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import float64, vector
from bncore.backends import current
from bncore.statistics import Moments, Stat, given_moments, require_divisors


def update_running_stats(
    running_mean: npt.NDArray[np.floating[Any]],
    running_var: npt.NDArray[np.floating[Any]],
    moments: Moments,
    *,
    momentum: float = 0.1,
    correction: float = 1,
) -> None:
    """Update running statistics in place with the statistics of a batch.

    ``running = (1 - momentum) * running + momentum * batch``, computed in float64 and rounded once.

    Parameters
    ----------
    running_mean, running_var : (C,) ndarray, writable, of any real floating dtype and stride
        Changed in place.  They must not overlap each other.  With 16 bits they lose small updates:
        prefer float32 or float64.
    moments : Moments
        The moments of the batch.  A channel whose count is 0 keeps its running statistics.
    momentum : float, default 0.1
        The weight of the *new* batch, from 0 to 1, as in PyTorch.  In Keras and ONNX the momentum
        is the weight of the old value.
    correction : float, default 1
        The batch variance is m2 / (count - correction), with the count of each channel.  PyTorch
        uses 1; Keras and ONNX use 0.  As in `Moments.var`, a count above it by rounding alone is
        taken as equal to it.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as above, or a count that is not 0 is not above `correction`.
        Nothing has been written then, nor where another exception such as KeyboardInterrupt comes
        between the two writes.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, section 3.1 (moving averages), Algorithm 2, step 10 (the
    unbiased variance).

    Examples
    --------
    >>> import numpy as np
    >>> from bncore import Moments, update_running_stats
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> update_running_stats(mean, var, Moments(3, [4.0], [6.0]), momentum=0.5)
    >>> mean, var
    (array([2.]), array([2.]))
    """
    fast = current().fast
    if fast is not None and type(moments) is Moments:
        done = fast.fast_running(
            running_mean,
            running_var,
            moments.count,
            moments.mean,
            moments.m2,
            momentum,
            correction,
        )
        if done is not None:
            return
    moments = given_moments("moments", moments)
    channels = moments.mean.shape[0]
    to_mean = writable_array("running_mean", running_mean)
    to_var = writable_array("running_var", running_var)
    vector("running_mean", to_mean, channels)
    vector("running_var", to_var, channels)
    if layout.share_memory(to_mean, to_var):
        raise ValueError("running_var: expected memory apart from running_mean, got an overlap")
    momentum = scalars.real("momentum", momentum, 0.0, 1.0)
    correction = scalars.real("correction", correction)
    empty = moments.count == 0.0
    require_divisors(moments.count, correction)
    var = moments.var(correction)
    with silent_arithmetic():
        new_mean = _moved(to_mean, moments.mean, momentum, empty)
        new_var = _moved(to_var, var, momentum, empty)
    before = to_mean.copy(), to_var.copy()
    try:
        to_mean[...] = new_mean
        to_var[...] = new_var
    except BaseException:  # such as KeyboardInterrupt between the two writes
        to_mean[...] = before[0]
        to_var[...] = before[1]
        raise


def _moved(
    old: npt.NDArray[Any], batch: Stat, momentum: float, empty: npt.NDArray[np.bool_]
) -> npt.NDArray[Any]:
    """Compute the new running values in float64, and round them to the dtype of the old ones.

    Channels that are `empty` in the batch keep their old values.
    """
    new = cast((1.0 - momentum) * float64(old) + momentum * batch, old.dtype)
    new[empty] = old[empty]
    return new
