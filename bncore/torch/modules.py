"""Modules that replace PyTorch's, with the same constructor, state, attributes and messages."""

from __future__ import annotations

import types
from typing import Any, Literal, Self

import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from bncore.arguments.weights import NanPolicy
from bncore.torch import counting, inverse, known
from bncore.torch.counting import Counted
from bncore.torch.functional import normalized

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAddReLU",
    "BatchNormReLU",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
]


def stock(forward: Any) -> Any:
    """Return another forward as a method that TorchScript can compile beside forward."""
    if not isinstance(forward, types.FunctionType):
        return forward  # a stand-in for PyTorch's, with which the site is built
    return types.FunctionType(
        forward.__code__, forward.__globals__, "_bncore_stock", None, forward.__closure__
    )


def compile_instead(forward: Any, source: Any) -> None:
    """Let `torch.jit.script` read another function's source where it finds a forward.

    `inspect.signature` follows it, too, unless it is told not to.
    """
    forward.__wrapped__ = source


def scripted(self: Any, input: torch.Tensor) -> torch.Tensor:
    """Be the source of a forward for TorchScript."""
    result: torch.Tensor = self._bncore_scripted(input)
    return result


def scripted_addition(self: Any, input: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Be the source of the forward of `BatchNormAddReLU` for TorchScript."""
    return torch.relu(self._bncore_stock(input) + residual)


class Computed(Module):
    """The base of all modules that bncore computes.

    `convert` puts it before classes that others have written, so its own names cannot be theirs.
    """

    # What `torch.jit.script` compiles instead of forward: the forward that bncore replaces.
    _bncore_stock: Any = stock(_BatchNorm.forward)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make an empty module that tracers keep as one node."""
        module: Self = super().__new__(cls)
        known.mark(module)
        return module

    def _bncore_scripted(self, input: torch.Tensor) -> torch.Tensor:
        return self._bncore_stock(input)

    def _get_name(self) -> str:
        return f"bncore.torch.{type(self).__name__}"


class Fused(Module):
    """The base of all blocks whose forward `convert` has replaced (`blocks.py`)."""


class Normalizing(Computed, _BatchNorm):
    """PyTorch's own base class with another forward."""

    _bncore_activation: Literal["relu"] | None = None

    def forward(
        self,
        input: torch.Tensor,
        where: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        *,
        nan_policy: NanPolicy = "propagate",
        fill: float | None = None,
    ) -> torch.Tensor:
        """Normalize (N, C, ...) input, and update the running statistics in training.

        `where` and the arguments after it say what counts, as in `bncore.torch.batch_norm`.
        """
        counted = counting.given(where, weights, nan_policy, fill)
        return self._bncore_normalized(input, None, counted)

    def _bncore_normalized(
        self,
        input: torch.Tensor,
        residual: torch.Tensor | None,
        counted: Counted,
        then: tuple[str, float] | None = None,
    ) -> torch.Tensor:
        """Do what forward does; `then` is an activation and its slope in place of the layer's."""
        self._bncore_check(input)
        # Look them up once, because a module is slow to find its buffers and parameters.
        mean, var = self.running_mean, self.running_var
        momentum = self.momentum
        batches = None
        if not self.training:
            batch, momentum = mean is None and var is None, 0.0
        elif not self.track_running_stats:
            batch, momentum, mean, var = True, 0.0, None, None
        else:
            batch, batches = True, self.num_batches_tracked
            if momentum is None:  # a cumulative average over all batches
                momentum = 0.0 if batches is None else 1.0 / (float(batches) + 1.0)
        given = (
            input, mean, var, self.weight, self.bias, batch, momentum, residual, batches, counted,
        )  # fmt: skip
        return self._bncore_compute(*given) if then is None else self._bncore_apply(*given, then)

    def _bncore_check(self, input: torch.Tensor) -> None:
        self._check_input_dim(input)  # TorchScript compiles that

    def _bncore_compute(
        self,
        input: torch.Tensor,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        batch: bool,
        momentum: float,
        residual: torch.Tensor | None,
        batches: torch.Tensor | None,
        counted: Counted,
    ) -> torch.Tensor:
        return self._bncore_apply(
            input, mean, var, weight, bias, batch, momentum, residual, batches, counted,
            self._bncore_activation and (self._bncore_activation, 0.0),
        )  # fmt: skip

    def _bncore_apply(
        self,
        input: torch.Tensor,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        batch: bool,
        momentum: float,
        residual: torch.Tensor | None,
        batches: torch.Tensor | None,
        counted: Counted,
        then: tuple[Any, float] | None,
    ) -> torch.Tensor:
        activation, slope = then or (None, 0.0)
        keeps = self.__dict__.get(inverse.KEEPS_OUTPUT)
        if batch and (keeps == inverse.ALWAYS or (keeps and then)):
            y = inverse.train(
                input, mean, var, weight, bias, momentum, self.eps, then, residual, batches, counted
            )
            if y is not None:
                return y
        return normalized(
            input, mean, var, weight, bias, batch, momentum, self.eps,
            activation, slope, residual, batches, counted,
        )  # fmt: skip


compile_instead(Normalizing.forward, scripted)


class BatchNorm1d(Normalizing, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by bncore: (N, C) or (N, C, L) input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.BatchNorm1d(2)(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).round(decimals=2)
    tensor([[-1., -1.],
            [ 1.,  1.]], grad_fn=<RoundBackward1>)
    """


class BatchNorm2d(Normalizing, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by bncore: (N, C, H, W) input, channels-last or not.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.BatchNorm2d(8)
    >>> layer  # doctest: +ELLIPSIS
    bncore.torch.BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ...)
    >>> x = torch.ones(2, 8, 4, 4).to(memory_format=torch.channels_last)
    >>> layer(x).is_contiguous(memory_format=torch.channels_last)
    True
    """


class BatchNorm3d(Normalizing, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by bncore: (N, C, D, H, W) input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> bncore.torch.BatchNorm3d(2)(torch.ones(1, 2, 3, 4, 5)).shape
    torch.Size([1, 2, 3, 4, 5])
    """


class LazyBatchNorm1d(Normalizing, torch.nn.LazyBatchNorm1d):
    """`torch.nn.LazyBatchNorm1d`: becomes a `BatchNorm1d` when it sees its first input.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.LazyBatchNorm1d()
    >>> layer(torch.ones(4, 3)).shape, layer.num_features, type(layer).__name__
    (torch.Size([4, 3]), 3, 'BatchNorm1d')
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(Normalizing, torch.nn.LazyBatchNorm2d):
    """`torch.nn.LazyBatchNorm2d`: becomes a `BatchNorm2d` when it sees its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(Normalizing, torch.nn.LazyBatchNorm3d):
    """`torch.nn.LazyBatchNorm3d`: becomes a `BatchNorm3d` when it sees its first input."""

    cls_to_become = BatchNorm3d


class AnyDimension(Normalizing):
    """Input of two dimensions or more."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


class BatchNormReLU(AnyDimension):
    """Batch norm, then ReLU, in the same pass over memory: ``relu(bn(x))``.

    Constructor and state are those of `torch.nn.BatchNorm2d`; input is (N, C, ...).  It keeps no
    mask for the gradient.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.BatchNormReLU(2)
    >>> layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).round(decimals=2)
    tensor([[0., 0.],
            [1., 1.]], grad_fn=<RoundBackward1>)
    """

    _bncore_activation = "relu"

    def _bncore_scripted(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(self._bncore_stock(input))


class BatchNormAddReLU(AnyDimension):
    """The end of a residual block in one pass over memory: ``relu(bn(x) + residual)``.

    Constructor and state are those of `torch.nn.BatchNorm2d`; input is (N, C, ...), and the
    residual has its shape.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.BatchNormAddReLU(2)
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    >>> layer(x, torch.full((2, 2), 3.0)).round(decimals=2)
    tensor([[2., 2.],
            [4., 4.]], grad_fn=<RoundBackward1>)
    """

    _bncore_activation = "relu"

    def forward(  # type: ignore[override]
        self,
        input: torch.Tensor,
        residual: torch.Tensor,
        where: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        *,
        nan_policy: NanPolicy = "propagate",
        fill: float | None = None,
    ) -> torch.Tensor:
        """Normalize input, add the residual, and apply ReLU."""
        counted = counting.given(where, weights, nan_policy, fill)
        return self._bncore_normalized(input, residual, counted)


compile_instead(BatchNormAddReLU.forward, scripted_addition)
