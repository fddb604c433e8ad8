"""bncore for JAX: batch norm as XLA custom calls, with derivatives, under `jit`, `vmap` and `grad`.

Only this package imports jax.  The first import compiles its C++ part, once.  `docs/jax.md` shows
how to use it.
"""

from bncore.jax import handlers
from bncore.jax.functional import batch_norm_infer, batch_norm_train
from bncore.jax.statistics import Moments, merge, moments, update_running_stats

__all__ = [
    "Moments",
    "batch_norm_infer",
    "batch_norm_train",
    "merge",
    "moments",
    "update_running_stats",
]

handlers.register()
