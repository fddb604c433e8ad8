"""Every operation of the API under one calling convention, so that a test can run over all of them.

An operation takes a `Case` and keyword options (`out`, `n_threads`) and gives its results by name:
"y" or "dx" in x's shape, everything else one value per channel.
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

    @cached_property
    def moments(self) -> bncore.Moments:
        return bncore.moments(self.x, axis=self.axis)

    @cached_property
    def sums(self) -> bncore.GradSums:
        return bncore.grad_sums(self.dy, self.x, self.moments, axis=self.axis, eps=self.eps)

    def with_statistics(self) -> Case:
        """Itself, once `moments` and `sums` are known: x may be overwritten from now on."""
        assert self.moments.mean.shape == self.sums.sum_dy.shape
        return self

    def rebuilt(self, build: Callable[[np.ndarray], np.ndarray]) -> Case:
        """The same case with x and dy passed through `build`; saved moments are taken afresh."""
        return replace(self, x=build(self.x), dy=build(self.dy))

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
        case.x, case.weight, case.bias, axis=case.axis, eps=case.eps, **options
    )
    return {"y": y, "mean": moments.mean, "m2": moments.m2}


def train_backward(case: Case, **options) -> Results:
    dx, dweight, dbias = bncore.batch_norm_train_backward(
        case.dy, case.x, case.moments, case.weight, axis=case.axis, eps=case.eps, **options
    )
    return {"dx": dx, "dweight": dweight, "dbias": dbias}


def infer(case: Case, **options) -> Results:
    y = bncore.batch_norm_infer(
        case.x,
        case.mean,
        case.var,
        case.weight,
        case.bias,
        axis=case.axis,
        eps=case.eps,
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
        **options,
    )
    return {"dx": dx, "dweight": dweight, "dbias": dbias}


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
ALL: dict[str, Operation] = {**REDUCING, **WRITING}


def run_all(case: Case, **options) -> Results:
    """The results of every operation, named "operation.result"."""
    return {
        f"{name}.{key}": value
        for name, operation in ALL.items()
        for key, value in operation(case, **options).items()
    }


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
