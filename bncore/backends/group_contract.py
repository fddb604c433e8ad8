"""What a backend has for norms of samples: group norm, and with it instance and layer norm.

`contract.py` states the rest.  Arrays are as they are there, but x, dy, y and dx have the shape
(samples, outer, channels, inner).  Layer norm over a last axis is (rows, 1, width, 1) with one
group; its bits are those of group norm of that shape.
"""

from __future__ import annotations

from typing import Protocol

from bncore.backends.contract import Data, Stat


class GroupBackend(Protocol):
    """The functions for groups of neighbouring channels, which have statistics in each sample."""

    def group_norm(
        self,
        y: Data,
        mean: Stat,
        m2: Stat,
        x: Data,
        weight: Stat | None,
        bias: Stat | None,
        groups: int,
        eps: float,
        n_threads: int,
        /,
    ) -> None:
        """Normalize every group of neighbouring channels of every sample by its own moments.

        x and y are (samples, outer, channels, inner); `mean` and `m2` are (samples * groups,).
        """

    def group_norm_backward(
        self,
        dx: Data,
        sum_dy: Stat,
        sum_dy_xhat: Stat,
        dy: Data,
        x: Data,
        mean: Stat,
        var: Stat,
        weight: Stat | None,
        groups: int,
        eps: float,
        n_threads: int,
        /,
    ) -> None:
        """Sum dy and dy * xhat over every channel of all samples, and compute dx.

        dx = (weight * dy - (a + xhat * b) / n) / sqrt(var + eps), where a and b are the sums of
        weight * dy and of weight * dy * xhat over the n values of a group.
        """
