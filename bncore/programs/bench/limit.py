"""The limit: the time that streaming reads and copies need for an operation's minimal traffic.

A second pass over a channel is free if the channel's values fit in the processor's share of the
second-level cache; otherwise it is a second read.  docs/performance.md explains this rule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bncore.programs.bench.cases import ITEM_BYTES, LAYOUTS, Case

TILE = 16  # with channels last, read at least this many neighbouring channels: a cache line


class Passes(NamedTuple):
    """Passes over arrays of x's size: reads, and copies (one array is read, one written)."""

    reads: int
    copies: int

    def seconds(self, read: float, copy: float) -> float:
        """Return the time of the passes, given the times of one read and of one copy."""
        return self.reads * read + self.copies * copy


# The traffic if each array is touched once, and the extra traffic if a channel does not fit.
ONCE = {
    "train": Passes(0, 1),
    "infer": Passes(0, 1),
    "train_backward": Passes(1, 1),
    "infer_backward": Passes(1, 1),
    "grad_sums": Passes(2, 0),
    "grad_input": Passes(1, 1),
    "moments": Passes(1, 0),
    "mean_var": Passes(1, 0),
    "add_relu": Passes(1, 1),
    "add_relu_backward": Passes(1, 2),
}
# The first pass of a fused backward can write dy times the derivative; the second reads that and x.
SECOND_READS = {"train": 1, "train_backward": 2, "add_relu": 1, "add_relu_backward": 2}


def slab_bytes(case: Case) -> int:
    """Return the bytes of x in one channel, or in one tile of channels if these are last."""
    n, channels, *spatial = case.shape
    values = n * math.prod(spatial)
    last = case.layout == LAYOUTS[1] or not spatial
    return values * (min(TILE, channels) if last else 1) * ITEM_BYTES[case.dtype]


def passes(case: Case, cache: int) -> Passes:
    """Return the passes that an operation needs with a cache of this many bytes."""
    once = ONCE[case.operation]
    if slab_bytes(case) <= cache:
        return once
    return Passes(once.reads + SECOND_READS.get(case.operation, 0), once.copies)
