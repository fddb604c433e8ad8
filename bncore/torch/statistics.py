"""Mean, variance and `Moments` of tensors, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch

import bncore
from bncore.arguments.weights import NanPolicy
from bncore.statistics import Moments
from bncore.torch import dtypes, foreign, transforms
from bncore.torch.eager import ordinary
from bncore.torch.memory import array, rounded

__all__ = ["moments", "var_mean"]

Dims = int | Sequence[int] | None


def moments(
    input: torch.Tensor,
    dim: int = 1,
    *,
    where: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    scale: float | None = None,
) -> Moments:
    """Compute the moments of every channel, `bncore.moments`, on PyTorch's number of threads.

    Parameters
    ----------
    input : tensor of 2 or more dimensions on the CPU
        float16, bfloat16, float32, float64, bool or integers of 8 to 32 bits.  Gradients do not go
        through the result.
    dim : int, default 1
        The channel axis.
    where, weights : tensor, optional
        What counts, as in `bncore.batch_norm_train`; they broadcast against input.
    nan_policy, scale
        As in `bncore.moments`.

    Returns
    -------
    Moments
        They merge with those of other tensors, of arrays and of other processes.

    Raises
    ------
    TypeError, ValueError
        As `bncore.moments`.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    >>> bncore.torch.moments(x, where=torch.tensor([[True], [False]]))
    Moments(count=array([1., 1.]), mean=array([0., 1.]), m2=array([0., 0.]))
    """
    given: Any = [
        one.detach() if isinstance(one, torch.Tensor) else one for one in (input, where, weights)
    ]
    x, mask, numbers = given
    return bncore.moments(
        x,
        axis=dim,
        where=mask,
        weights=numbers,
        nan_policy=nan_policy,
        scale=scale,
        n_threads=torch.get_num_threads(),
    )


def var_mean(
    input: torch.Tensor, dim: Dims = None, *, correction: float = 1, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute variance and mean over some dimensions, in one pass: `torch.var_mean`.

    Gradients of any order go through both results.

    Parameters
    ----------
    input : tensor
        float16, bfloat16, float32 or float64 on the CPU.  PyTorch computes any other tensor, and
        every tensor under `torch.compile`, `torch.func` and forward mode.
    dim : int or tuple of int, optional
        The dimensions to reduce; all if it is None or empty.
    correction : float, default 1
        The variance is the sum of squared deviations divided by ``n - correction``.
    keepdim : bool, default False
        Keep the reduced dimensions, with size 1.

    Returns
    -------
    var, mean : tensor of input's dtype
        They come from float64 moments, within 2**-22 for float32, and are rounded once.

    Raises
    ------
    IndexError, RuntimeError, TypeError
        Those of `torch.var_mean`.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.var_mean(torch.tensor([[0.0, 1.0], [2.0, 5.0]]), dim=0, correction=0)
    (tensor([1., 4.]), tensor([1., 3.]))
    """
    usual = _is_own(input) and _is_number(correction) and type(keepdim) is bool
    dims = _dims(input, dim) if usual else None
    if not dims or not correction < values_of(input, dims):
        theirs: tuple[torch.Tensor, torch.Tensor] = torch.var_mean(
            input, dim, correction=correction, keepdim=keepdim
        )
        return theirs
    if not torch.is_grad_enabled() or not input.requires_grad:
        return _computed(input, dims, correction, keepdim)
    found: tuple[torch.Tensor, torch.Tensor] = _VarMean.apply(input, dims, correction, keepdim)
    return found


def _is_own(x: object) -> bool:
    """Tell whether bncore computes a tensor: one in plain memory, and nobody wants to see how."""
    if torch.compiler.is_compiling() or transforms.active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return isinstance(x, torch.Tensor) and ordinary(x) and x.dtype in dtypes.ARITHMETIC


def _is_number(value: object) -> bool:
    return type(value) is not bool and foreign.is_number(value, finite=True)


def _dims(x: torch.Tensor, dim: Any) -> tuple[int, ...] | None:
    """Return the dimensions to reduce, counted from 0; None if PyTorch has to say what is wrong."""
    every = tuple(range(x.dim()))
    if dim is None or dim == ():
        return every
    given = (dim,) if type(dim) is int else dim
    if not isinstance(given, (tuple, list)) or any(type(one) is not int for one in given):
        return None
    if any(not -x.dim() <= one < x.dim() for one in given):
        return None
    dims = tuple(sorted({one % x.dim() for one in given}))
    return dims if len(dims) == len(given) else None


def values_of(x: torch.Tensor, dims: tuple[int, ...]) -> int:
    """Return how many values are reduced to one."""
    return prod(x.shape[d] for d in dims)


def _computed(
    x: torch.Tensor, dims: tuple[int, ...], correction: float, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return variance and mean, without gradients."""
    mean, var = bncore.mean_var(
        array(x),
        axis=dims,
        correction=correction,
        keepdims=keepdim,
        dtype=np.float64,
        n_threads=torch.get_num_threads(),
    )
    return rounded(np.asarray(var), x.dtype), rounded(np.asarray(mean), x.dtype)


class _VarMean(torch.autograd.Function):
    """``dvar/dx = 2 (x - mean) / (n - correction)``, ``dmean/dx = 1 / n``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dims: tuple[int, ...], correction: float, keepdim: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        var, mean = _computed(x, dims, correction, keepdim)
        ctx.save_for_backward(x, mean)
        ctx.how = dims, correction, keepdim
        ctx.set_materialize_grads(False)
        return var, mean

    @staticmethod
    def backward(
        ctx: Any, dvar: torch.Tensor | None, dmean: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None, None]:
        x, mean = ctx.saved_tensors
        dims, correction, keepdim = ctx.how
        if torch.is_grad_enabled():  # this gradient will be differentiated: the mean depends on x
            _, mean = var_mean(x, dims, keepdim=keepdim)
        if not keepdim:
            mean, dvar, dmean = (_kept(one, dims) for one in (mean, dvar, dmean))
        n = values_of(x, dims)
        dx = None
        if dvar is not None:
            dx = (x - mean) * (dvar * (2.0 / (n - correction)))
        if dmean is not None:
            part = (dmean / n).expand(x.shape)
            dx = part if dx is None else dx + part
        return dx, None, None, None


def _kept(values: torch.Tensor | None, dims: tuple[int, ...]) -> torch.Tensor | None:
    """Give reduced dimensions back, with size 1."""
    if values is not None:
        for d in dims:
            values = values.unsqueeze(d)
    return values
