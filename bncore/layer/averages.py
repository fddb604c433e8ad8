"""How much a batch weighs in the running statistics of a layer.

The weight may depend on the number of batches before it.  A channel that has no value in a batch
keeps its running statistics, and that batch does not count for it.  So each channel has its own
number of batches: `tracked`, the largest of them, minus what the channel has `missed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments.float_environment import default_environment
from bncore.statistics import Moments, Stat, frozen_moments

Numbers: TypeAlias = npt.NDArray[np.int64]


def weight_of_new(momentum: float | None, debias: bool, tracked: int) -> float:
    """Return the weight of a new batch in the running statistics.

    It is ``momentum``.  If `momentum` is None, it is ``1 / t`` for the t-th batch, which gives the
    mean over all batches.  With `debias`, it is ``momentum / (1 - (1 - momentum)**t)``, which gives
    the moving average over batches alone, without the initial 0 and 1.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 3, the
    division by 1 - beta**t: with avg(t) = (1 - m) avg(t-1) + m b(t) and w(t) = 1 - (1 - m)**t, the
    quotient q = avg / w obeys q(t) = q(t-1) + m / w(t) (b(t) - q(t-1)), for w(t) - m =
    (1 - m) w(t-1).  So the running statistics themselves stay free of bias.

    Examples
    --------
    >>> weight_of_new(0.1, False, 5), weight_of_new(None, False, 4), weight_of_new(0.5, True, 1)
    (0.1, 0.2, 0.6666666666666666)
    """
    if momentum is not None and (not debias or momentum == 0.0):
        return momentum
    if momentum == 1.0 or tracked == 0:
        return 1.0
    with default_environment():
        if momentum is None:
            return 1.0 / (tracked + 1)
        return momentum / -math.expm1((tracked + 1) * math.log1p(-momentum))


def after(moments: Moments, tracked: int, missed: Numbers | None) -> tuple[int, Numbers | None]:
    """Return `tracked` and `missed` after a batch; `missed` is None if it is 0 for all channels."""
    if missed is None and moments.count.all():
        return tracked + 1, None
    batches = (tracked if missed is None else tracked - missed) + (moments.count > 0.0)
    return apart(batches)


def apart(batches: Numbers) -> tuple[int, Numbers | None]:
    """Return `tracked` and `missed` for the number of batches of each channel."""
    tracked = int(batches.max(initial=0))
    missed = tracked - batches
    return tracked, missed if missed.any() else None


def by_batches(
    moments: Moments, tracked: int, missed: Numbers | None
) -> Iterator[tuple[int, Moments]]:
    """Yield each number of batches with the moments of the channels that have so many.

    Other channels have count 0 in these moments, so they keep their running statistics.
    """
    if missed is None:
        yield tracked, moments
        return
    for number in np.unique(missed):
        count: Stat = np.where(missed == number, moments.count, 0.0)
        yield tracked - int(number), frozen_moments(count, moments.mean, moments.m2)
