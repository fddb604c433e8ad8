"""The operators without values, for tracing: the results' shapes, dtypes and strides."""

from __future__ import annotations

from typing import Any

import torch

from bncore.torch.dtypes import checked, gradient_dtype


def train(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Make tensors like the results of `batch_norm_train`."""
    return torch.empty_like(checked(x)), x.new_empty((3, x.shape[1]), dtype=torch.float64)


def infer(x: torch.Tensor, *_: object) -> torch.Tensor:
    """Make a tensor like the result of `batch_norm_infer`."""
    return torch.empty_like(checked(x))


def gradients(
    x: torch.Tensor, weight: torch.Tensor | None, residual_gradient: bool
) -> tuple[torch.Tensor, ...]:
    """Make tensors like the results of both backward operators."""
    dtype = gradient_dtype(x, weight)
    dweight, dbias = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    dresidual = torch.empty_like(x) if residual_gradient else x.new_empty(0)
    return torch.empty_like(x), dweight, dbias, dresidual


def train_backward(
    dy: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """Make tensors like the results of `batch_norm_train_backward`."""
    return gradients(x, rest[0], rest[-1])


def infer_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """Make tensors like the results of `batch_norm_infer_backward`."""
    return gradients(x, rest[0], rest[-1])


def nothing(*_: object) -> None:
    """Do nothing, because `update_running_stats_` returns nothing."""
