"""Experiment 2: the learning rates at which training still works."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from bncore.programs.bench.tables import Table
from bncore.programs.study import draw
from bncore.programs.study.convergence import bases, settings
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import Claim, Comparison, Measure
from bncore.programs.study.plan import NAMES, SIDES, Plan, values
from bncore.programs.study.training import Outcome, trains

TITLE = "Learning rates"
ABOUT = """
At which rates does training still work? A training counts if at least 90 % of the test images are
right at its end.
"""
COUNT = Measure("rates that train", True, lambda value: f"{value:.1f}")
LARGEST = Measure("largest rate that trains", True, lambda value: f"{value:.3g}", logarithmic=True)

__all__ = ["ABOUT", "TITLE", "claims", "picture", "settings", "tables"]


def by_rate(
    results: Results, plan: Plan, network: int, measure: Callable[[Outcome], float]
) -> np.ndarray:
    """Return a measure as an array: side, seed, rate."""
    base = bases(plan)[network]
    columns = [values(results, base, plan.seeds, (rate,), measure) for rate in plan.rates]
    return np.array(columns).transpose(1, 2, 0)


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge how many rates train, and the largest."""
    comparisons = []
    rates = np.array(plan.rates)
    for i, network in enumerate(plan.networks):
        works = by_rate(results, plan, i, trains) > 0
        comparisons.append(
            Comparison(f"{NAMES[network]}, how many", COUNT, *works.sum(axis=-1).astype(float))
        )
        # If none trains, use a tenth of the smallest rate.
        largest = np.where(works, rates, rates.min() / 10).max(axis=-1)
        comparisons.append(Comparison(f"{NAMES[network]}, the largest", LARGEST, *largest))
    return [
        Claim(
            "Batch norm makes training stable: it allows more and larger learning rates",
            f"more of the {len(rates)} rates train, and larger ones",
            comparisons,
        )
    ]


def tables(results: Results, plan: Plan) -> list[Table]:
    """Test accuracy, and how many seeds train, by rate."""
    head = ["side", *(f"{rate:g}" for rate in plan.rates)]
    made = Table("Mean test accuracy at the end, and how many seeds train, by rate", head)
    for i, network in enumerate(plan.networks):
        accuracy = by_rate(results, plan, i, lambda o: o.final("test"))
        works = by_rate(results, plan, i, trains)
        for side in SIDES:
            cells = [
                f"{accuracy[int(side), :, j].mean():.1%}, {works[int(side), :, j].sum():.0f}"
                for j in range(len(plan.rates))
            ]
            made.lines.append([f"{NAMES[network]}, {draw.SIDES[side]}", *cells])
    return [made]


def picture(results: Results, plan: Plan) -> Figure:
    """Test accuracy against the rate."""
    figure, panels = draw.panels(len(plan.networks), "Learning rates: test accuracy at the end")
    for i, (panel, network) in enumerate(zip(panels, plan.networks, strict=True)):
        accuracy = by_rate(results, plan, i, lambda o: o.final("test"))
        draw.sides(panel, plan.rates, accuracy)
        panel.finish(NAMES[network], "learning rate", "", log="x")
    return figure
