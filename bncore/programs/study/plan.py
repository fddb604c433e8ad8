"""The plans: the whole study, a small one for the demo, and a tiny one for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bncore.programs.study.execute import Results
from bncore.programs.study.training import Outcome, Setting

RATE = 0.1  # the rate if both sides use the same one
NAMES = {"mlp": "perceptron", "cnn": "convolutional"}
SIDES = (False, True)  # without and with batch norm


@dataclass(frozen=True)
class Plan:
    """The grids of all experiments."""

    name: str
    seeds: Sequence[int]
    networks: Sequence[str]
    rates: Sequence[float]  # for the experiments on rates and convergence
    few_rates: Sequence[float]  # for experiments that vary something else, too
    scales: Sequence[float]
    depths: Sequence[int]
    batches: Sequence[int]
    epochs: int
    short: int  # epochs of the experiments on scales, depth and batch sizes
    long: int  # epochs with augmented images
    long_rates: Sequence[float]  # with augmented images


FULL = Plan(
    "full",
    seeds=range(10),
    networks=("mlp", "cnn"),
    rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    few_rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    scales=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    depths=(2, 5, 10, 20),
    batches=(2, 4, 8, 16, 32, 64, 128, 256),
    epochs=30,
    short=15,
    long=40,
    long_rates=(0.03, 0.1, 0.3, 1.0, 3.0),
)
SMALL = replace(
    FULL,
    name="small",
    seeds=range(8),
    networks=("mlp",),
    rates=(0.001, 0.01, 0.1, 1.0, 10.0),
    few_rates=(0.03, 0.1, 0.3),
    scales=(0.01, 0.1, 1.0, 10.0),
    depths=(2, 10),
    batches=(8, 64, 256),
    epochs=8,
    short=5,
    long=12,
    long_rates=(0.1, 0.3, 1.0),
)
TINY = replace(
    SMALL,
    name="tiny",
    seeds=range(2),
    networks=("mlp", "cnn"),
    rates=(0.1, 10.0),
    few_rates=(0.1,),
    scales=(0.1, 1.0),
    depths=(2, 4),
    batches=(64, 256),
    epochs=2,
    short=2,
    long=1,
    long_rates=(0.1,),
)
PLANS = {plan.name: plan for plan in (FULL, SMALL, TINY)}

Score = Callable[[Outcome], tuple[float, ...]]


def most_accurate(outcome: Outcome) -> tuple[float, ...]:
    """Score a rate: validation accuracy at the end, then validation loss; smaller is better."""
    return -outcome.final("validation"), outcome.loss["validation"][-1]


def both(setting: Setting, seeds: Sequence[int], rates: Sequence[float]) -> list[Setting]:
    """Make the settings of both sides, at every seed and rate."""
    return [
        replace(setting, batch_norm=side, seed=seed, rate=rate)
        for side in SIDES
        for seed in seeds
        for rate in rates
    ]


def chosen(
    results: Results, setting: Setting, rates: Sequence[float], score: Score = most_accurate
) -> Setting:
    """Choose the rate whose training scores best on the validation images of its own seed."""
    return min(
        (replace(setting, rate=rate) for rate in rates), key=lambda each: score(results[each])
    )


def over_seeds(
    results: Results,
    setting: Setting,
    seeds: Sequence[int],
    rates: Sequence[float],
    score: Score = most_accurate,
) -> list[Outcome]:
    """Return the outcomes by seed, each at the best rate of its grid."""
    return [results[chosen(results, replace(setting, seed=s), rates, score)] for s in seeds]


def values(
    results: Results,
    setting: Setting,
    seeds: Sequence[int],
    rates: Sequence[float],
    measure: Callable[[Outcome], float],
    score: Score = most_accurate,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a measure by seed, without and with batch norm."""
    without, with_norm = (
        np.array(
            [
                measure(outcome)
                for outcome in over_seeds(
                    results, replace(setting, batch_norm=side), seeds, rates, score
                )
            ],
            dtype=np.float64,
        )
        for side in SIDES
    )
    return without, with_norm


def at(rate: float) -> str:
    """Write a rate that is the same on both sides."""
    return f"at rate {rate:g}"
