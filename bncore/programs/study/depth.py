"""Experiment 4: depth, and the gradients of the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from bncore.programs.bench.tables import Table
from bncore.programs.study import draw
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import ACCURACY, Claim, Comparison, Measure
from bncore.programs.study.plan import RATE, SIDES, Plan, both, values
from bncore.programs.study.training import Outcome, Setting

TITLE = "Depth"
SCALES = (0.5, 1.0, 2.0)
ABOUT = """
The perceptron has 2 to 20 hidden layers of 100 units. Does it still train, if each side, seed and
depth has its best rate of the grid, by accuracy on the validation images? A second question is
about the very first step: how large is the gradient of the loss with respect to the output of the
first hidden layer, compared with that of the last hidden layer? "Unevenness" is the factor by
which the two differ. It is 1 if gradients neither vanish nor explode on their way down.
"""
UNEVEN = Measure("unevenness", False, lambda value: f"{value:.3g}", logarithmic=True)
GRADIENTS = {
    "signals": "by what a hidden layer passes on",
    "weight_gradients": "by a layer's weights",
}
MOST = 1e30  # the value if a gradient is 0 or not finite


def settings(plan: Plan) -> list[Setting]:
    """List both sides at every depth and rate, and first steps, also at other scales."""
    trained = [
        s for depth in plan.depths for s in both(base(plan, depth), plan.seeds, plan.few_rates)
    ]
    return trained + [s for scale in SCALES for s in both(first(plan, scale), plan.seeds, (RATE,))]


def base(plan: Plan, depth: int) -> Setting:
    """Return the setting of one depth."""
    return Setting(depth=depth, epochs=plan.short, points=1)


def first(plan: Plan, scale: float) -> Setting:
    """Return the setting whose first gradients are compared."""
    return Setting(depth=max(plan.depths), scale=scale, epochs=1, points=1)


def unevenness(outcome: Outcome) -> float:
    """Return the ratio of the gradients of the first and last hidden outputs, or its inverse."""
    head, tail = outcome.signals[0], outcome.signals[-1]
    if not (0 < head < np.inf and 0 < tail < np.inf):
        return MOST
    return min(max(head / tail, tail / head), MOST)


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge the accuracy by depth, and the gradients of the deepest network."""
    accuracies = [
        Comparison(
            f"{depth} layers",
            ACCURACY,
            *values(results, base(plan, depth), plan.seeds, plan.few_rates, final),
        )
        for depth in plan.depths
    ]
    gradients = [
        Comparison(
            f"initial weights × {scale:g}",
            UNEVEN,
            *values(results, first(plan, scale), plan.seeds, (RATE,), unevenness),
        )
        for scale in SCALES
    ]
    return [
        Claim(
            "Batch norm makes deep networks trainable",
            "higher test accuracy at each depth, each side at its best rate",
            accuracies,
        ),
        Claim(
            "Batch norm keeps gradients from vanishing and exploding",
            f"less uneven gradients through {max(plan.depths)} layers at the start",
            gradients,
        ),
    ]


def final(outcome: Outcome) -> float:
    """Test accuracy at the end."""
    return outcome.final("test")


def tables(results: Results, plan: Plan) -> list[Table]:
    """Norms of the gradients by layer."""
    deepest = max(plan.depths)
    layers = [layer for layer in (1, 2, 5, 10, 15, 20) if layer <= deepest]
    made = []
    for what, title in GRADIENTS.items():
        heads = [f"layer {layer}" for layer in layers]
        table = Table(
            f"Norm of the gradient {title}, first step, {deepest} layers; geometric mean",
            ["side, factor of the initial weights", *heads],
        )
        for scale in SCALES:
            for side in SIDES:
                norms = np.maximum(first_norms(results, plan, scale, side, what), 1 / MOST)
                mean = np.exp(np.log(norms).mean(axis=0))
                cells = [f"{mean[layer - 1]:.2g}" for layer in layers]
                table.lines.append([f"{draw.SIDES[side]}, × {scale:g}", *cells])
        made.append(table)
    return made


def first_norms(results: Results, plan: Plan, scale: float, side: bool, what: str) -> np.ndarray:
    """Gradient norms of the deepest network at the start, (seed, layer)."""
    setting = replace(first(plan, scale), rate=RATE, batch_norm=side)
    outcomes = (results[replace(setting, seed=seed)] for seed in plan.seeds)
    return np.array([getattr(outcome, what) for outcome in outcomes])


def picture(results: Results, plan: Plan) -> Figure:
    """Accuracy by depth; gradients by layer."""
    figure, (accuracy, gradients) = draw.panels(2, "Depth")
    for how, rates, style in (("", (RATE,), ":"), ("best", tuple(plan.few_rates), "-")):
        draw.sides(accuracy, plan.depths, by_side(results, plan, rates, final), how, style)
    title = f"test accuracy (dotted: rate {RATE:g}; solid: best)"
    accuracy.finish(title, "hidden layers", "")
    what, title = next(iter(GRADIENTS.items()))
    for scale, style in zip(SCALES, draw.STYLES, strict=True):
        for side in SIDES:
            norms = first_norms(results, plan, scale, side, what)
            plain = f"without, × {scale:g}"
            name = plain if not side else draw.SHORT[1] if scale == 1 else ""
            gradients.line(
                np.arange(1, norms.shape[1] + 1), norms,
                name=name, colour=draw.COLOURS[side], style=style,
            )  # fmt: skip
    title = f"gradient {title}, first step,\nwith initial weights × " + ", ".join(
        f"{scale:g}" for scale in SCALES
    )
    gradients.finish(title, "layer", "", log="y")
    return figure


def by_side(
    results: Results, plan: Plan, rates: tuple[float, ...], measure: Callable[[Outcome], float]
) -> np.ndarray:
    """Return a measure as an array: side, seed, depth."""
    columns = [
        values(results, base(plan, depth), plan.seeds, rates, measure) for depth in plan.depths
    ]
    return np.array(columns).transpose(1, 2, 0)
