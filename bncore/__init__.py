"""Batch normalization for CPUs: fast, accurate, easy to embed."""

from bncore.backends import use_backend
from bncore.c_library import get_address, get_capsules, get_include, get_library_dir
from bncore.data.micro_batches import MicroBatches
from bncore.data.recalibrate import batch_norms, recalibrate
from bncore.data.streaming import merged_moments, stream_moments
from bncore.functions.fold import as_scale_shift, fold_into_conv, fold_into_linear
from bncore.functions.ghost import ghost_batch_norm, ghost_batch_norm_backward
from bncore.functions.group_norm import group_norm, group_norm_backward
from bncore.functions.infer import batch_norm_infer, batch_norm_infer_backward
from bncore.functions.instance_norm import instance_norm, instance_norm_backward
from bncore.functions.layer_norm import layer_norm, layer_norm_backward
from bncore.functions.mean_var import mean_var, std, var
from bncore.functions.renorm import batch_renorm, batch_renorm_backward
from bncore.functions.running_stats import update_running_stats
from bncore.functions.standardize import destandardize, standardize
from bncore.functions.steps import grad_input, grad_sums, moments, normalize
from bncore.functions.train import batch_norm_train, batch_norm_train_backward
from bncore.layer.batch_norm import BatchNorm
from bncore.runtime.buffer_pool import set_buffer_pool
from bncore.runtime.config import show_config
from bncore.runtime.threadpool import watch as _watch_threadpoolctl
from bncore.runtime.threads import get_num_threads, set_num_threads
from bncore.statistics import GradSums, Moments
from bncore.version import __version__ as __version__

__all__ = [
    "BatchNorm",
    "GradSums",
    "MicroBatches",
    "Moments",
    "as_scale_shift",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
    "batch_norm_train_backward",
    "batch_norms",
    "batch_renorm",
    "batch_renorm_backward",
    "destandardize",
    "fold_into_conv",
    "fold_into_linear",
    "get_address",
    "get_capsules",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "ghost_batch_norm",
    "ghost_batch_norm_backward",
    "grad_input",
    "grad_sums",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "mean_var",
    "merged_moments",
    "moments",
    "normalize",
    "recalibrate",
    "set_buffer_pool",
    "set_num_threads",
    "show_config",
    "standardize",
    "std",
    "stream_moments",
    "update_running_stats",
    "use_backend",
    "var",
]


def __dir__() -> list[str]:
    """List the public names alone, without the modules and helpers that are imported here."""
    return [*__all__, "__version__"]


_watch_threadpoolctl()
