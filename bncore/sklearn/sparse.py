"""Moments of the columns of a sparse matrix, whose zeros count without being stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import Stat
from bncore.statistics import Moments


def moments(x: Any, weights: Stat | None) -> Moments:
    """Compute the moments of every column; a NaN that is stored does not count.

    Parameters
    ----------
    x : (n, C) sparse array or matrix of float, CSR or CSC
        Not changed.
    weights : (n,) ndarray of float64, optional
        How much each row counts, >= 0; 1 if it is None.

    Returns
    -------
    Moments
        Of C channels.  The stored values go through two passes of float64 sums, then the zeros
        that are not stored are merged with them.
    """
    if not x.has_canonical_format:  # several entries of one place are its sum
        x = x.copy()
        x.sum_duplicates()
    rows, channels = x.shape
    entries = x.tocoo()
    at = entries.coords[1]
    values = entries.data.astype(np.float64)
    own = np.ones(values.size) if weights is None else weights[entries.coords[0]]
    everything = float(rows) if weights is None else float(weights.sum())

    def added(terms: Stat) -> Stat:
        """Return the sum of each column's entries."""
        return np.bincount(at, terms, channels).astype(np.float64, copy=False)

    zeros = np.maximum(everything - added(own), 0.0)
    counting = np.bincount(at[own > 0.0], minlength=channels)
    everyone = rows if weights is None else np.count_nonzero(weights)
    zeros[counting == everyone] = 0.0  # a rest of rounding is no value
    gaps = np.isnan(values)
    own, values = np.where(gaps, 0.0, own), np.where(gaps, 0.0, values)
    count = added(own)
    with silent_arithmetic():
        mean = added(own * values) / count
        rest = added(own * (values - mean[at])) / count
        mean += rest
        m2 = added(own * (values - mean[at]) ** 2)
    stored = Moments(count, mean, m2)
    return stored.merge(Moments(zeros, np.zeros(channels), np.zeros(channels)))
