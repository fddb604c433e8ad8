"""Layers of PyTorch, Keras and Flax under one calling convention, with settings for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import bncore
import tolerances

SHAPE = (6, 3, 4, 5)
EPS = 3e-3


class Torch:
    """``torch.nn.BatchNorm2d``."""

    axis = 1
    tolerance = tolerances.FRAMEWORKS

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def new(self, momentum: float | None, affine: str | bool, values: list[np.ndarray]) -> Any:
        layer = self.torch.nn.BatchNorm2d(
            SHAPE[1], eps=EPS, momentum=momentum, affine=bool(affine), dtype=self.torch.float64
        )
        if affine:
            layer.weight.data[:] = self.torch.tensor(values[0])
            layer.bias.data[:] = self.torch.tensor(values[1])
        return layer

    def ours(self, layer: Any) -> bncore.BatchNorm:
        return bncore.BatchNorm.from_torch(layer)

    def again(self, ours: bncore.BatchNorm) -> Any:
        arguments, state = ours.to_torch()
        layer = self.torch.nn.BatchNorm2d(**arguments, dtype=self.torch.float64)
        layer.load_state_dict({k: self.torch.from_numpy(v) for k, v in state.items()})
        return layer

    def call(self, layer: Any, x: np.ndarray, training: bool) -> np.ndarray:
        return layer.train(training)(self.torch.tensor(x)).detach().numpy()

    def running(self, layer: Any) -> list[np.ndarray]:
        return [layer.running_mean.numpy(), layer.running_var.numpy()]


class Keras:
    """``keras.layers.BatchNormalization``, which computes in float32 whatever its dtype is."""

    axis = -1
    tolerance = tolerances.FRAMEWORKS_FLOAT32

    def __init__(self) -> None:
        pytest.importorskip("torch", reason="PyTorch, Keras's backend here, is not installed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERAS_BACKEND", "torch")
            self.keras = pytest.importorskip("keras", reason="Keras is not installed")

    def build(self, weights: list[np.ndarray], **arguments: Any) -> Any:
        layer = self.keras.layers.BatchNormalization(**arguments, dtype="float64")
        layer.build((None, *SHAPE[2:], SHAPE[1]))
        layer.set_weights(weights)
        return layer

    def new(self, momentum: float | None, affine: str | bool, values: list[np.ndarray]) -> Any:
        scale, center = affine in (True, "weight"), affine in (True, "bias")
        parameters = [value for value, has in zip(values, (scale, center), strict=True) if has]
        weights = [*parameters, np.zeros(SHAPE[1]), np.ones(SHAPE[1])]
        return self.build(weights, epsilon=EPS, momentum=1.0 - momentum, scale=scale, center=center)

    def ours(self, layer: Any) -> bncore.BatchNorm:
        return bncore.BatchNorm.from_keras(layer)

    def again(self, ours: bncore.BatchNorm) -> Any:
        arguments, weights = ours.to_keras()
        return self.build(weights, **arguments)

    def call(self, layer: Any, x: np.ndarray, training: bool) -> np.ndarray:
        ops = self.keras.ops
        return ops.convert_to_numpy(layer(ops.convert_to_tensor(x, "float64"), training=training))

    def running(self, layer: Any) -> list[np.ndarray]:
        return layer.get_weights()[-2:]


@contextmanager
def jax_in_float64() -> Iterator[None]:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


class Linen:
    """``flax.linen.BatchNorm``: [module, variables]."""

    axis = -1
    tolerance = tolerances.FRAMEWORKS

    def __init__(self) -> None:
        self.nn = pytest.importorskip("flax.linen", reason="Flax is not installed")

    def new(self, momentum: float | None, affine: str | bool, values: list[np.ndarray]) -> Any:
        has = {"scale": affine in (True, "weight"), "bias": affine in (True, "bias")}
        module = self.nn.BatchNorm(
            momentum=1.0 - momentum, epsilon=EPS, use_scale=has["scale"], use_bias=has["bias"],
            dtype=np.float64, param_dtype=np.float64,
        )  # fmt: skip
        statistics = {"mean": np.zeros(SHAPE[1]), "var": np.ones(SHAPE[1])}
        params = {name: value for name, value in zip(has, values, strict=True) if has[name]}
        return [module, {"params": params, "batch_stats": statistics}]

    def ours(self, layer: Any) -> bncore.BatchNorm:
        return bncore.BatchNorm.from_flax(*layer)

    def again(self, ours: bncore.BatchNorm) -> Any:
        arguments, variables = ours.to_flax()
        arguments.pop("use_running_average")  # each call says it
        return [self.nn.BatchNorm(**arguments, dtype=np.float64), variables]

    def call(self, layer: Any, x: np.ndarray, training: bool) -> np.ndarray:
        module, variables = layer
        y, changed = module.apply(
            variables, x, use_running_average=not training, mutable=["batch_stats"]
        )
        layer[1] = {**variables, **changed}
        return np.asarray(y)

    def running(self, layer: Any) -> list[np.ndarray]:
        return [np.asarray(layer[1]["batch_stats"][name]) for name in ("mean", "var")]


class Nnx:
    """``flax.nnx.BatchNorm``."""

    axis = -1
    tolerance = tolerances.FRAMEWORKS

    def __init__(self) -> None:
        self.nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
        self.asarray = pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray

    def build(self, values: dict[str, np.ndarray], **arguments: Any) -> Any:
        layer = self.nnx.BatchNorm(
            SHAPE[1], **arguments, dtype=np.float64, param_dtype=np.float64, rngs=self.nnx.Rngs(0)
        )
        for name, value in values.items():  # new variables: old ones of float32 would stay that
            setattr(layer, name, type(getattr(layer, name))(self.asarray(value)))
        return layer

    def new(self, momentum: float | None, affine: str | bool, values: list[np.ndarray]) -> Any:
        has = {"scale": affine in (True, "weight"), "bias": affine in (True, "bias")}
        given = {name: value for name, value in zip(has, values, strict=True) if has[name]}
        given |= {"mean": np.zeros(SHAPE[1]), "var": np.ones(SHAPE[1])}
        return self.build(
            given, momentum=1.0 - momentum, epsilon=EPS, use_scale=has["scale"],
            use_bias=has["bias"],
        )  # fmt: skip

    def ours(self, layer: Any) -> bncore.BatchNorm:
        return bncore.BatchNorm.from_flax(layer)

    def again(self, ours: bncore.BatchNorm) -> Any:
        arguments, variables = ours.to_flax()
        return self.build(variables.get("params", {}) | variables["batch_stats"], **arguments)

    def call(self, layer: Any, x: np.ndarray, training: bool) -> np.ndarray:
        return np.asarray(layer(x, use_running_average=not training))

    def running(self, layer: Any) -> list[np.ndarray]:
        return [np.asarray(layer.mean), np.asarray(layer.var)]


def close(library: Any, got: np.ndarray, want: np.ndarray) -> None:
    """Assert that two results agree as well as the library computes."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= library.tolerance * max(1.0, np.abs(want).max())
