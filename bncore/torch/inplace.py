"""The module whose training keeps y for the gradient, and not x."""

from __future__ import annotations

from typing import Any

import torch

from bncore.arguments import scalars
from bncore.torch.counting import ALL
from bncore.torch.inverse import ALWAYS, KEEPS_OUTPUT
from bncore.torch.modules import AnyDimension, compile_instead

__all__ = ["InPlaceBatchNorm"]


class InPlaceBatchNorm(AnyDimension):
    """Batch norm that keeps its output for the gradient in training, and not its input.

    ``y = leaky_relu(bn(x) + residual)``, with the state of `torch.nn.BatchNorm2d`.  If what comes
    next keeps its input, as a convolution does, training needs half the memory for such layers.
    ReLU cannot be inverted, so the activation is leaky ReLU or none.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in `torch.nn.BatchNorm2d`.
    activation : {"leaky_relu", None}, default "leaky_relu"
        What comes after batch norm and the residual.
    negative_slope : float, default 0.01
        Of leaky ReLU; positive.

    Raises
    ------
    ValueError
        If there is no such activation, or the slope is not positive.

    Notes
    -----
    A call keeps x as every other layer does, and says nothing, where the inverse would lose more
    than 7 bits: where a weight is smaller than 1/128 of its bias, or than 1/128 if there is a
    residual, as after an initialization with zeros; for a slope outside of 2^-60 to 2^60, 16-bit
    data, masks and weights; and where the call is compiled, traced or transformed.  The residual's
    values are not looked at: where they are much larger than the weight, digits are lost in
    proportion.  y must not be written to before backward, which PyTorch checks, and there are no
    second gradients.

    References
    ----------
    S. Rota Bulo, L. Porzi, P. Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized
    Training of DNNs", CVPR 2018.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> layer = bncore.torch.InPlaceBatchNorm(2)
    >>> layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).round(decimals=2)
    tensor([[-0.0100, -0.0100],
            [ 1.0000,  1.0000]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = "leaky_relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        scalars.option("activation", activation, ("leaky_relu",))
        if not scalars.real("negative_slope", negative_slope, 0.0) > 0.0:
            raise ValueError(f"negative_slope: expected a positive number, got {negative_slope}")
        self.activation, self.negative_slope = activation, float(negative_slope)
        self.__dict__[KEEPS_OUTPUT] = ALWAYS

    def forward(  # type: ignore[override]
        self, input: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalize input, add the residual if there is one, and apply the activation."""
        return self._bncore_normalized(input, residual, ALL)

    def _bncore_compute(self, *given: Any) -> torch.Tensor:
        then = self.activation and (self.activation, self.negative_slope)
        y: torch.Tensor = self._bncore_apply(*given, then or None)  # type: ignore[call-arg]
        return y

    def _bncore_scripted(
        self, input: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self._bncore_stock(input)
        if residual is not None:
            y = y + residual
        if self.activation is not None:
            y = torch.nn.functional.leaky_relu(y, self.negative_slope)
        return y

    def extra_repr(self) -> str:
        """Say what `torch.nn.BatchNorm2d` says, and the activation."""
        text = f"{super().extra_repr()}, activation={self.activation!r}"
        return f"{text}, negative_slope={self.negative_slope}" if self.activation else text


def scripted(self: Any, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Be the source of forward for TorchScript."""
    result: torch.Tensor = self._bncore_scripted(input, residual)
    return result


compile_instead(InPlaceBatchNorm.forward, scripted)
