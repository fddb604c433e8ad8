"""Experiment 3: the scale of the initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from bncore.programs.bench.tables import Table
from bncore.programs.study import draw
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import Claim, Comparison, Measure
from bncore.programs.study.plan import NAMES, RATE, SIDES, Plan, at, both, values
from bncore.programs.study.training import Outcome, Setting, trains

TITLE = "Initial weights"
ABOUT = """
He's rule sets the scale of the initial weights. Here all of them, the last layer's included, are
multiplied by a factor. With which factors does training still reach 90 % test accuracy? The study
answers this at one rate for both sides, and with each side, seed and factor at its best rate, by
accuracy on the validation images.
"""
COUNT = Measure("factors that train", True, lambda value: f"{value:.1f}")


def bases(plan: Plan) -> list[Setting]:
    """One setting for each network."""
    return [Setting(network=network, epochs=plan.short, points=1) for network in plan.networks]


def settings(plan: Plan) -> list[Setting]:
    """List both sides of every network at every factor and rate."""
    return [
        s
        for base in bases(plan)
        for scale in plan.scales
        for s in both(replace(base, scale=scale), plan.seeds, plan.few_rates)
    ]


def grids(plan: Plan) -> dict[str, Sequence[float]]:
    """Return the ways to choose a rate: one rate for both sides, or the best of a grid."""
    return {at(RATE): (RATE,), "at its best rate": plan.few_rates}


def by_scale(
    results: Results,
    plan: Plan,
    base: Setting,
    rates: Sequence[float],
    measure: Callable[[Outcome], float],
) -> np.ndarray:
    """Return a measure as an array: side, seed, factor."""
    columns = [
        values(results, replace(base, scale=scale), plan.seeds, rates, measure)
        for scale in plan.scales
    ]
    return np.array(columns).transpose(1, 2, 0)


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge how many factors train."""
    comparisons = []
    for base in bases(plan):
        for how, rates in grids(plan).items():
            works = by_scale(results, plan, base, rates, trains).sum(axis=-1)
            comparisons.append(Comparison(f"{NAMES[base.network]}, {how}", COUNT, *works))
    return [
        Claim(
            "Batch norm makes training less sensitive to the initial weights",
            f"more of the {len(plan.scales)} factors of the initial weights train",
            comparisons,
        )
    ]


def tables(results: Results, plan: Plan) -> list[Table]:
    """Test accuracy by factor."""
    head = ["side", *(f"{scale:g}" for scale in plan.scales)]
    made = Table("Mean test accuracy at the end, by factor of the initial weights", head)
    for base in bases(plan):
        for how, rates in grids(plan).items():
            accuracy = by_scale(results, plan, base, rates, lambda o: o.final("test"))
            for side in SIDES:
                mean = accuracy[int(side)].mean(axis=0)
                label = f"{NAMES[base.network]}, {draw.SIDES[side]}, {how}"
                made.lines.append([label, *(f"{value:.1%}" for value in mean)])
    return [made]


def picture(results: Results, plan: Plan) -> Figure:
    """Test accuracy against the factor."""
    figure, panels = draw.panels(len(plan.networks), "Initial weights: test accuracy at the end")
    for panel, base in zip(panels, bases(plan), strict=True):
        for rates, style in zip(grids(plan).values(), draw.STYLES[:2], strict=True):
            accuracy = by_scale(results, plan, base, rates, lambda o: o.final("test"))
            draw.sides(panel, plan.scales, accuracy, "" if rates == (RATE,) else "best", style)
        title = f"{NAMES[base.network]} (dotted: rate {RATE:g}; solid: best)"
        panel.finish(title, "factor of He's scale", "", log="x")
    return figure
