"""bncore for JAX: batch norm as XLA custom calls, with derivatives, under `jit`, `vmap` and `grad`.

Only this package imports jax.  The first import compiles its C++ part, once.  The modules `linen`,
`nnx` and `equinox` have layers; import the one whose framework you have.  `docs/jax.md` shows how
to use them.
"""

from bncore.extras import missing

try:
    import jax  # noqa: F401  # the error below says how to get it
except ModuleNotFoundError as error:
    raise missing("jax", "JAX", {"jax"}, error) from None

from bncore.jax import handlers
from bncore.jax.functional import batch_norm_infer, batch_norm_train
from bncore.jax.handlers import export_checks
from bncore.jax.statistics import Moments, merge, moments, update_running_stats

__all__ = [
    "Moments",
    "batch_norm_infer",
    "batch_norm_train",
    "export_checks",
    "merge",
    "moments",
    "update_running_stats",
]

handlers.register()
