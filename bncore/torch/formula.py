"""Batch norm in PyTorch's operations, for forward mode inside forward mode.

PyTorch asks an autograd function for a tangent, and does not differentiate that tangent.  So where
two forward modes are active, these formulas take the place of the operators.  They compute data of
16 bits in float32 and round y once, as the operators do.
"""

from __future__ import annotations

from typing import Any

import torch

from bncore.torch.counting import Counting
from bncore.torch.gradients import along_channels, wide


def train(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    where: torch.Tensor | None,
    weights: torch.Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    nan_policy: str,
    fill: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the results of the operator `batch_norm_train`."""
    counting = Counting.of(wide(x), where, weights, nan_policy, fill)
    values = counting.cleaned(wide(x))
    mean = counting.average(values)
    rest = counting.average(values - mean)  # what rounding left of a large mean
    centered = values - mean - rest
    var = counting.average(centered * centered)
    count = counting.number * torch.ones_like(var)
    moments = torch.stack([one.flatten().double() for one in (count, mean + rest, count * var)])
    parameters = weight, bias, residual
    y = _finished(x, counting, centered, var, parameters, (eps, activation, slope, fill))
    return y, moments


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
    slope: float,
    nan_policy: str,
    fill: float | None,
) -> torch.Tensor:
    """Return the result of the operator `batch_norm_infer`."""
    counting = Counting.of(wide(x), where, weights, nan_policy, fill)
    values = counting.cleaned(wide(x))
    centered = values - along_channels(values, mean)
    parameters = weight, bias, residual
    settings = eps, activation, slope, fill
    return _finished(x, counting, centered, along_channels(values, var), parameters, settings)


def _finished(
    x: torch.Tensor,
    counting: Counting,
    centered: torch.Tensor,
    var: torch.Tensor,
    parameters: tuple[torch.Tensor | None, ...],
    settings: tuple[Any, ...],
) -> torch.Tensor:
    weight, bias, residual = parameters
    eps, activation, slope, fill = settings
    z = centered * torch.rsqrt(var + eps)
    if weight is not None:
        z = z * along_channels(z, weight)
    if bias is not None:
        z = z + along_channels(z, bias)
    if residual is not None:
        z = z + wide(residual)
    if activation is not None:
        z = torch.where(z <= 0.0, z * (0.0 if activation == "relu" else slope), z)
    if counting.filled:
        z = z.masked_fill(counting.nothing, fill)
    return z.to(x.dtype)
