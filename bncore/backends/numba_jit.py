"""The algorithm compiled by Numba: what runs where the native extension is absent.

Importing this module imports Numba.  A kernel is compiled on the first call for each type of
data, and its machine code is kept on disk: next to this file, or, where that cannot be written,
in the user's cache directory; ``NUMBA_CACHE_DIR`` names another place.

Work is cut into tasks that no thread shares: segments of channel groups or of column strips, and
stretches of memory.  In planes, a group of channels is summed and then normalized while it is
still in cache.  Which thread does what never changes the order of an addition.
"""

from __future__ import annotations

import numpy as np

from bncore.backends.numba_elementwise import (
    planes_grad_input,
    planes_normalize,
    planes_scale,
    rows_grad_input,
    rows_normalize,
    rows_scale,
)
from bncore.backends.numba_sums import (
    add_parts,
    gradient_coefficients,
    inverse_std,
    jit,
    merge_parts,
    normalize_coefficients,
    planes_moments,
    planes_moments_segment,
    planes_sums,
    planes_sums_segment,
    rows_moments,
    rows_sums,
)
from bncore.backends.numba_threads import spread, useful
from bncore.backends.partition import LANES, Data, Planes, Rows, Stat, geometry

name = "numba"

CACHE = 1 << 19  # bytes of a channel group that stay in cache from the sums to the second read
GROUP = 64  # most channels of a group: their lanes fit in the first-level cache
