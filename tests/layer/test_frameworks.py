"""Layers of PyTorch, Keras and Flax in float64 beside ours; `make test-frameworks` installs them.

Each layer has settings that are not its defaults. It is read by ``BatchNorm.from_*``, trained for
ten steps beside ours, and made again from the result of ``to_*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bncore
from frameworks import EPS, SHAPE, Keras, Linen, Nnx, Torch, close, jax_in_float64

pytestmark = [
    pytest.mark.needs_frameworks,
    # Theirs: while they are imported, and when they are called in float64.
    pytest.mark.filterwarnings("ignore"),
]

STEPS = 10

FRAMEWORKS = [Torch, Keras, Linen, Nnx]
SETTINGS = [
    pytest.param(framework, momentum, affine, id=f"{framework.__name__}-{momentum}-{affine}")
    for framework in FRAMEWORKS
    for momentum, affine in [(0.1, True), (0.37, False), (0.2, "weight"), (None, True)]
    if (affine != "weight" if framework is Torch else momentum is not None)
]


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
