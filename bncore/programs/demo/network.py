"""Part 2: a two-layer network in NumPy, trained with and without batch normalization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bncore
from bncore.programs.demo.data import Digits
from bncore.programs.demo.layers import Array, Layer, Linear, Relu, Sequential, softmax_loss, step


@dataclass
class Network:
    """64 pixels -> hidden units -> 10 classes, with or without batch norm before the ReLU."""

    hidden: int
    batch_norm: bool
    seed: int = 0
    dtype: Any = np.float32
    layers: Sequential = field(init=False)

    def __post_init__(self) -> None:
        # Batch norm draws nothing, so both networks start from the same weights.
        rng = np.random.default_rng(self.seed)
        norm: list[Layer] = (
            [bncore.BatchNorm(self.hidden, dtype=self.dtype)] if self.batch_norm else []
        )
        first = Linear(64, self.hidden, rng, dtype=self.dtype)
        last = Linear(self.hidden, 10, rng, dtype=self.dtype)
        self.layers = Sequential(first, *norm, Relu(), last)

    def loss_and_gradients(self, x: Array, label: NDArray[np.int64]) -> float:
        """Return the loss of a training batch, and compute the gradients of every layer."""
        loss, dscore = softmax_loss(self.layers.forward(x), label)
        self.layers.backward(dscore)
        return loss

    def accuracy(self, x: Array, label: NDArray[np.int64]) -> float:
        """Return the share of images whose highest score is the right class, in evaluation."""
        self.layers.eval()
        score = self.layers.forward(x)
        self.layers.train()
        return float(np.mean(score.argmax(axis=1) == label))


@dataclass(frozen=True)
class Epoch:
    """The results of one pass over the training data."""

    loss: float
    accuracy: float


def train(
    network: Network, digits: Digits, *, epochs: int, batch: int, rate: float
) -> Iterator[Epoch]:
    """Train by stochastic gradient descent; yield mean loss and test accuracy of each epoch."""
    rng = np.random.default_rng(network.seed + 1)  # the same batches for both networks
    for _ in range(epochs):
        order = rng.permutation(len(digits.train_x))
        losses = []
        # Use whole batches only, because the statistics of a small rest would be noise.
        for start in range(0, len(order) - batch + 1, batch):
            pick = order[start : start + batch]
            losses.append(
                network.loss_and_gradients(digits.train_x[pick], digits.train_label[pick])
            )
            step(network.layers, rate)
        yield Epoch(float(np.mean(losses)), network.accuracy(digits.test_x, digits.test_label))
