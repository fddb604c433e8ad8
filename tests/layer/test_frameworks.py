"""Layers of PyTorch, Keras and Flax in float64 beside ours; `make test-frameworks` installs them.

Each layer has settings that are not its defaults. It is read by ``BatchNorm.from_*``, trained for
ten steps beside ours, and made again from the result of ``to_*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import bncore
import tolerances

pytestmark = [
    pytest.mark.needs_frameworks,
    # Theirs: while they are imported, and when they are called in float64.
    pytest.mark.filterwarnings("ignore"),
]

SHAPE = (6, 3, 4, 5)
STEPS = 10
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


FRAMEWORKS = [Torch, Keras, Linen, Nnx]
SETTINGS = [
    pytest.param(framework, momentum, affine, id=f"{framework.__name__}-{momentum}-{affine}")
    for framework in FRAMEWORKS
    for momentum, affine in [(0.1, True), (0.37, False), (0.2, "weight"), (None, True)]
    if (affine != "weight" if framework is Torch else momentum is not None)
]


def close(library: Any, got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= library.tolerance * max(1.0, np.abs(want).max())


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax_in_float64():
        yield


@pytest.mark.parametrize(("framework", "momentum", "affine"), SETTINGS)
def test_ten_steps_beside(
    rng, framework: Callable[[], Any], momentum: float | None, affine: str | bool
):
    library = framework()
    theirs = library.new(momentum, affine, list(rng.uniform(0.5, 2.0, (2, SHAPE[1]))))
    ours = library.ours(theirs)
    assert (ours.eps, ours.axis, ours.affine) == (EPS, library.axis, affine)
    assert ours.momentum is None if momentum is None else abs(ours.momentum - momentum) < 1e-15

    def batch() -> np.ndarray:
        x = rng.normal(rng.uniform(-1.0, 1.0), rng.uniform(0.5, 3.0), SHAPE)
        return x if library.axis == 1 else np.ascontiguousarray(np.moveaxis(x, 1, -1))

    for _ in range(STEPS):
        x = batch()
        close(library, ours.train()(x), library.call(theirs, x, True))
        for mine, his in zip(ours_running(ours), library.running(theirs), strict=True):
            close(library, mine, his)
    assert ours.num_batches_tracked == STEPS
    x = batch()
    close(library, ours.eval()(x), library.call(theirs, x, False))

    again = library.again(ours)
    close(library, ours(x), library.call(again, x, False))
    close(library, ours.train()(x), library.call(again, x, True))
    if ours.correction == (1 if framework is Torch else 0):
        for mine, his in zip(ours_running(ours), library.running(again), strict=True):
            close(library, mine, his)


def ours_running(layer: bncore.BatchNorm) -> list[np.ndarray]:
    return [layer.running_mean, layer.running_var]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_mode_comes_along(framework):
    library = framework()
    theirs = library.new(0.1, True, [np.ones(SHAPE[1]), np.zeros(SHAPE[1])])
    assert library.ours(theirs).training
    if framework is Torch:
        assert not library.ours(theirs.eval()).training
    elif framework is Keras:
        theirs.trainable = False
        assert library.ours(theirs).frozen
    elif framework is Linen:
        theirs[0] = theirs[0].clone(use_running_average=True)
        assert not library.ours(theirs).training
    else:
        theirs.eval()
        assert not library.ours(theirs).training


@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_every_batch_norm_of_torch_is_read(affine, tracks):
    nn = Torch().torch.nn
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        ours = bncore.BatchNorm.from_torch(kind(3, affine=affine, track_running_stats=tracks))
        assert (ours.channels, ours.affine, ours.track_running_stats) == (3, affine, tracks)


def test_what_is_no_batch_norm_of_torch_is_refused():
    nn = Torch().torch.nn
    others = [
        nn.Linear(3, 3),
        nn.LayerNorm(3),
        nn.GroupNorm(3, 3),
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        nn.LazyInstanceNorm2d(affine=True),
        nn.Sequential(nn.BatchNorm2d(3)),
    ]
    for module in others:
        with pytest.raises(TypeError, match=f"expected a BatchNorm .*{type(module).__name__}"):
            bncore.BatchNorm.from_torch(module)
    for settings in ({}, {"affine": False}, {"affine": False, "track_running_stats": False}):
        lazy = nn.LazyBatchNorm2d(**settings)
        with pytest.raises(ValueError, match="got LazyBatchNorm2d before its first call"):
            bncore.BatchNorm.from_torch(lazy)


def test_running_statistics_of_torch_that_are_switched_off_stay(rng):
    library = Torch()
    theirs = library.new(0.1, True, list(rng.uniform(0.5, 2.0, (2, SHAPE[1]))))
    x = rng.normal(1.0, 2.0, SHAPE)
    library.call(theirs, x, True)
    theirs.track_running_stats = False
    ours = library.ours(theirs)
    for training in (True, False):
        close(library, ours.train(training)(x), library.call(theirs, x, training))
        for mine, his in zip(ours_running(ours), library.running(theirs), strict=True):
            np.testing.assert_array_equal(mine, his)


def test_defaults_are_theirs():
    """The settings that are used for a state without settings."""
    keras, linen = Keras(), Linen()
    layer = keras.keras.layers.BatchNormalization()
    bare, full = bncore.BatchNorm.from_keras({}), bncore.BatchNorm.from_keras(layer)
    module = linen.nn.BatchNorm()
    statistics = {"batch_stats": {"mean": np.zeros(2), "var": np.ones(2)}}
    pairs = [
        (bare, full),
        (bncore.BatchNorm.from_flax(statistics), bncore.BatchNorm.from_flax(module, statistics)),
    ]
    torch = Torch().torch
    state = torch.nn.BatchNorm1d(2)
    pairs.append(
        (bncore.BatchNorm.from_torch(state.state_dict()), bncore.BatchNorm.from_torch(state))
    )
    for one, other in pairs:
        for name in ("axis", "eps", "momentum", "correction"):
            assert getattr(one, name) == getattr(other, name)


def test_a_model_of_bfloat16():
    torch = Torch().torch
    layer = torch.nn.BatchNorm1d(2, dtype=torch.bfloat16)
    layer.weight.data[:] = torch.tensor([1.5, -2.0])
    ours = bncore.BatchNorm.from_torch(layer)
    assert ours.weight.dtype.name == "bfloat16"
    assert ours.weight.tolist() == [1.5, -2.0]
    assert ours.running_var.dtype == np.float64
    as_float32 = bncore.BatchNorm.from_torch(layer, dtype=np.float32)
    assert as_float32.weight.dtype == np.float32
    assert as_float32.weight.tolist() == [1.5, -2.0]
    arguments, state = ours.to_torch()
    back = torch.nn.BatchNorm1d(**arguments, dtype=torch.bfloat16)
    back.load_state_dict(
        {
            name: torch.from_numpy(array.view("i2")).view(torch.bfloat16)
            if array.dtype == ours.weight.dtype
            else torch.from_numpy(array)
            for name, array in state.items()
        }
    )
    assert back.weight.tolist() == [1.5, -2.0]


def test_models_of_bfloat16_of_the_other_libraries():
    """Their arrays are those of ml_dtypes."""
    keras = Keras().keras
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    layer = keras.layers.BatchNormalization(dtype="bfloat16")
    layer.build((None, 2))
    ours = bncore.BatchNorm.from_keras(layer)
    variables = {
        "params": {"scale": jnp.ones(2, "bfloat16"), "bias": np.zeros(2)},
        "batch_stats": {"mean": np.zeros(2), "var": np.ones(2)},
    }
    for made in (ours, bncore.BatchNorm.from_flax(variables)):
        assert made.weight.dtype.name == "bfloat16"
        assert made.weight.tolist() == [1.0, 1.0]
