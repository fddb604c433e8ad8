"""One good call of every public function that takes arrays, its arguments by their names.

Tests that have to hold for all functions run over `CALLS` and replace one argument at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import bncore

SHAPE = (4, 3, 5)
GROUPS, SIZE = 3, 2  # groups of channels, and samples in a virtual batch
Arguments = dict[str, Any]

# The arguments that are arrays, by what is done with them.
DATA = ("x", "dy", "residual")
PARAMETERS = ("weight", "bias", "mean", "var", "bn_weight", "bn_bias")
WRITTEN = ("out", "dresidual", "running_mean", "running_var")


@dataclass(frozen=True)
class Call:
    """A public function, and how its arguments differ from those that most functions take."""

    function: Callable[..., Any]
    special: Callable[[Arguments], Arguments] = lambda good: {}
    result: int | None = None  # where in a returned tuple the array of x's size is
    returns_x_size: bool = True

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.function).parameters)

    def arguments(
        self, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float64, *, fused: bool = True
    ) -> Arguments:
        """Good arguments for an x of this shape, C-contiguous, without outputs."""
        good = good_arguments(shape, dtype)
        given = good | self.special(good)
        names = [name for name in self.parameters if name in given]
        fusion = () if fused else ("activation", "negative_slope", "residual")
        return {name: given[name] for name in names if name not in fusion}

    def output(self, returned: Any) -> np.ndarray:
        """The array of x's size in what the function returned."""
        return returned if self.result is None else returned[self.result]

    def __call__(self, arguments: Arguments) -> Any:
        """Call the function; what it takes by position alone, or as several arguments, too."""
        return self.function(**arguments)


def good_arguments(shape: tuple[int, ...], dtype: Any) -> Arguments:
    """Arguments by name, right for every function that takes batches as batch norm does."""
    rng = np.random.default_rng(5)
    channels = shape[1]
    x, dy, residual = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    moments = bncore.moments(x)
    return {
        "x": x,
        "dy": dy,
        "weight": rng.uniform(0.5, 2.0, channels),
        "bias": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "var": rng.uniform(0.5, 2.0, channels),
        "moments": moments,
        "sums": bncore.grad_sums(dy, x, moments),
        "n_threads": 1,
        "activation": "leaky_relu",
        "residual": residual,
        "running_mean": rng.standard_normal(channels),
        "running_var": rng.uniform(0.5, 2.0, channels),
    }


def _per_group(good: Arguments) -> Arguments:
    """What group norm takes: moments of every group of every sample."""
    return {"groups": GROUPS, "moments": bncore.group_norm(good["x"], GROUPS)[1]}


def _per_channel(good: Arguments) -> Arguments:
    """What instance norm takes: moments of every channel of every sample."""
    return {"moments": bncore.instance_norm(good["x"])[1]}


def _per_row(good: Arguments) -> Arguments:
    """What layer norm takes: a weight for every element of a row."""
    width = good["x"].shape[-1]
    weight, bias = np.linspace(0.5, 2.0, width), np.linspace(-1.0, 1.0, width)
    return {"weight": weight, "bias": bias, "moments": bncore.layer_norm(good["x"])[1]}


def _virtual(good: Arguments) -> Arguments:
    return {"size": SIZE, "moments": bncore.ghost_batch_norm(good["x"], SIZE)[1]}


def _renorm(good: Arguments) -> Arguments:
    channels = good["x"].shape[1]
    return {"renorm": (np.linspace(0.5, 1.5, channels), np.linspace(-0.5, 0.5, channels))}


def _linear(good: Arguments) -> Arguments:
    channels = good["x"].shape[1]
    return {
        "weight": np.ones((channels, 2)),
        "bn_weight": good["weight"],
        "bn_bias": good["bias"],
    }


def _convolution(good: Arguments) -> Arguments:
    return _linear(good) | {"weight": np.ones((good["x"].shape[1], 2, 3))}


CALLS = {
    call.function.__name__: call
    for call in (
        Call(bncore.batch_norm_train, result=0),
        Call(bncore.batch_norm_train_backward, result=0),
        Call(bncore.batch_norm_infer),
        Call(bncore.batch_norm_infer_backward, result=0),
        Call(bncore.normalize),
        Call(bncore.grad_input),
        Call(bncore.group_norm, _per_group, 0),
        Call(bncore.group_norm_backward, _per_group, 0),
        Call(bncore.instance_norm, _per_channel, 0),
        Call(bncore.instance_norm_backward, _per_channel, 0),
        Call(bncore.layer_norm, _per_row, 0),
        Call(bncore.layer_norm_backward, _per_row, 0),
        Call(bncore.ghost_batch_norm, _virtual, 0),
        Call(bncore.ghost_batch_norm_backward, _virtual, 0),
        Call(bncore.standardize, result=0),
        Call(bncore.destandardize),
        Call(bncore.batch_renorm, result=0),
        Call(bncore.batch_renorm_backward, _renorm, 0),
        Call(bncore.moments, returns_x_size=False),
        Call(bncore.grad_sums, returns_x_size=False),
        Call(bncore.mean_var, returns_x_size=False),
        Call(bncore.var, returns_x_size=False),
        Call(bncore.std, returns_x_size=False),
        Call(bncore.stream_moments, returns_x_size=False),
        Call(bncore.update_running_stats, returns_x_size=False),
        Call(bncore.as_scale_shift, returns_x_size=False),
        Call(bncore.fold_into_linear, _linear, returns_x_size=False),
        Call(bncore.fold_into_conv, _convolution, returns_x_size=False),
    )
}
NORMALIZING = {name: call for name, call in CALLS.items() if call.returns_x_size}


def pairs(*kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every function with each of its arguments of these kinds."""
    wanted = [argument for kind in kinds for argument in kind]
    for name, call in CALLS.items():
        for argument in wanted:
            if argument in call.parameters:
                yield name, argument
