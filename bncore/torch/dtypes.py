"""The dtypes of tensors that bncore takes, and PyTorch's texts about those that it does not."""

from __future__ import annotations

import torch

# PyTorch's text for arguments that have no gradient.
NOT_DIFFERENTIABLE = (
    "The {} is not differentiable with respect to argument '{}'. "
    "This input cannot have requires_grad True."
)

# The dtypes of x and of parameters, and of the arithmetic on data of each of them.
ARITHMETIC = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def checked(x: torch.Tensor) -> torch.Tensor:
    """Return x if there are kernels for its dtype; otherwise raise PyTorch's error."""
    if x.dtype not in ARITHMETIC:
        raise NotImplementedError(f"\"batch_norm\" not implemented for '{scalar_type(x)}'")
    return x


def gradient_dtype(x: torch.Tensor, weight: torch.Tensor | None) -> torch.dtype:
    """Return the dtype of the gradients by weight and bias."""
    return ARITHMETIC[checked(x).dtype] if weight is None else weight.dtype


def scalar_type(tensor: torch.Tensor) -> str:
    """Return the name of a dtype in PyTorch's messages, such as Half."""
    kind: str = tensor.type()
    return kind.rpartition(".")[2].removesuffix("Tensor")
