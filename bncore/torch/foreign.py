"""Arguments that bncore has no kernels for: PyTorch's own function takes them, or says why not.

These are tensors that are not plain memory on the CPU (sparse, nested, quantized, MKL-DNN's, zero
tensors, those of `torch.func.functionalize`), subclasses of tensors, and everything that is of
another type than the argument.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from bncore.torch.counting import Counted, require_tensors

# FakeTensor and FunctionalTensor trace bncore's operators.
KNOWN = frozenset((torch.Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor))

_functional = torch._is_functional_tensor
_zero = torch._is_zerotensor
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_inside = torch._C._functorch.get_unwrapped


def is_foreign(tensor: object) -> bool:
    """Tell whether PyTorch has to take an argument that should be a tensor or None."""
    if tensor is None:
        return False
    if type(tensor) not in KNOWN:
        return True
    assert isinstance(tensor, torch.Tensor)
    if _functional(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        return True
    if _wrapped(tensor):
        return is_foreign(_inside(tensor))
    return bool(tensor.is_nested or _zero(tensor))


def is_number(value: object, *, finite: bool) -> bool:
    """Tell whether an argument is a number that bncore takes."""
    if isinstance(value, float):
        return math.isfinite(value) or not finite
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, (torch.SymFloat, torch.SymInt))


def refuse(counted: Counted) -> None:
    """Refuse masks and weights in a call that PyTorch's function takes, which has none."""
    require_tensors(counted)
    if not counted.plain:
        raise NotImplementedError(
            "where, weights, nan_policy, fill: expected plain tensors on the CPU, and numbers, "
            "got a call that only PyTorch's own function can take"
        )


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: Any,
    momentum: Any,
    eps: Any,
    fusion: tuple[str | None, float, Any],
    batches: torch.Tensor | None,
) -> torch.Tensor:
    """Compute a call by PyTorch's functions; `fusion` has activation, slope and residual."""
    y: torch.Tensor = torch.nn.functional.batch_norm(
        x, running_mean, running_var, weight, bias, training, momentum, eps
    )
    activation, slope, residual = fusion
    if residual is not None:
        y = y + residual
    if activation == "relu":
        y = torch.relu(y)
    elif activation is not None:
        y = torch.nn.functional.leaky_relu(y, slope)
    if batches is not None:
        batches.add_(1)
    return y
