"""Moments of the features of a table, with means of more than the digits of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import Stat
from bncore.functions.steps import moments as moments_of
from bncore.statistics import Moments, shifted, trusted_moments

# A mean of more standard deviations than this is rounded by more than a thousandth of what the
# variance of float64 values is promised to keep, and merging would pass that on.
FAR = 2.0**10
BLOCK = 1 << 18  # values that are read again together


def moments(x: npt.NDArray[Any], weights: Stat | None, n_threads: int | None) -> Moments:
    """Compute the moments of every feature without its NaN.

    Parameters
    ----------
    x : (n, C) ndarray of float
    weights : (n,) ndarray of float64, optional
        How much each row counts, >= 0; 1 if it is None.
    n_threads : int, optional
        As in `bncore.moments`.

    Returns
    -------
    Moments
        Of C channels.  A float64 mean is off by up to half its last digit.  That is much beside the
        standard deviation of a feature that lies far from 0, such as a time stamp, and would cost
        digits of the variance whenever moments of such batches merge.  So these features are read
        once more, about their mean, and the rest of the mean goes along in the moments.
    """
    options: dict[str, Any] = {"n_threads": n_threads}
    found = moments_of(x, weights=_column(weights), **options)
    if np.isnan(found.mean).any():  # few tables have gaps, and the kernels without are faster
        options["nan_policy"] = "omit"
        found = moments_of(x, weights=_column(weights), **options)
    with silent_arithmetic():
        far = (np.abs(found.mean) > FAR * found.std()) & (found.m2 > 0.0)
    return _refined(x, weights, found, far, options) if far.any() else found


def _refined(
    x: npt.NDArray[Any],
    weights: Stat | None,
    found: Moments,
    far: npt.NDArray[np.bool_],
    options: Any,
) -> Moments:
    """Replace the moments of the features that are `far` from 0 by those about their means."""
    at = np.flatnonzero(far)
    about = found.mean[at]
    rest: Moments | None = None
    rows = max(BLOCK // at.size, 1)
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        distances = x[part, at].astype(np.float64) - about
        own = _column(None if weights is None else weights[part])
        piece = moments_of(distances, weights=own, **options)
        rest = piece if rest is None else rest.merge(piece)
    assert rest is not None  # there is a value, so there is a row
    exact = shifted(rest, about)
    mean, m2, low = found.mean.copy(), found.m2.copy(), np.zeros_like(found.mean)
    mean[at], m2[at], low[at] = exact.mean, exact.m2, exact._low
    return trusted_moments(found.count, mean, m2, low)


def _column(weights: Stat | None) -> npt.NDArray[np.float64] | None:
    return None if weights is None else weights[:, np.newaxis]
