"""Both exporters to ONNX: bncore's operators become BatchNormalization, Add and Relu.

An exporter that traces a model gets PyTorch's own function, which it knows.  One that gets a
program of `torch.export` decomposes operators that it does not know, by PyTorch's own table.
"""

from __future__ import annotations

import sys

import torch
from torch._decomp import register_decomposition

from bncore.torch import foreign, ops
from bncore.torch.counting import Counted, total, values_per_channel


def is_exporting() -> bool:
    """Tell whether a model is being exported to ONNX."""
    return "torch.onnx" in sys.modules and bool(torch.onnx.is_in_onnx_export())


def infer(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    nan_policy: str,
    fill: float | None,
) -> torch.Tensor:
    """Compute `batch_norm_infer` by PyTorch's functions."""
    foreign.refuse(Counted(where, weights, nan_policy, fill))
    fusion = (activation, negative_slope, residual)
    return foreign.batch_norm(x, mean, var, weight, bias, False, 0.0, eps, fusion, None)


def train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    nan_policy: str,
    fill: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `batch_norm_train` by PyTorch's functions."""
    foreign.refuse(Counted(where, weights, nan_policy, fill))
    fusion = (activation, negative_slope, residual)
    y = foreign.batch_norm(x, None, None, weight, bias, True, 0.0, eps, fusion, None)
    number = values_per_channel(x)
    wide = x.double()
    mean = total(wide) / number
    m2 = total((wide - mean) ** 2)
    return y, torch.stack((torch.full_like(mean, number), mean, m2)).reshape(3, -1)


register_decomposition(ops.infer_op)(infer)
register_decomposition(ops.train_op)(train)
