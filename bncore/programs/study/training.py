"""One training: a `Setting` has everything that it depends on, an `Outcome` its results."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import bncore
from bncore.programs.demo.layers import Array, Conv2d, Label, Linear, Sequential, softmax_loss, step
from bncore.programs.study import data
from bncore.programs.study.networks import build, weighted

POINTS = 30  # a training is evaluated at most this many times, more often at the start
PIECE = 120  # images
TRAINED = 0.9  # test accuracy
GUESSING = 0.1  # accuracy of ten classes guessed


@dataclass(frozen=True, order=True)
class Setting:
    """One training.  All random numbers follow from `seed`, and batch norm draws none.

    Two settings that differ only in `batch_norm` or `rate` have the same split of the data, the
    same initial weights, the same batches and the same augmented images.
    """

    network: str = "mlp"
    batch_norm: bool = True
    rate: float = 0.1
    seed: int = 0
    scale: float = 1.0
    depth: int = 3
    batch: int = 64
    epochs: int = 30
    augment: bool = False
    average: str = "moving"
    every_statistic: bool = False
    points: int = POINTS

    @property
    def cost(self) -> float:
        """An estimate of the time that it takes, by which trainings are ordered."""
        steps = self.epochs * len(data.split(self.seed).train) // self.batch
        layers = self.depth if self.network == "mlp" else 20
        return steps * (layers + 1) * (1 + 2 * self.augment) * (1 + self.batch / 128)


@dataclass
class Outcome:
    """The results of a training.

    A loss is a mean cross-entropy, and an accuracy is a share of 1.  A training whose loss is no
    longer finite stops there.  Its remaining losses are inf, and its accuracies those of guessing.
    """

    step_loss: NDArray[np.float64]  # of each training batch, before its step
    step_accuracy: NDArray[np.float64]
    at: NDArray[np.int64]  # steps done at each evaluation
    loss: dict[str, list[float]]  # by part of the data or statistic, at each evaluation
    accuracy: dict[str, list[float]]
    # Norms of the loss's gradients in the first step, first layer to last:
    weight_gradients: list[float] = field(default_factory=list)  # by each matrix of weights
    signals: list[float] = field(default_factory=list)  # by what each hidden layer passes on

    @property
    def finite(self) -> bool:
        """Whether the loss stayed finite."""
        return bool(np.isfinite(self.step_loss[-1]))

    def steps_to(self, accuracy: float, part: str) -> int:
        """Return the steps to an accuracy on a part, or twice all steps if it is never reached."""
        for at, reached in zip(self.at, self.accuracy[part], strict=True):
            if reached >= accuracy:
                return int(at)
        return 2 * int(self.at[-1])

    def final(self, part: str) -> float:
        """Return the accuracy on a part at the end."""
        return self.accuracy[part][-1]


def trains(outcome: Outcome) -> float:
    """Return 1 if a training reached 90 % test accuracy by its end, otherwise 0."""
    return float(outcome.final("test") >= TRAINED)


def evaluate(
    network: Sequential, part: data.Part, cut: data.Split, *, batch: int | None = None
) -> tuple[float, float]:
    """Compute loss and accuracy on a part, without changing the running statistics.

    For a network in training, `batch` gives the size of the batches; a rest is left out.
    """
    # In evaluation the size of the pieces does not matter, and small ones stay in the caches.
    size, end = (batch, len(part) - batch + 1) if batch else (PIECE, len(part))
    scores = [
        network.forward(cut.standardized(part.images[start : start + size]), update_stats=False)
        for start in range(0, end, size)
    ]
    score = np.concatenate(scores)
    label = part.label[: len(score)]
    loss, _ = softmax_loss(score, label)
    accuracy = float(np.mean(score.argmax(axis=1) == label))
    return (loss if np.isfinite(loss) else np.inf), accuracy


def evaluations(
    network: Sequential, cut: data.Split, setting: Setting
) -> dict[str, tuple[float, float]]:
    """Compute loss and accuracy of each part in evaluation, and on request by kind of statistics.

    "batch" evaluates the test part with the statistics of its batches, as in training.
    "population" uses the statistics of the whole training part under the present weights.
    """
    network.eval()
    found = {
        "validation": evaluate(network, cut.validation, cut),
        "test": evaluate(network, cut.test, cut),
    }
    if setting.every_statistic:
        network.train()
        found["batch"] = evaluate(network, cut.test, cut, batch=setting.batch)
        exact = copy.deepcopy(network)
        bncore.recalibrate(exact, [cut.standardized(cut.train.images)])
        exact.eval()
        found["population"] = evaluate(exact, cut.test, cut)
    network.train()
    return found


def batches(setting: Setting, cut: data.Split) -> Iterator[tuple[Array, Label]]:
    """Yield whole batches, in a new order every epoch, augmented on request."""
    order_rng, augment_rng = (np.random.default_rng((setting.seed, use)) for use in (2, 3))
    for _ in range(setting.epochs):
        order = order_rng.permutation(len(cut.train))
        for start in range(0, len(order) - setting.batch + 1, setting.batch):
            pick = order[start : start + setting.batch]
            images = cut.train.images[pick]
            if setting.augment:
                images = data.shifted_and_turned(images, augment_rng)
            yield cut.standardized(images), cut.train.label[pick]


def backward_with_norms(network: Sequential, dscore: Array) -> tuple[list[float], list[float]]:
    """Compute backward, and return the norms of the gradients that `Outcome` has."""
    layers = weighted(network)
    weights, signals = [], []
    dy = dscore
    for layer in reversed(network.layers):
        dy = layer.backward(dy)
        if isinstance(layer, Linear | Conv2d):
            weights.append(float(np.linalg.norm(layer.dweight)))
            if layer is not layers[0]:
                signals.append(float(np.linalg.norm(dy)))
    return weights[::-1], signals[::-1]


def train(setting: Setting) -> Outcome:
    """Train with plain stochastic gradient descent at a constant rate, and evaluate as it goes.

    Examples
    --------
    >>> outcome = train(Setting(epochs=3))
    >>> outcome.final("test") > 0.8
    True
    """
    with np.errstate(all="ignore"):  # if the rate is too high, numbers overflow, and that counts
        return _train(setting)


def _train(setting: Setting) -> Outcome:
    cut = data.split(setting.seed)
    network = build(
        setting.network,
        batch_norm=setting.batch_norm,
        seed=setting.seed,
        scale=setting.scale,
        depth=setting.depth,
        average=setting.average,
    )
    steps = setting.epochs * (len(cut.train) // setting.batch)
    at = np.unique(np.geomspace(steps, 1, setting.points).round().astype(np.int64))
    losses, accuracies, found = [], [], []
    outcome = Outcome(np.zeros(0), np.zeros(0), at, {}, {})
    for number, (x, label) in enumerate(batches(setting, cut), start=1):
        score = network.forward(x)
        loss, dscore = softmax_loss(score, label)
        losses.append(loss)
        accuracies.append(float(np.mean(score.argmax(axis=1) == label)))
        if not np.isfinite(loss):
            break
        if number == 1:
            outcome.weight_gradients, outcome.signals = backward_with_norms(network, dscore)
        else:
            network.backward(dscore)
        step(network, setting.rate)
        if number in at:
            found.append(evaluations(network, cut, setting))
    outcome.step_loss, outcome.step_accuracy = np.array(losses), np.array(accuracies)
    parts = found[0] if found else dict.fromkeys(("validation", "test"))
    missing = [(np.inf, GUESSING)] * (len(at) - len(found))
    for part in parts:
        pairs = [each[part] for each in found] + missing
        outcome.loss[part] = [loss for loss, _ in pairs]
        outcome.accuracy[part] = [accuracy for _, accuracy in pairs]
    return outcome
