"""Masks of Keras and Flax beside ours: both modes, gradients, and statistics after ten steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bncore
import tolerances
from frameworks import SHAPE, Keras, Linen, Nnx, jax_in_float64

pytestmark = [
    pytest.mark.needs_frameworks,
    # Theirs: while they are imported, and when they are called in float64.
    pytest.mark.filterwarnings("ignore"),
]

STEPS = 10
PLACES = (SHAPE[0], *SHAPE[2:])
LAST = (*PLACES, SHAPE[1])


class KerasMasks(Keras):
    """Keras's mask has no channel axis, and what is masked is still normalized."""

    def step(self, layer: Any, x: np.ndarray, mask: np.ndarray, r: np.ndarray) -> tuple:
        """Return y of a training call, and the gradients of the sum of r * y."""
        torch = pytest.importorskip("torch")
        value = torch.tensor(x, requires_grad=True)
        y = layer(value, training=True, mask=torch.tensor(mask))
        parameters = [layer.gamma.value, layer.beta.value]
        gradients = torch.autograd.grad((y * torch.tensor(r)).sum(), [value, *parameters])
        return y.detach().numpy(), *(one.numpy() for one in gradients)

    def evaluate(self, layer: Any, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        torch = pytest.importorskip("torch")
        y = layer(torch.tensor(x), training=False, mask=torch.tensor(mask))
        return y.detach().numpy()


class LinenMasks(Linen):
    """Flax's mask broadcasts against x."""

    def step(self, layer: Any, x: np.ndarray, mask: np.ndarray, r: np.ndarray) -> tuple:
        jax = pytest.importorskip("jax")
        module, variables = layer

        def call(params, x):
            y, changed = module.apply(
                {**variables, "params": params}, x, use_running_average=False,
                mask=mask[..., np.newaxis], mutable=["batch_stats"],
            )  # fmt: skip
            return (y * r).sum(), (y, changed)

        grad = jax.value_and_grad(call, argnums=(0, 1), has_aux=True)
        (_, (y, changed)), (params, dx) = grad(variables["params"], x)
        layer[1] = {**variables, **changed}
        return tuple(map(np.asarray, (y, dx, params["scale"], params["bias"])))

    def evaluate(self, layer: Any, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        module, variables = layer
        given = {"use_running_average": True, "mask": mask[..., np.newaxis]}
        return np.asarray(module.apply(variables, x, **given))


class NnxMasks(Nnx):
    """The same layer with its variables in it."""

    def step(self, layer: Any, x: np.ndarray, mask: np.ndarray, r: np.ndarray) -> tuple:
        def call(layer, x):
            y = layer(x, use_running_average=False, mask=mask[..., np.newaxis])
            return (y * r).sum(), y

        grad = self.nnx.value_and_grad(call, argnums=(0, 1), has_aux=True)
        (_, y), (state, dx) = grad(layer, self.asarray(x))
        return tuple(np.asarray(one) for one in (y, dx, state["scale"][...], state["bias"][...]))

    def evaluate(self, layer: Any, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(layer(x, use_running_average=True, mask=mask[..., np.newaxis]))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax_in_float64():
        yield


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Assert agreement within their error; Keras also adds 1e-7 to the number of values."""
    assert got.shape == want.shape
    size = max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= tolerances.FRAMEWORKS_FLOAT32 * size


@pytest.mark.parametrize("framework", [KerasMasks, LinenMasks, NnxMasks])
def test_ten_masked_steps_beside(backend, rng, framework: Callable[[], Any]):
    library = framework()
    theirs = library.new(0.2, True, list(rng.uniform(0.5, 2.0, (2, SHAPE[1]))))
    ours = library.ours(theirs)

    def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.normal(rng.uniform(-1.0, 1.0), rng.uniform(0.5, 3.0), LAST)
        return x, rng.random(PLACES) < rng.uniform(0.3, 0.9), rng.standard_normal(LAST)

    for _ in range(STEPS):
        x, mask, r = batch()
        y = ours.train()(x, where=mask[..., np.newaxis])
        dx = ours.backward(r)
        want = library.step(theirs, x, mask, r)
        for got, one in zip((y, dx, ours.dweight, ours.dbias), want, strict=True):
            close(got, one)
        for mine, his in zip(
            (ours.running_mean, ours.running_var), library.running(theirs), strict=True
        ):
            close(mine, his)
    assert ours.num_batches_tracked == STEPS and isinstance(ours, bncore.BatchNorm)
    x, mask, _ = batch()
    close(ours.eval()(x, where=mask[..., np.newaxis]), library.evaluate(theirs, x, mask))
