"""The two networks of the study, with and without batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import bncore
from bncore.programs.demo.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, Relu, Sequential

PIXELS, CLASSES = 64, 10
WIDTH = 100  # units of a hidden layer
FILTERS = (8, 16, 32)

# The kinds of running averages, as arguments of bncore.BatchNorm.
AVERAGES: dict[str, dict[str, Any]] = {
    "moving": {"momentum": 0.1},
    "cumulative": {"momentum": None},
    "debiased": {"momentum": 0.1, "debias": True},
}


def normalized(channels: int, batch_norm: bool, average: str, dtype: DTypeLike) -> Layer:
    """Make the layer after one with weights: batch norm with ReLU, or only ReLU."""
    if not batch_norm:
        return Relu()
    return bncore.BatchNorm(channels, axis=-1, activation="relu", dtype=dtype, **AVERAGES[average])


def build(
    network: str,
    *,
    batch_norm: bool,
    seed: int,
    scale: float = 1.0,
    depth: int = 3,
    average: str = "moving",
    dtype: DTypeLike = np.float32,
) -> Sequential:
    """Make a network for images of shape (n, 8, 8, 1).

    Parameters
    ----------
    network : {"mlp", "cnn"}
        `depth` hidden layers of 100 units; or three 3 x 3 convolutions of 8, 16 and 32 filters,
        each with 2 x 2 max pooling after its ReLU; and a linear layer.
    batch_norm : bool
        Whether there is batch norm between each hidden layer and its ReLU.  It draws no random
        numbers, so both kinds have the same weights.
    scale : float
        A factor for all initial weights, 1 for He's rule.
    average : {"moving", "cumulative", "debiased"}
        The kind of running statistics.

    Examples
    --------
    >>> import numpy as np
    >>> net = build("cnn", batch_norm=True, seed=0)
    >>> net.forward(np.ones((4, 8, 8, 1), np.float32)).shape
    (4, 10)
    """
    rng = np.random.default_rng((seed, 1))
    layers: list[Layer] = []
    if network == "mlp":
        layers.append(Flatten())
        inputs = PIXELS
        for _ in range(depth):
            layers.append(Linear(inputs, WIDTH, rng, scale=scale, dtype=dtype))
            layers.append(normalized(WIDTH, batch_norm, average, dtype))
            inputs = WIDTH
    elif network == "cnn":
        channels = 1
        for filters in FILTERS:
            layers.append(Conv2d(channels, filters, 3, rng, scale=scale, dtype=dtype))
            layers.append(normalized(filters, batch_norm, average, dtype))
            layers.append(MaxPool2d())
            channels = filters
        layers.append(Flatten())
        inputs = channels
    else:
        raise ValueError(f"network: expected 'mlp' or 'cnn', got {network!r}")
    return Sequential(*layers, Linear(inputs, CLASSES, rng, scale=scale, dtype=dtype))


def weighted(network: Sequential) -> list[Linear | Conv2d]:
    """Return the layers that have a weight matrix, first to last."""
    return [layer for layer in network.layers if isinstance(layer, Linear | Conv2d)]
