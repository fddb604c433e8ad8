"""bncore for JAX: batch norm and the norms of samples as XLA custom calls, under every transform.

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
from bncore.jax.sample_norms import group_norm, instance_norm, layer_norm
from bncore.jax.statistics import Moments, merge, moments, update_running_stats

__all__ = [
    "Moments",
    "batch_norm_infer",
    "batch_norm_train",
    "export_checks",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "merge",
    "moments",
    "update_running_stats",
]

handlers.register()
