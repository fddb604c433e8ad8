"""Experiment 6: accuracy on images that were not trained on, with and without augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from bncore.programs import look
from bncore.programs.bench.tables import Table
from bncore.programs.study import convergence, data, draw
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import ACCURACY, Claim, Comparison
from bncore.programs.study.plan import NAMES, RATE, SIDES, Plan, at, both, chosen, values
from bncore.programs.study.training import Setting

TITLE = "Generalization"
ABOUT = f"""
This is the test accuracy at the end of training, with the images as they are, and with every
training image shifted by up to {data.SHIFT:g} pixel and turned by up to {data.TURN:g}°, anew each
time. The best rate is the one with the highest accuracy on the validation images.
"""
KINDS = {False: "as they are", True: "augmented"}


def bases(plan: Plan) -> list[tuple[Setting, Sequence[float]]]:
    """One setting and its grid of rates for each network, without and with augmentation."""
    plain = [(base, plan.rates) for base in convergence.bases(plan)]
    augmented = [
        (replace(base, augment=True, epochs=plan.long, points=1), plan.long_rates)
        for base, _ in plain
    ]
    return plain + augmented


def settings(plan: Plan) -> list[Setting]:
    """List both sides of every network, without and with augmentation, at every rate."""
    return [s for base, rates in bases(plan) for s in both(base, plan.seeds, rates)]


def named(setting: Setting) -> str:
    """Return the name of a network and its images."""
    return f"{NAMES[setting.network]}, images {KINDS[setting.augment]}"


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge the accuracy on the test images."""
    comparisons = []
    for base, rates in bases(plan):
        for how, grid in (("at its best rate", rates), (at(RATE), (RATE,))):
            pair = values(results, base, plan.seeds, grid, lambda o: o.final("test"))
            comparisons.append(Comparison(f"{named(base)}, {how}", ACCURACY, *pair))
    return [
        Claim("Batch norm makes networks generalize better", "higher test accuracy", comparisons)
    ]


def tables(results: Results, plan: Plan) -> list[Table]:
    """Count how often each rate was chosen."""
    every = sorted({rate for _, rates in bases(plan) for rate in rates})
    made = Table("How many seeds chose each rate", ["side", *(f"{rate:g}" for rate in every)])
    for base, rates in bases(plan):
        for side in SIDES:
            setting = replace(base, batch_norm=side)
            picks = [chosen(results, replace(setting, seed=s), rates).rate for s in plan.seeds]
            cells = [str(picks.count(rate)) if rate in rates else "" for rate in every]
            made.lines.append([f"{named(base)}, {draw.SIDES[side]}", *cells])
    return [made]


def picture(results: Results, plan: Plan) -> Figure:
    """Draw the test accuracy of every seed, a row for each network and kind of images."""
    height = 1.0 + 0.75 * len(bases(plan))
    figure, (panel,) = draw.panels(1, "Generalization: test accuracy at the best rate", height)
    axes = panel.axes
    for place, (base, rates) in enumerate(bases(plan)):
        pair = values(results, base, plan.seeds, rates, lambda o: o.final("test"))
        for side, accuracy in zip(SIDES, pair, strict=True):
            y = place + (0.16 if side else -0.16)
            colour = draw.COLOURS[side]
            axes.plot(accuracy, [y] * len(accuracy), "o", color=colour, markersize=4, alpha=0.5)
            axes.plot([accuracy.mean()] * 2, [y - 0.13, y + 0.13], color=colour, linewidth=3)
            name = f" {draw.SHORT[side]}" if place == 0 else ""
            axes.annotate(
                f"{accuracy.mean():.1%}{name}", (1.01, y), color=colour, va="center",
                xycoords=axes.get_yaxis_transform(), fontsize=9.5, fontweight="bold",
            )  # fmt: skip
    axes.set_yticks(
        range(len(bases(plan))), [named(base).replace(", ", ",\n") for base, _ in bases(plan)]
    )
    axes.set_ylim(len(bases(plan)) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=look.FAINT)
    look.describe(axes, x="a dot is a seed, a line is the mean")
    return figure
