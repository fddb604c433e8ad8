"""What counts in a call: `where`, `weights`, `nan_policy` and `fill`, and what they do in formulas.

The operators check the values of masks and weights when they run, so that they are checked in
compiled graphs and under transforms, too.  Here are the checks that need no values, and the
formulas of second gradients and tangents, in operations that PyTorch can differentiate again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bncore.arguments import scalars
from bncore.arguments.layout import canonical
from bncore.arguments.weights import NAN_POLICIES, PROPAGATE
from bncore.torch import dtypes

NUMBERS = frozenset(
    (*dtypes.ARITHMETIC, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)


class Counted(NamedTuple):
    """`where`, `weights`, `nan_policy` and `fill` of a call, in the order of the operators."""

    where: Any = None
    weights: Any = None
    nan_policy: Any = PROPAGATE
    fill: Any = None

    @property
    def weighs(self) -> bool:
        """Whether any value may have a weight other than 1."""
        return self.where is not None or self.weights is not None or self.nan_policy == "omit"

    @property
    def plain(self) -> bool:
        """Whether all four have their defaults."""
        return self.where is self.weights is self.fill is None and self.nan_policy == PROPAGATE


ALL = Counted()


def given(where: Any, weights: Any, nan_policy: Any, fill: Any) -> Counted:
    """Return the arguments of a call as one; a small batch norm takes not much longer than that."""
    if where is weights is fill is None and nan_policy is PROPAGATE:
        return ALL
    return Counted(where, weights, nan_policy, fill)


def checked(x: torch.Tensor, counted: Counted) -> Counted:
    """Return the arguments with tensors of as many dimensions as x has.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If a tensor has the wrong dtype or device, does not broadcast against x or requires a
        gradient, or another argument has the wrong type or value.
    """
    where, weights, nan_policy, fill = counted
    if nan_policy not in NAN_POLICIES:
        nan_policy = scalars.option("nan_policy", nan_policy, NAN_POLICIES) or PROPAGATE
    if fill is not None and not isinstance(fill, float):
        fill = scalars.real_or_nan("fill", fill)
    require_tensors(counted)
    for name, tensor, kinds, expected in (
        ("where", where, (torch.bool,), "bool"),
        ("weights", weights, NUMBERS, "real numbers"),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in kinds:
            raise TypeError(f"{name}: expected {expected}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device}, got {tensor.device}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(dtypes.NOT_DIFFERENTIABLE.format("function 'batch_norm'", name))
    return Counted(_fitted("where", where, x), _fitted("weights", weights, x), nan_policy, fill)


def require_tensors(counted: Counted) -> None:
    """Refuse a mask or weights that are no tensor."""
    for name, value in (("where", counted.where), ("weights", counted.weights)):
        if not (value is None or isinstance(value, torch.Tensor)):
            raise TypeError(f"{name}: expected a tensor, got {scalars.shown(value)}")


def _fitted(name: str, tensor: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor that broadcasts against x, with as many dimensions as x."""
    if tensor is None:
        return None
    missing = x.dim() - tensor.dim()
    sizes = x.shape[max(missing, 0) :]
    if missing < 0 or any(
        one not in (1, size) for one, size in zip(tensor.shape, sizes, strict=True)
    ):
        raise ValueError(
            f"{name}: expected a shape that broadcasts against x's {tuple(x.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    return tensor.reshape((1,) * missing + tuple(tensor.shape)) if missing else tensor


def values_per_channel(x: torch.Tensor) -> int:
    """Return the number of values of each channel of x."""
    shape = canonical(x.shape, 1, 2)
    return shape.outer * shape.inner


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum every channel; the result has shape (1, C, 1, ...)."""
    return values.sum([i for i in range(values.dim()) if i != 1], keepdim=True)


class Counting(NamedTuple):
    """The weights of x's values, in formulas.

    Attributes
    ----------
    w : the weights, which broadcast against x, or None if all are 1
    number : the sum of the weights of each channel; 1 if it is 0
    nothing : where the weights are 0
    filled : whether y is a constant there
    total : sums every channel of the whole batch, which other processes may have parts of
    """

    w: torch.Tensor | None
    number: torch.Tensor | float
    nothing: torch.Tensor
    filled: bool
    total: Callable[[torch.Tensor], torch.Tensor] = total

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        where: torch.Tensor | None,
        weights: torch.Tensor | None,
        nan_policy: str,
        fill: float | None,
    ) -> Counting:
        """Return the weights of x, which has the dtype of arithmetic."""
        w = None if weights is None else weights.double()
        if where is not None:
            w = where.double() if w is None else torch.where(where, w, 0.0)
        if nan_policy == "omit":
            holes = torch.isnan(x.detach())
            w = (~holes).double() if w is None else torch.where(holes, 0.0, w)
        if w is None:
            nobody = torch.zeros((), dtype=torch.bool, device=x.device)
            return cls(None, max(values_per_channel(x), 1), nobody, False)
        number = total(w.expand(x.shape))
        number = torch.where(number > 0.0, number, 1.0)
        return cls(w.to(x.dtype), number.to(x.dtype), w == 0.0, fill is not None)

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of every channel."""
        if self.w is None:
            return self.total(values) / self.number
        return self.total(torch.where(self.nothing, 0.0, values * self.w)) / self.number

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return values times each weight's part of the sum of weights; undoes `average`."""
        if self.w is None:
            return values / self.number
        return values * (self.w / self.number)

    def kept(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return a gradient or tangent that is 0 where y is a constant."""
        return gradient.masked_fill(self.nothing, 0.0) if self.filled else gradient

    def cleaned(self, x: torch.Tensor, g: torch.Tensor | None = None) -> torch.Tensor:
        """Return x without NaN and huge values where no statistic, y or gradient g needs them."""
        if self.w is None or not (self.filled or g is not None):
            return x
        unused = self.nothing & ~torch.isfinite(x * x)
        return x.masked_fill(unused if self.filled or g is None else unused & (g == 0.0), 0.0)
