"""Part 2: a two-layer network in NumPy, trained with and without batch normalization.

Every layer has ``forward`` and ``backward``; ``backward`` takes the loss's gradient by the layer's
output, stores the gradients of the parameters, and returns the gradient by the input. Names:
x input, y output, dx and dy the loss's gradients by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import bncore
from bncore.demo.data import Digits

Array = NDArray[np.floating[Any]]


class Layer(Protocol):
    """What the network asks of a layer."""

    def forward(self, x: Array, *, training: bool) -> Array: ...

    def backward(self, dy: Array) -> Array: ...

    def parameters(self) -> Iterator[tuple[Array, Array]]: ...


class Linear:
    """y = x @ weight + bias, weights drawn by He's rule."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, dtype: Any) -> None:
        weight = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs))
        self.weight: Array = weight.astype(dtype)
        self.bias: Array = np.zeros(outputs, dtype)

    def forward(self, x: Array, *, training: bool) -> Array:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, dy: Array) -> Array:
        self.dweight = self.x.T @ dy
        self.dbias = dy.sum(axis=0)
        return dy @ self.weight.T

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        yield self.weight, self.dweight
        yield self.bias, self.dbias


class Relu:
    """y = max(x, 0)."""

    def forward(self, x: Array, *, training: bool) -> Array:
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        return np.where(self.x > 0, dy, 0).astype(dy.dtype)

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        yield from ()


class Norm:
    """`bncore.BatchNorm` as the network asks for it: the mode comes with each call."""

    def __init__(self, channels: int, dtype: Any) -> None:
        self.layer = bncore.BatchNorm(channels, dtype=dtype)

    def forward(self, x: Array, *, training: bool) -> Array:
        return self.layer.train(training)(x)

    def backward(self, dy: Array) -> Array:
        return self.layer.backward(dy)

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        yield from zip(self.layer.parameters(), self.layer.gradients(), strict=True)


def softmax_loss(score: Array, label: NDArray[np.int64]) -> tuple[float, Array]:
    """Mean cross-entropy of softmax(score), and its gradient by score."""
    shifted = score - score.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    row = np.arange(len(label))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[row, label]))
    dscore = exp / total
    dscore[row, label] -= 1
    return loss, dscore / len(label)


@dataclass
class Network:
    """64 pixels -> hidden units -> 10 classes, with or without batch norm before the ReLU."""

    hidden: int
    batch_norm: bool
    seed: int = 0
    dtype: Any = np.float32
    layers: list[Layer] = field(init=False)

    def __post_init__(self) -> None:
        # Batch norm draws nothing, so both networks start from the same weights.
        rng = np.random.default_rng(self.seed)
        norm: list[Layer] = [Norm(self.hidden, self.dtype)] if self.batch_norm else []
        first = Linear(64, self.hidden, rng, self.dtype)
        last = Linear(self.hidden, 10, rng, self.dtype)
        self.layers = [first, *norm, Relu(), last]

    def forward(self, x: Array, *, training: bool) -> Array:
        """Class scores of a batch."""
        for layer in self.layers:
            x = layer.forward(x, training=training)
        return x

    def loss_and_gradients(self, x: Array, label: NDArray[np.int64]) -> float:
        """Loss of a training batch; every layer's gradients are up to date afterwards."""
        loss, dy = softmax_loss(self.forward(x, training=True), label)
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return loss

    def accuracy(self, x: Array, label: NDArray[np.int64]) -> float:
        """Part of the images whose highest score is the right class."""
        return float(np.mean(self.forward(x, training=False).argmax(axis=1) == label))


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data led to."""

    loss: float
    accuracy: float


def train(
    network: Network, digits: Digits, *, epochs: int, batch: int, rate: float
) -> Iterator[Epoch]:
    """Plain stochastic gradient descent; after each epoch the mean loss and the test accuracy."""
    rng = np.random.default_rng(network.seed + 1)  # the same batches for both networks
    for _ in range(epochs):
        order = rng.permutation(len(digits.train_x))
        losses = []
        # Whole batches only: statistics of a small rest would be noise.
        for start in range(0, len(order) - batch + 1, batch):
            pick = order[start : start + batch]
            losses.append(
                network.loss_and_gradients(digits.train_x[pick], digits.train_label[pick])
            )
            for layer in network.layers:
                for value, gradient in layer.parameters():
                    value -= rate * gradient
        yield Epoch(float(np.mean(losses)), network.accuracy(digits.test_x, digits.test_label))
