"""Experiment 1: loss and accuracy per step, and the steps to a given accuracy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from bncore.programs.bench.tables import Table
from bncore.programs.study import draw
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import Claim, Comparison, Measure
from bncore.programs.study.plan import NAMES, RATE, SIDES, Plan, at, both, over_seeds, values
from bncore.programs.study.training import Outcome, Setting

TITLE = "Convergence"
TARGET = 0.95
EQUAL = (RATE / 10, RATE)
ABOUT = f"""
How many steps does it take until {TARGET:.0%} of the test images are right? Here the best rate is
the one that gets {TARGET:.0%} of the validation images right first. A training that never gets
there counts as twice its length.
"""
STEPS = Measure(f"steps to {TARGET:.0%}", False, lambda value: f"{value:.0f}", logarithmic=True)


def settings(plan: Plan) -> list[Setting]:
    """Both sides of every network at every rate."""
    return [s for base in bases(plan) for s in both(base, plan.seeds, plan.rates)]


def bases(plan: Plan) -> list[Setting]:
    """One setting for each network."""
    return [Setting(network=network, epochs=plan.epochs) for network in plan.networks]


def soonest(outcome: Outcome) -> tuple[float, ...]:
    """Score a rate by the steps to the target, then by validation loss."""
    return outcome.steps_to(TARGET, "validation"), outcome.loss["validation"][-1]


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge the speed, at the best rate of each side and at equal rates."""
    comparisons = []
    for base in bases(plan):
        name = NAMES[base.network]
        rates = {"at its best rate": plan.rates}
        rates |= {at(rate): (rate,) for rate in EQUAL if rate in plan.rates}
        for how, grid in rates.items():
            pair = values(
                results, base, plan.seeds, grid, lambda o: o.steps_to(TARGET, "test"), soonest
            )
            comparisons.append(Comparison(f"{name}, {how}", STEPS, *pair))
    return [
        Claim(
            "Batch norm makes training converge faster",
            f"fewer steps to {TARGET:.0%} test accuracy",
            comparisons,
        )
    ]


def tables(results: Results, plan: Plan) -> list[Table]:
    """Test accuracy on the way, at the best rates."""
    made = Table(
        "Test accuracy after so many steps, each side at its best rate; mean over seeds", ["side"]
    )
    chosen = list(range(4, 30, 5))
    for base in bases(plan):
        for side in SIDES:
            outcomes = over_seeds(
                results, replace(base, batch_norm=side), plan.seeds, plan.rates, soonest
            )
            steps = outcomes[0].at
            at_points = [i for i in chosen if i < len(steps)]
            made.head = ["side", *(f"{steps[i]}" for i in at_points)]
            mean = np.mean([outcome.accuracy["test"] for outcome in outcomes], axis=0)
            label = f"{NAMES[base.network]}, {draw.SIDES[side]}"
            made.lines.append([label, *(f"{mean[i]:.1%}" for i in at_points)])
    return [made]


def picture(results: Results, plan: Plan) -> Figure:
    """Accuracy on the test images against steps."""
    figure, panels = draw.panels(len(plan.networks), "Convergence: test accuracy")
    rates = (("", (RATE,), ":"), ("best", plan.rates, "-"))
    for panel, base in zip(panels, bases(plan), strict=True):
        for how, choice, style in rates:
            outcomes = [
                over_seeds(results, replace(base, batch_norm=side), plan.seeds, choice, soonest)
                for side in SIDES
            ]
            accuracy = np.array([[o.accuracy["test"] for o in side] for side in outcomes])
            draw.sides(panel, outcomes[0][0].at, accuracy, how, style)
        title = f"{NAMES[base.network]} (dotted: rate {RATE:g}; solid: best)"
        panel.finish(title, "steps", "", log="x")
    return figure
