"""Per-channel statistics: `Moments`, which training returns, and `GradSums` of backward.

Both can be merged, pickled and exchanged between processes.
"""

from bncore.statistics.grad_sums import GradSums, checked_sums, frozen_sums, trusted_sums
from bncore.statistics.moments import (
    Moments,
    channels_of,
    checked_moments,
    concatenated,
    counts_of,
    divisor,
    frozen_moments,
    given_moments,
    require_counts,
    require_divisors,
    shifted,
    shown_count,
    trusted_moments,
    variance,
)
from bncore.statistics.values import Stat
from bncore.statistics.values import restored as _restored  # what earlier pickles name

__all__ = [
    "GradSums",
    "Moments",
    "Stat",
    "_restored",
    "channels_of",
    "checked_moments",
    "checked_sums",
    "concatenated",
    "counts_of",
    "divisor",
    "frozen_moments",
    "frozen_sums",
    "given_moments",
    "require_counts",
    "require_divisors",
    "shifted",
    "shown_count",
    "trusted_moments",
    "trusted_sums",
    "variance",
]
