"""Every operation of the API under one calling convention, so that a test can run over all of them.

An operation takes a `Case` and keyword options (`out`, `n_threads`) and gives its results by name:
"y", "dx" or "dresidual" in x's shape, everything else one value per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

import arrays
import bncore
from arrays import LAYOUTS, VALUES, Layout

Results = dict[str, np.ndarray]
CONTIGUOUS = LAYOUTS[0]


@dataclass(frozen=True)
class Fusion:
    """What the four operations of `FUSED` do beside batch norm; the residual has x's layout."""

    activation: str | None = None
    negative_slope: float = 0.01
    residual: np.ndarray | None = None

    def activated(self, z: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Apply the activation in separate NumPy steps: the value where z is positive or NaN."""
        if self.activation is None:
            return value
        below = value.dtype.type(self.negative_slope) * value
        below = below if self.activation == "leaky_relu" else np.zeros_like(value)
        return np.where(z <= 0, below, value)


@dataclass(frozen=True)
class Case:
    """One call: arrays in some layout, parameters, and the statistics of a frozen batch norm."""

    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    axis: int = 1
    eps: float = 1e-5
    layout: Layout = field(default=CONTIGUOUS)
    fusion: Fusion | None = None

    @cached_property
    def moments(self) -> bncore.Moments:
        return bncore.moments(self.x, axis=self.axis)

    @cached_property
    def sums(self) -> bncore.GradSums:
        return bncore.grad_sums(self.dy, self.x, self.moments, axis=self.axis, eps=self.eps)

    def with_statistics(self) -> Case:
        """Compute `moments` and `sums`, so that x may be overwritten; return the case itself."""
        assert self.moments.mean.shape == self.sums.sum_dy.shape
        return self

    def rebuilt(self, build: Callable[[np.ndarray], np.ndarray]) -> Case:
        """The same case with x and dy passed through `build`; saved moments are taken afresh."""
        fusion = self.fusion
        if fusion is not None and fusion.residual is not None:
            fusion = replace(fusion, residual=build(fusion.residual))
        return replace(self, x=build(self.x), dy=build(self.dy), fusion=fusion)

    def fused(self, *, backward: bool = False) -> dict[str, object]:
        """The arguments for what is fused."""
        if self.fusion is None:
            return {}
        return vars(self.fusion) | ({"bias": self.bias} if backward else {})

    def laid_out(self, layout: Layout) -> Case:
        """The same values in another layout (from a plain case)."""
        axis = layout.axis(self.x.ndim)
        return replace(self.rebuilt(layout.build), axis=axis, layout=layout)


def make_case(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: type = np.float32,
    values: str = "normal",
    parameter_dtype: type | None = np.float64,
) -> Case:
    """A plain case: channels on axis 1, C order."""
    channels = shape[1]
    weight, bias = arrays.parameters(rng, channels, parameter_dtype)
    return Case(
        x=VALUES[values](rng, shape, dtype),
        dy=rng.standard_normal(shape).astype(dtype),
        weight=weight,
        bias=bias,
        mean=rng.standard_normal(channels),
        var=rng.uniform(0.5, 2.0, channels),
    )


def train(case: Case, **options) -> Results:
    y, moments = bncore.batch_norm_train(
        case.x,
        case.weight,
        case.bias,
        axis=case.axis,
        eps=case.eps,
        **case.fused(),
        **options,
    )
    return {"y": y, "mean": moments.mean, "m2": moments.m2}


def train_backward(case: Case, **options) -> Results:
    dx, dweight, dbias = bncore.batch_norm_train_backward(
        case.dy,
        case.x,
        case.moments,
        case.weight,
        axis=case.axis,
        eps=case.eps,
        **case.fused(backward=True),
        **options,
    )
    return {"dx": dx, "dweight": dweight, "dbias": dbias} | _dresidual(options)


def _dresidual(options: dict[str, object]) -> Results:
    return {"dresidual": options["dresidual"]} if "dresidual" in options else {}


def infer(case: Case, **options) -> Results:
    y = bncore.batch_norm_infer(
        case.x,
        case.mean,
        case.var,
        case.weight,
        case.bias,
        axis=case.axis,
        eps=case.eps,
        **case.fused(),
        **options,
    )
    return {"y": y}


def infer_backward(case: Case, **options) -> Results:
    dx, dweight, dbias = bncore.batch_norm_infer_backward(
        case.dy,
        case.x,
        case.mean,
        case.var,
        case.weight,
        axis=case.axis,
        eps=case.eps,
        **case.fused(backward=True),
        **options,
    )
    return {"dx": dx, "dweight": dweight, "dbias": dbias} | _dresidual(options)


def moments(case: Case, **options) -> Results:
    result = bncore.moments(case.x, axis=case.axis, **options)
    return {"mean": result.mean, "m2": result.m2}


def normalize(case: Case, **options) -> Results:
    y = bncore.normalize(
        case.x,
        case.moments,
        case.weight,
        case.bias,
        axis=case.axis,
        eps=case.eps,
        **options,
    )
    return {"y": y}


def grad_sums(case: Case, **options) -> Results:
    sums = bncore.grad_sums(case.dy, case.x, case.moments, axis=case.axis, eps=case.eps, **options)
    return {"sum_dy": sums.sum_dy, "sum_dy_xhat": sums.sum_dy_xhat}


def grad_input(case: Case, **options) -> Results:
    dx = bncore.grad_input(
        case.dy,
        case.x,
        case.moments,
        case.sums,
        case.weight,
        axis=case.axis,
        eps=case.eps,
        **options,
    )
    return {"dx": dx}


def mean_var(case: Case, **options) -> Results:
    axis = case.axis % case.x.ndim
    reduced = tuple(a for a in range(case.x.ndim) if a != axis)
    mean, var = bncore.mean_var(case.x, axis=reduced, **options)
    return {"mean": mean, "var": var}


Operation = Callable[..., Results]

REDUCING: dict[str, Operation] = {
    "moments": moments,
    "grad_sums": grad_sums,
    "mean_var": mean_var,
}
WRITING: dict[str, Operation] = {  # those that give an array of x's shape and take out=
    "train": train,
    "train_backward": train_backward,
    "infer": infer,
    "infer_backward": infer_backward,
    "normalize": normalize,
    "grad_input": grad_input,
}
BACKWARD = ("train_backward", "infer_backward", "grad_input")
FUSED = ("train", "train_backward", "infer", "infer_backward")  # those that take a fusion
ALL: dict[str, Operation] = {**REDUCING, **WRITING}


def run_all(case: Case, **options) -> Results:
    """The results of every operation, named "operation.result"."""
    return {
        f"{name}.{key}": value
        for name, operation in ALL.items()
        for key, value in operation(case, **options).items()
    }


def composed(case: Case, name: str, **options) -> Results:
    """Compute a fused operation's expected result: bncore's unfused one, then NumPy's steps."""
    fusion, plain = case.fusion, replace(case, fusion=None)
    forward = ALL[name.removesuffix("_backward")](plain, **options)
    with np.errstate(all="ignore"):
        z = forward["y"]
        z = z if fusion.residual is None else z + fusion.residual
        if name == "train" or name == "infer":
            return forward | {"y": fusion.activated(z, z)}
        g = fusion.activated(z, case.dy)
    return ALL[name](replace(plain, dy=g), **options) | {"dresidual": g}


def plain_results(case: Case, results: Results) -> Results:
    """The same results with channels on axis 1."""
    shape = case.x.shape
    return {
        key: case.layout.plain(value) if value.shape == shape and value.ndim > 1 else value
        for key, value in results.items()
    }


def differences(got: Results, expected: Results) -> list[str]:
    """Names of the results that do not have the same bits."""
    if got.keys() != expected.keys():
        return sorted(got.keys() ^ expected.keys())
    return [key for key in expected if not arrays.same_bits(got[key], expected[key])]
