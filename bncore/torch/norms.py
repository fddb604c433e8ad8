"""Group, instance and layer norm as functions: those of `torch.nn.functional`.

A call that bncore has no kernel for is PyTorch's own: other devices and kinds of tensors, mixtures
of dtypes, `torch.func`'s transforms, forward mode, `torch.jit.trace` and export.  So are calls that
PyTorch refuses, which raises its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from bncore.torch import compiled, eager, export, group_ops, transforms
from bncore.torch.dtypes import ARITHMETIC
from bncore.torch.functional import batch_norm

__all__ = ["group_norm", "instance_norm", "layer_norm"]

_traced = torch.compiler.is_dynamo_compiling


def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalize groups of channels of every sample: `torch.nn.functional.group_norm` by bncore.

    Parameters
    ----------
    input : (N, C, ...) tensor of float16, bfloat16, float32 or float64 on the CPU
        Contiguous or channels-last input is not copied.
    num_groups : int
        The number of groups, a divisor of C.
    weight, bias : (C,) tensor, optional
        gamma and beta, of input's dtype, or float32 if input has 16 bits.
    eps : float, default 1e-5
        Added to the variance.

    Returns
    -------
    tensor
        A new tensor of input's shape and dtype, channels-last if input is.

    Raises
    ------
    RuntimeError, ValueError
        PyTorch's errors.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> x = torch.tensor([[0.0, 2.0, 5.0, 9.0]])
    >>> bncore.torch.group_norm(x, 2, eps=0.0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    y = _normalized(input, num_groups, 0, weight, bias, eps)
    return functional.group_norm(input, num_groups, weight, bias, eps) if y is None else y


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalize over the last axes: `torch.nn.functional.layer_norm`, computed by bncore.

    Parameters
    ----------
    input : tensor of float16, bfloat16, float32 or float64 on the CPU
        It is copied once if it is not contiguous.
    normalized_shape : sequence of int
        The sizes of the last axes, which are normalized together.
    weight, bias : tensor of shape `normalized_shape`, optional
        gamma and beta, of input's dtype, or float32 if input has 16 bits.
    eps : float, default 1e-5
        Added to the variance.

    Returns
    -------
    tensor
        A new contiguous tensor of input's shape and dtype.

    Raises
    ------
    RuntimeError, ValueError
        PyTorch's errors.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.layer_norm(torch.tensor([[0.0, 2.0], [5.0, 9.0]]), (2,), eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    y = None
    shape = tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else ()
    first = input.dim() - len(shape) if isinstance(input, torch.Tensor) else 0
    if first > 0 and shape and tuple(input.shape[first:]) == shape:
        y = _normalized(input, 1, first, weight, bias, eps)
    if y is not None:
        return y
    return functional.layer_norm(input, normalized_shape, weight, bias, eps)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalize every channel of every sample: `torch.nn.functional.instance_norm` by bncore.

    Parameters
    ----------
    input : (N, C, ...) tensor of float16, bfloat16, float32 or float64 on the CPU
        Contiguous or channels-last input is not copied, and y has its memory order.
    running_mean, running_var : (C,) tensor, optional
        The statistics that normalize if `use_input_stats` is False.  Otherwise PyTorch's function
        updates them.
    weight, bias : (C,) tensor, optional
        gamma and beta, of input's dtype, or float32 if input has 16 bits.
    use_input_stats : bool, default True
        Whether to normalize by the statistics of each sample.
    momentum : float, default 0.1
        Weight of the new batch in the running statistics.
    eps : float, default 1e-5
        Added to the variance.

    Returns
    -------
    tensor
        A new tensor of input's shape, dtype and memory order.

    Raises
    ------
    RuntimeError, ValueError
        PyTorch's errors.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.instance_norm(torch.tensor([[[0.0, 2.0], [5.0, 9.0]]]), eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    given = running_mean, running_var, weight, bias
    if not use_input_stats and running_mean is not None and running_var is not None:
        return batch_norm(input, *given, False, momentum, eps)
    y = None
    if use_input_stats and running_mean is running_var is None and _several_positions(input):
        y = _normalized(input, input.shape[1], 0, weight, bias, eps)
    if y is not None:
        return y
    return functional.instance_norm(input, *given, use_input_stats, momentum, eps)


def _several_positions(x: object) -> bool:
    """Tell whether a channel of a sample has more than one value."""
    return isinstance(x, torch.Tensor) and x.dim() > 2 and x.numel() > x.shape[0] * x.shape[1]


def _normalized(x: torch.Tensor, groups: int, first: int, *given: Any) -> torch.Tensor | None:
    """Compute group norm, or with ``first > 0`` layer norm of the axes from `first` on.

    Return None for a call that has to be PyTorch's.
    """
    if _traced():
        if torch.compiler.is_exporting() or not _fits(x, groups, first, *given):
            return None
        return _by_operator(x, groups, first, *given)
    if compiled.adapter is not None:
        y: torch.Tensor | None = compiled.adapter.group_norm(x, groups, first, *given)
        if y is not None:
            return y
    if not isinstance(x, torch.Tensor) or export.is_exporting():
        return None
    if not _possible(x, *given[:2]) or not _fits(x, groups, first, *given):
        return None
    return _by_operator(x, groups, first, *given)


def _possible(*tensors: torch.Tensor | None) -> bool:
    """Tell whether the operator may be called: no transform, no tracer, and ordinary tensors."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return not transforms.active() and all(map(eager.ordinary, tensors))


def _fits(
    x: torch.Tensor,
    groups: int,
    first: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> bool:
    """Tell whether the operator can compute a call, which PyTorch would not refuse either."""
    if x.dtype not in ARITHMETIC or not x.is_cpu or x.numel() == 0 or x.dim() < 2:
        return False
    if not isinstance(groups, int) or groups < 1 or not isinstance(eps, float) or not eps >= 0.0:
        return False
    if not first and (x.shape[1] % groups or x.numel() == groups):
        return False
    shape = x.shape[first:] if first else x.shape[1:2]
    kinds = {None if one is None else one.dtype for one in (weight, bias)} - {None}
    if len(kinds) > 1 or not kinds <= {x.dtype, ARITHMETIC[x.dtype]}:
        return False
    return all(one is None or (one.is_cpu and one.shape == shape) for one in (weight, bias))


def _by_operator(
    x: torch.Tensor,
    groups: int,
    first: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    if first:
        flat = (None if one is None else one.reshape(-1) for one in (weight, bias))
        rows = x.flatten(first).flatten(0, first - 1)
        return group_ops.forward_op(rows, 1, *flat, eps)[0].reshape(x.shape)
    y: torch.Tensor = group_ops.forward_op(x, groups, weight, bias, eps)[0]
    return y
