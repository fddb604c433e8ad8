"""Programs and models that leave bncore: PyTorch's operators in place of bncore's.

The exporters to ONNX know PyTorch's batch norm, so they get it from a model that they trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from bncore.torch import foreign, ops
from bncore.torch.counting import Counted

__all__ = ["decompositions"]


def is_exporting() -> bool:
    """Tell whether a model is being exported to ONNX."""
    return "torch.onnx" in sys.modules and bool(torch.onnx.is_in_onnx_export())


def decompositions() -> dict[Any, Callable[..., torch.Tensor]]:
    """Return what `ExportedProgram.run_decompositions` makes of bncore's operator in evaluation.

    The program that it returns needs no bncore, takes PyTorch's time, and can be exported to ONNX.

    Returns
    -------
    dict
        The functions by operators.

    Raises
    ------
    NotImplementedError
        When it is applied to a call with masks, weights, ``nan_policy`` or ``fill``.

    Examples
    --------
    >>> import bncore.torch
    >>> print(*bncore.torch.decompositions())
    bncore.batch_norm_infer.default
    """
    return {ops.infer_op: infer}


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
    """Compute the operator `batch_norm_infer` by PyTorch's functions."""
    foreign.refuse(Counted(where, weights, nan_policy, fill))
    fusion = (activation, negative_slope, residual)
    return foreign.batch_norm(x, mean, var, weight, bias, False, 0.0, eps, fusion, None)
