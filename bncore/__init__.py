"""Batch normalization for CPUs: fast, accurate, easy to embed."""

from bncore.api import batch_norm_train, batch_norm_train_backward
from bncore.backends import use_backend
from bncore.config import show_config
from bncore.embedding import get_address, get_capsules, get_include, get_library_dir
from bncore.inference import batch_norm_infer, batch_norm_infer_backward
from bncore.parts import grad_input, grad_sums, moments, normalize
from bncore.pool import set_buffer_pool
from bncore.reductions import mean_var
from bncore.running import update_running_stats
from bncore.statistics import GradSums, Moments
from bncore.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "GradSums",
    "Moments",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
    "batch_norm_train_backward",
    "get_address",
    "get_capsules",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "grad_input",
    "grad_sums",
    "mean_var",
    "moments",
    "normalize",
    "set_buffer_pool",
    "set_num_threads",
    "show_config",
    "update_running_stats",
    "use_backend",
]
