"""Experiment 5: the batch size, and the statistics that are used in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bncore.programs import look
from bncore.programs.bench.tables import Table
from bncore.programs.study import draw
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import ACCURACY, LOSS, Claim, Comparison
from bncore.programs.study.networks import AVERAGES
from bncore.programs.study.plan import RATE, Plan, both, values
from bncore.programs.study.training import Setting

TITLE = "Batch size, and statistics in evaluation"
EARLY = 10  # steps
WORST = 100.0  # larger losses, also infinity, count as this
ABOUT = f"""
The perceptron is trained at batch sizes from 2, for the same number of epochs, so that small
batches take more steps. Each side, seed and size has its best rate of the grid, by accuracy on
the validation images.

Then, with batch norm and at rate {RATE:g} for all, the same trained weights are evaluated with
different statistics. These are running averages (moving, with momentum 0.1; cumulative, where all
batches have the same weight; debiased, a moving average without the initial 0 and 1), the exact
statistics of the whole training part under the present weights (`bncore.recalibrate`), and the
statistics of the test batch itself, in batches of the same size, which training uses.
"""
KINDS = {
    "moving": "moving average",
    "cumulative": "cumulative average",
    "debiased": "debiased average",
    "population": "population",
    "batch": "the batch itself",
}
# Those that are compared with the population's statistics.
COLOURS = {
    "moving": look.PLAIN,
    "debiased": look.OWN,
    "cumulative": look.OTHER,
    "batch": look.ONEDNN,
}


def base(plan: Plan, batch: int) -> Setting:
    """Return the setting of one batch size."""
    return Setting(batch=batch, epochs=plan.short, points=1)


def kept(plan: Plan, batch: int, average: str) -> Setting:
    """Return the setting of one way to keep running statistics."""
    whole = average == "moving"
    return Setting(
        batch=batch, epochs=plan.short, rate=RATE, average=average, every_statistic=whole
    )


def settings(plan: Plan) -> list[Setting]:
    """List both sides at every size and rate, and every average at every size."""
    trained = [
        s for batch in plan.batches for s in both(base(plan, batch), plan.seeds, plan.few_rates)
    ]
    return trained + [
        replace(kept(plan, batch, average), seed=seed)
        for batch in plan.batches
        for average in AVERAGES
        for seed in plan.seeds
    ]


def losses(results: Results, plan: Plan, batch: int, kind: str) -> NDArray[np.float64]:
    """Return the test loss with one kind of statistics: (seed, evaluation)."""
    setting = kept(plan, batch, kind if kind in AVERAGES else "moving")
    part = "test" if kind in AVERAGES else kind
    by_seed = [results[replace(setting, seed=seed)].loss[part] for seed in plan.seeds]
    return np.minimum(np.array(by_seed, dtype=np.float64), WORST)


def early(results: Results, plan: Plan, batch: int) -> int:
    """Find the last evaluation within the first steps."""
    at = results[replace(kept(plan, batch, "moving"), seed=plan.seeds[0])].at
    return int(np.searchsorted(at, EARLY, side="right")) - 1


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Judge the accuracy by batch size, and the statistics."""
    accuracy = [
        Comparison(
            f"batch {batch}",
            ACCURACY,
            *values(
                results,
                base(plan, batch),
                plan.seeds,
                plan.few_rates,
                lambda outcome: outcome.final("test"),
            ),
        )
        for batch in plan.batches
    ]

    def compared(first: str, second: str, when: Callable[[int], int]) -> list[Comparison]:
        return [
            Comparison(
                f"batch {batch}",
                LOSS,
                *(losses(results, plan, batch, kind)[:, when(batch)] for kind in (first, second)),
            )
            for batch in plan.batches
        ]

    return [
        Claim(
            "Batch norm helps whatever the batch size",
            "higher test accuracy at each batch size, each side at its best rate",
            accuracy,
        ),
        Claim(
            "Exact population statistics evaluate better than the moving average",
            "lower test loss at the end",
            compared("moving", "population", lambda batch: -1),
            (KINDS["moving"], KINDS["population"]),
        ),
        Claim(
            "Keeping the initial values out of the moving average helps early in training",
            f"lower test loss after {EARLY} steps or the last evaluation before",
            compared("moving", "debiased", lambda batch: early(results, plan, batch)),
            (KINDS["moving"], KINDS["debiased"]),
        ),
    ]


def tables(results: Results, plan: Plan) -> list[Table]:
    """Test loss by statistics and batch size, at the end and early."""
    head = ["statistics", *(f"batch {batch}" for batch in plan.batches)]
    end = Table("Test loss at the end, by the statistics that evaluate; geometric mean", head)
    begin = Table(f"The same after {EARLY} steps or the last evaluation before", head)
    for kind, name in KINDS.items():
        by_batch = {batch: losses(results, plan, batch, kind) for batch in plan.batches}
        end.lines.append([name, *(LOSS.mean(v[:, -1]) for v in by_batch.values())])
        begin.lines.append(
            [name, *(LOSS.mean(v[:, early(results, plan, b)]) for b, v in by_batch.items())]
        )
    return [end, begin]


def picture(results: Results, plan: Plan) -> Figure:
    """Accuracy by batch size; loss by statistics, against steps and against the size."""
    figure, (sizes, steps, end) = draw.panels(3, "Batch size, and statistics in evaluation")
    pairs = [
        values(results, base(plan, b), plan.seeds, plan.few_rates, lambda o: o.final("test"))
        for b in plan.batches
    ]
    draw.sides(sizes, plan.batches, np.array(pairs).transpose(1, 2, 0))
    sizes.finish("test accuracy, each side at its best rate", "batch size", "", log="x")
    middle = plan.batches[len(plan.batches) // 2]
    at = results[replace(kept(plan, middle, "moving"), seed=plan.seeds[0])].at
    for kind, colour in COLOURS.items():
        by_batch = {
            batch: losses(results, plan, batch, kind) / losses(results, plan, batch, "population")
            for batch in plan.batches
        }
        name = KINDS[kind].removesuffix(" average")
        steps.line(at, by_batch[middle], name=name, colour=colour)
        last = np.array([ratio[:, -1] for ratio in by_batch.values()]).T
        end.line(plan.batches, last, name=name, colour=colour)
    ratio = "test loss, in times of that with exact statistics"
    steps.finish(f"{ratio},\non the way, batches of {middle}", "steps", "", log="x")
    end.finish(f"{ratio},\nat the end", "batch size", "", log="xy")
    return figure
