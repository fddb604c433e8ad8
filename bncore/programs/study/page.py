"""The report: `README.md` and pictures, written from results alone."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import bncore
from bncore.programs.bench.tables import Table
from bncore.programs.look import save
from bncore.programs.study import (
    batches,
    convergence,
    data,
    depth,
    generalization,
    judge,
    networks,
    rates,
    scales,
)
from bncore.programs.study.execute import Results
from bncore.programs.study.judge import Claim
from bncore.programs.study.plan import RATE, Plan
from bncore.programs.study.training import Setting

EXPERIMENTS: Sequence[ModuleType] = (convergence, rates, scales, depth, batches, generalization)
INTRODUCTION = """
`make study` writes this page, so do not edit it. The verdicts follow from the numbers by the rule
below, which [bncore/programs/study/judge.py](../../bncore/programs/study/judge.py) implements.
"""
PACKAGES = ("numpy", "scipy", "scikit-learn", "matplotlib")


def settings(plan: Plan) -> list[Setting]:
    """Return all trainings of a plan, those of several experiments once."""
    return sorted({s for experiment in EXPERIMENTS for s in experiment.settings(plan)})


def claims(results: Results, plan: Plan) -> list[Claim]:
    """Return the claims of all experiments, judged."""
    return [claim for experiment in EXPERIMENTS for claim in experiment.claims(results, plan)]


def summary(judged: Sequence[Claim]) -> Table:
    """Every claim and its verdict, and how many of its comparisons say what."""
    made = Table("Claims about batch norm", ["claim", "verdict", *judge.Says])
    for claim in judged:
        counts = [claim.says.count(says) for says in judge.Says]
        made.lines.append([claim.name, str(claim.verdict), *map(str, counts)])
    return made


def write(results: Results, plan: Plan, folder: Path) -> None:
    """Write the page and its pictures into a folder, which is made where it is absent.

    Parameters
    ----------
    results : Results
        Of all of the plan's settings.
    plan : Plan
    folder : Path
        Gets `README.md` and `images/`.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for experiment in EXPERIMENTS:
        save(experiment.picture(results, plan), images / f"{name(experiment)}.png")
    (folder / "README.md").write_text("\n\n".join(page(results, plan)) + "\n", encoding="utf-8")


def name(experiment: ModuleType) -> str:
    """Return the last part of a module's name."""
    return experiment.__name__.rpartition(".")[2]


def page(results: Results, plan: Plan) -> Iterator[str]:
    """Yield the page, paragraph by paragraph."""
    yield "# What batch norm does to training, measured"
    yield INTRODUCTION.strip()
    yield summary(claims(results, plan)).markdown()
    yield from method(plan, len(results))
    for experiment in EXPERIMENTS:
        yield f"## {experiment.TITLE}"
        yield experiment.ABOUT.strip()
        judged = experiment.claims(results, plan)
        for claim in judged:
            yield f"*{claim.name}.* {claim.sentence()}"
        yield f"![{experiment.TITLE}](images/{name(experiment)}.png)"
        for table in [*(claim.table() for claim in judged), *experiment.tables(results, plan)]:
            yield f"<details><summary>{table.title}</summary>"
            yield table.markdown()
            yield "</details>"
    yield "## Limits"
    yield LIMITS.strip()


def method(plan: Plan, trainings: int) -> Iterator[str]:
    """Yield the settings, the rule and the versions."""
    cut = data.split(plan.seeds[0])
    yield "## How it was measured"
    yield METHOD.strip().format(
        sizes=" / ".join(str(len(part)) for part in (cut.train, cut.validation, cut.test)),
        width=networks.WIDTH,
        filters=", ".join(map(str, networks.FILTERS)),
        batch=Setting().batch,
        rate=RATE,
        epochs=plan.epochs,
        short=plan.short,
        long=plan.long,
        seeds=seeds(plan),
        rates=listed(plan.rates),
        few_rates=listed(plan.few_rates),
        long_rates=listed(plan.long_rates),
    )
    yield RULE.strip().format(
        alpha=judge.ALPHA, seeds=len(plan.seeds), smallest=2.0 ** (1 - len(plan.seeds))
    )
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    yield (
        f"**Versions.** {trainings:,} trainings, seeds {seeds(plan)}; "
        f"Python {platform.python_version()}, bncore {bncore.__version__}, {versions}, on "
        f"{platform.machine()}. On one machine with these versions, the same seeds give the same "
        "numbers. Another BLAS rounds differently, and trainings then differ as they do between "
        "seeds."
    )


def listed(rates: Sequence[float]) -> str:
    """Write a grid."""
    return ", ".join(f"{rate:g}" for rate in rates)


def seeds(plan: Plan) -> str:
    """Write the seeds."""
    return f"{plan.seeds[0]} to {plan.seeds[-1]}"


METHOD = """
- **Data**: the 1,797 handwritten digits of scikit-learn, 8 × 8 pixels. Each seed splits them anew
  into {sizes} images: to train, to choose the learning rate, and to test. For both sides, the
  mean of all training pixels is subtracted, and the result is divided by their standard
  deviation.
- **Networks**, in NumPy with `bncore.BatchNorm`: a perceptron with three hidden layers of {width}
  units, and a convolutional network with three 3 × 3 layers ({filters} filters), each with 2 × 2
  max pooling, and a linear layer. Batch norm stands between a hidden layer and its ReLU. The
  networks compute in float32.
- **Training**: plain stochastic gradient descent at a constant rate, without momentum or weight
  decay, from He's initialization, with batches of {batch}, for {epochs} epochs ({short} where
  initial weights, depth or batch size vary, {long} with augmentation).
- **Fairness**: the seeds are {seeds}. At each seed both sides have the same split, initial
  weights, batches and augmented images. "At its best rate" means that each side takes, at every
  seed, the rate of one grid that does best on its validation images. The result is measured on
  the test images, on which no choice depends. "At rate {rate:g}" means that both sides take this
  rate.
- **Grids**: {rates} for convergence, rates and generalization; {few_rates} where initial weights,
  depth or batch size vary; {long_rates} with augmentation.
- **Evaluation** uses the running statistics of the layer (momentum 0.1), unless the text says
  otherwise.
"""

RULE = """
**The rule.** A comparison pairs the two sides seed by seed. Its p is that of the exact two-sided
sign-flip test, which is at least {smallest:.2g} with {seeds} seeds. Holm's procedure compares all
p of a claim with {alpha:g} together: if there were no differences, a claim would show one with a
probability of at most {alpha:.0%}. If a difference is shown, the comparison says "yes" or "the
opposite", by the sign of the mean difference. Otherwise it says "no difference shown", which does
not mean that there is none. A claim is confirmed if all its comparisons say yes, not confirmed if
none does, and otherwise it depends. Brackets contain the range over the seeds.
"""

LIMITS = """
The images and networks are small, the trainings are short, and the method is plain gradient
descent. Large networks, schedules, momentum or Adam may give other results. If the p of a
comparison is close to its bound, another machine may give the other verdict. The count of steps
does not include that a step with batch norm takes longer. The study does not ask why a difference
arises; for that, see the sources in [batch-norm.md](../batch-norm.md).
"""
