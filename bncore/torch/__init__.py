"""bncore for PyTorch: operators, modules in place of ``torch.nn.BatchNorm*``, and `convert`.

Only this package imports torch.  `docs/pytorch.md` shows how to use it.
"""

from bncore.extras import missing

try:
    import torch  # noqa: F401  # the error below says how to get it
except ModuleNotFoundError as error:
    raise missing("torch", "PyTorch", {"torch"}, error) from None

from bncore.torch.convert import convert, revert
from bncore.torch.export import decompositions
from bncore.torch.functional import batch_norm
from bncore.torch.inplace import InPlaceBatchNorm
from bncore.torch.memory import set_buffer_pool
from bncore.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAddReLU,
    BatchNormReLU,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from bncore.torch.norm_modules import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
)
from bncore.torch.norms import group_norm, instance_norm, layer_norm
from bncore.torch.recalibrate import recalibrate
from bncore.torch.report import report
from bncore.torch.statistics import moments, var_mean
from bncore.torch.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAddReLU",
    "BatchNormReLU",
    "GroupNorm",
    "InPlaceBatchNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
    "batch_norm",
    "convert",
    "decompositions",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "moments",
    "recalibrate",
    "report",
    "revert",
    "set_buffer_pool",
    "var_mean",
]
