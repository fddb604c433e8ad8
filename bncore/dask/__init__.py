"""bncore for Dask: statistics and batch norm of chunked arrays, computed when you ask for them.

Only this package imports dask.  A worker computes the `bncore.Moments` of its chunks, and these few
numbers travel and are merged in a tree that the chunks alone determine.  So every scheduler and
every number of workers gives the same bits.  `docs/dask.md` shows how to use it.
"""

from bncore.extras import pip_install

try:
    import dask.array  # noqa: F401  # the message below names what installs it
except ImportError as error:
    raise ImportError(
        f"bncore.dask: expected Dask with its arrays, got none: {pip_install('dask')} installs it"
    ) from error

from bncore.dask.batch_norm import (
    batch_norm_infer,
    batch_norm_train,
    batch_norm_train_backward,
    normalize,
)
from bncore.dask.statistics import mean_var, moments

__all__ = [
    "batch_norm_infer",
    "batch_norm_train",
    "batch_norm_train_backward",
    "mean_var",
    "moments",
    "normalize",
]
