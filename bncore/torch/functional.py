"""Batch norm as a function: `torch.nn.functional.batch_norm` with the same checks and messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from bncore.arguments import problem, scalars
from bncore.arguments.arrays import MASK_HINT
from bncore.arguments.weights import NanPolicy
from bncore.torch import compiled, counting, dtypes, eager, export, foreign, ops, transforms
from bncore.torch.counting import ALL, Counted

__all__ = ["batch_norm"]

_traced = torch.compiler.is_dynamo_compiling  # the adapter itself detects other tracers


def batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Literal["relu", "leaky_relu"] | None = None,
    negative_slope: float = 0.01,
    residual: torch.Tensor | None = None,
    where: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> torch.Tensor:
    """Normalize every channel: `torch.nn.functional.batch_norm`, computed by bncore.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``.

    Parameters
    ----------
    input : (N, C, ...) tensor of float16, bfloat16, float32 or float64 on the CPU
        A tensor in any memory order; y has the same order.
    running_mean, running_var : (C,) tensor, optional
        The statistics that normalize in evaluation.  In training they are updated in place with
        the batch's statistics.  They may have any of input's dtypes, whichever input has.
    weight, bias : (C,) tensor, optional
        gamma and beta; 1 and 0 if they are None.  They may have any of input's dtypes, too.
    training : bool, default False
        Whether to normalize by the batch's own statistics.
    momentum : float, default 0.1
        Weight of the new batch in the running statistics.
    eps : float, default 1e-5
        Added to the variance.
    activation, negative_slope, residual
        Fused operations, as in `bncore.batch_norm_train`; the residual has input's shape and dtype.
    where : tensor of bool, optional
        The values that count; it broadcasts against input, such as ``(N, 1, L)`` for padding.
    weights : tensor of real numbers, optional
        How often each value counts: finite, >= 0, and it broadcasts as `where` does.  It has no
        gradient.
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN of input does, as in `bncore.batch_norm_train`.
    fill : float, optional
        What y is where the weight is 0; the gradient of input is 0 there.  In evaluation, what
        counts matters for this alone.

    Returns
    -------
    tensor
        A new tensor of input's shape, dtype and memory order.

    Raises
    ------
    NotImplementedError, RuntimeError, ValueError
        The same errors, with the same texts, as PyTorch's function, which refuses more
        combinations of dtypes.  Nothing has been written in that case.
    TypeError, ValueError
        If what counts has the wrong dtype, shape or values, or a running variance that normalizes
        is negative.  Values are checked when they are computed with: a compiled graph raises the
        error when it runs.

    Notes
    -----
    With `where`, `weights` or "omit", a channel in which one value counts has variance 0, and one
    in which none counts leaves the running statistics as they are; there y is NaN, or `fill`.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithms 1 and 2.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    >>> mean, var = torch.zeros(2), torch.ones(2)
    >>> bncore.torch.batch_norm(x, mean, var, training=True, momentum=0.5, eps=1e-12)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    >>> mean, var
    (tensor([0.5000, 1.5000]), tensor([1.5000, 4.5000]))

    Two sequences of lengths 2 and 1, in one padded tensor:

    >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, torch.nan]]])
    >>> where = torch.tensor([[[True, True]], [[True, False]]])
    >>> bncore.torch.batch_norm(x, None, None, training=True, where=where, fill=0.0)[1]
    tensor([[1.2247, 0.0000]])
    """
    return normalized(
        input, running_mean, running_var, weight, bias, training, momentum, eps,
        activation, negative_slope, residual, None,
        counting.given(where, weights, nan_policy, fill),
    )  # fmt: skip


def normalized(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: Literal["relu", "leaky_relu"] | None,
    negative_slope: float,
    residual: torch.Tensor | None,
    batches: torch.Tensor | None,
    counted: Counted = ALL,
) -> torch.Tensor:
    """Compute `batch_norm`, and count the batch in `batches` unless an error is raised."""
    if compiled.adapter is not None and not _traced():
        y: torch.Tensor | None = compiled.adapter.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps,
            activation, negative_slope, residual, batches, *counted,
        )  # fmt: skip
        if y is not None:
            return y
    given = (x, running_mean, running_var, weight, bias)
    fusion = (activation, negative_slope, residual)
    if _traced():  # the compiler could not trace through all of the checks
        momentum, eps = _number(momentum), _number(eps)
        check(*given, residual, training, eps, alone=not counted.weighs)
        counted = counting.checked(x, counted)
    else:
        with ops.untraced():
            tensors = (*given, residual, batches, *counted[:2])
            for_torch = export.is_exporting() or _is_for_torch(tensors, training, momentum, eps)
            if not for_torch:
                check(*given, residual, training, eps, alone=not counted.weighs)
                _check_numbers(x, eps, activation, negative_slope)
                counted = counting.checked(x, counted)
        if for_torch:
            foreign.refuse(counted)
            return foreign.batch_norm(*given, training, momentum, eps, fusion, batches)
    weight, bias = _flat(weight), _flat(bias)
    settings = (eps, activation, negative_slope, counted.nan_policy, counted.fill)
    fused = (weight, bias, residual, *counted[:2], *settings)
    if not training:
        return transforms.infer(x, running_mean, running_var, *fused)
    if compiled.adapter is None and eager.possible(
        x, running_mean, running_var, weight, bias, residual, *counted[:2]
    ):
        y, moments = eager.call(x, *fused)
        move: Callable[..., None] = ops.update_running_stats_
    else:
        y, moments = transforms.train(x, *fused)
        move = ops.update_running_stats_ if _of_inference(running_mean) else ops.update_op
    if not _traced():
        eager.track(move, running_mean, running_var, moments, momentum, batches)
        return y
    if running_mean is not None:
        move(running_mean, running_var, moments, momentum)
    if batches is not None:
        batches.add_(1)
    return y


def _number(value: Any) -> Any:
    """Return the number in a tensor; the compiler breaks its graph there, as for PyTorch's."""
    return value.item() if isinstance(value, torch.Tensor) else value


def _check_numbers(
    x: torch.Tensor, eps: float, activation: str | None, negative_slope: float
) -> None:
    scalars.real("eps", eps, 0.0)
    scalars.option("activation", activation, problem.ACTIVATIONS)
    largest = torch.finfo(dtypes.ARITHMETIC[x.dtype]).max
    scalars.real("negative_slope", negative_slope, 0.0, largest)


def _is_for_torch(
    tensors: tuple[Any, ...], training: object, momentum: object, eps: object
) -> bool:
    """Tell whether PyTorch has to take a call: other tensors or types, or x without channels."""
    if not isinstance(training, bool) or any(map(foreign.is_foreign, tensors)):
        return True
    if not (foreign.is_number(momentum, finite=False) and foreign.is_number(eps, finite=True)):
        return True
    x, *vectors = tensors[:5]
    if x is None or x.dim() < 2:
        return True
    # PyTorch does not look at the vectors if there is nothing to normalize.
    return x.numel() == 0 and any(v is not None and v.numel() != x.shape[1] for v in vectors)


def _of_inference(running: torch.Tensor | None) -> bool:
    """Tell whether statistics come from inference mode; PyTorch moves them outside of it, too."""
    if running is None or _traced() or not running.is_inference():
        return False
    return not torch.is_inference_mode_enabled()


def _flat(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """Return a parameter in one dimension; PyTorch checks only its number of elements."""
    return parameter if parameter is None or parameter.dim() == 1 else parameter.reshape(-1)


def check(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    training: bool,
    eps: float,
    *,
    alone: bool = True,
) -> None:
    """Raise PyTorch's errors with its texts; `alone` means that one value is too few.

    It is not if other processes add to the batch, or if some values count less than others.
    """
    dtypes.checked(x)
    if x.dim() < 2:
        raise RuntimeError(f"expected at least 2D input (got {x.dim()}D input)")
    channels = x.shape[1]
    if training:
        if alone and counting.values_per_channel(x) == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )
        if eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        if (running_mean is None) != (running_var is None):
            raise ValueError(
                "running_mean and running_var must either both be None or neither be None"
            )
    else:
        if eps < 0.0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
        for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
            if statistic is None:
                raise RuntimeError(f"{name} must be defined in evaluation mode")
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic is not None and statistic.requires_grad and torch.is_grad_enabled():
            text = dtypes.NOT_DIFFERENTIABLE
            raise RuntimeError(text.format("function 'native_batch_norm'", name))
        if statistic is not None and statistic.dim() != 1 and statistic.numel() == channels:
            raise RuntimeError(f"{name}: expected 1 dimension, got {statistic.dim()}")
    for parameter in (running_mean, running_var, weight, bias):
        if parameter is not None and (
            parameter.numel() != channels
            or parameter.dtype not in dtypes.ARITHMETIC
            or parameter.device != x.device
        ):
            _refuse(x, channels, running_mean, running_var, weight, bias)
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise RuntimeError(
            f"residual: expected {dtypes.scalar_type(x)} of size {tuple(x.shape)}, "
            f"but found {dtypes.scalar_type(residual)} of size {tuple(residual.shape)}"
            + (f" ({MASK_HINT})" if residual.dtype == torch.bool else "")
        )


def _refuse(x: torch.Tensor, channels: int, *parameters: torch.Tensor | None) -> None:
    """Raise the error for the first parameter that does not fit x."""
    names = ("running_mean", "running_var", "weight", "bias")
    for name, given in zip(names, parameters, strict=True):
        if given is None:
            continue
        if given.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {given.numel()}")
        if given.dtype not in dtypes.ARITHMETIC:
            raise RuntimeError(
                f"{name}: expected scalar type Half, BFloat16, Float or Double "
                f"but found {dtypes.scalar_type(given)}"
            )
        if given.device != x.device:
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device, "
                f"but found at least two devices, {x.device} and {given.device}!"
            )
