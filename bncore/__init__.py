"""Batch normalization for CPUs: fast, accurate, easy to embed."""

from bncore.api import batch_norm_train, batch_norm_train_backward
from bncore.backends import use_backend
from bncore.config import show_config
from bncore.embedding import get_address, get_capsules, get_include, get_library_dir
from bncore.fold import as_scale_shift, fold_into_conv, fold_into_linear
from bncore.ghost import (
    batch_renorm,
    batch_renorm_backward,
    ghost_batch_norm,
    ghost_batch_norm_backward,
)
from bncore.groupings import (
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
)
from bncore.inference import batch_norm_infer, batch_norm_infer_backward
from bncore.layer import BatchNorm
from bncore.layer_norm import layer_norm, layer_norm_backward
from bncore.microbatch import MicroBatches
from bncore.out_of_core import merged_moments, stream_moments
from bncore.parts import grad_input, grad_sums, moments, normalize
from bncore.pool import set_buffer_pool
from bncore.population import batch_norms, recalibrate
from bncore.reductions import mean_var
from bncore.running import update_running_stats
from bncore.statistics import GradSums, Moments
from bncore.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

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
    "stream_moments",
    "update_running_stats",
    "use_backend",
]
