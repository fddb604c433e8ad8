"""Turn numbers into a verdict: paired differences over seeds, a test of them, and the rule.

The rule. A comparison pairs the two sides seed by seed, with the same data, initial weights and
batches. Its p is that of the exact two-sided sign-flip test: the share of all ways to swap the two
sides within seeds that give a mean difference at least as large. Holm's procedure compares all p of
a claim with `ALPHA` together. A comparison that passes supports or contradicts the claim, by the
sign of the mean; the others show no difference. A claim is confirmed if all of its comparisons
support it, not confirmed if none does, and otherwise it depends.

References
----------
R. A. Fisher, "The Design of Experiments" (1935), section 21: the sign-flip (randomization) test.
S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
Statistics 6 (1979) 65-70.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bncore.programs.bench.tables import Table

ALPHA = 0.05
CLOSE = 1 + 1e-9  # means that differ only by rounding count as equal


class Verdict(StrEnum):
    """The verdict on a claim."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    DEPENDS = "depends"


class Says(StrEnum):
    """The result of one comparison for a claim."""

    FOR = "yes"
    AGAINST = "the opposite"
    NOTHING = "no difference shown"


def sign_flip_p(difference: NDArray[np.float64]) -> float:
    """Compute the exact two-sided p of the hypothesis that differences are symmetric around 0.

    Examples
    --------
    >>> import numpy as np
    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))  # two of 2**3 sign patterns reach the mean
    0.25
    >>> sign_flip_p(np.zeros(3))
    1.0
    """
    n = len(difference)
    signs = 1 - 2 * ((np.arange(2**n)[:, np.newaxis] >> np.arange(n)) & 1)
    means = np.abs(signs @ difference)
    return float(np.mean(means * CLOSE >= abs(difference.sum())))


def holm(ps: Sequence[float], alpha: float) -> list[bool]:
    """Tell which hypotheses to reject; a true one is rejected with a probability up to `alpha`.

    Examples
    --------
    >>> holm([0.04, 0.01, 0.02], 0.05)
    [True, True, True]
    >>> holm([0.04, 0.01, 0.03], 0.05)
    [False, True, False]
    """
    falls = [False] * len(ps)
    for left, which in zip(range(len(ps), 0, -1), np.argsort(ps, kind="stable"), strict=True):
        if ps[which] > alpha / left:
            break
        falls[which] = True
    return falls


@dataclass(frozen=True)
class Measure:
    """A quantity to compare, and how to write it.

    If it is `logarithmic`, its logarithms are compared and averaged, so differences are factors.
    """

    name: str
    larger_is_better: bool
    write: Callable[[float], str]
    logarithmic: bool = False

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values whose means and differences are computed."""
        return np.log(values) if self.logarithmic else values

    def mean(self, values: NDArray[np.float64]) -> str:
        """Return the arithmetic or geometric mean."""
        mean = float(np.mean(self.scaled(values)))
        return self.write(float(np.exp(mean)) if self.logarithmic else mean)

    def spread(self, values: NDArray[np.float64]) -> str:
        """Mean, and the range over seeds."""
        low, high = (self.write(float(f(values))) for f in (np.min, np.max))
        return f"{self.mean(values)} ({low} to {high})"


ACCURACY = Measure("test accuracy", True, lambda value: f"{value:.1%}")
LOSS = Measure("test loss", False, lambda value: f"{value:.3f}", logarithmic=True)


@dataclass(frozen=True)
class Comparison:
    """One measure on both sides, seed by seed; a claim says that `second` is better."""

    label: str
    measure: Measure
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        """Return by how much the second side is better, seed by seed."""
        gain = self.measure.scaled(self.second) - self.measure.scaled(self.first)
        return gain if self.measure.larger_is_better else -gain

    @property
    def p(self) -> float:
        """P-value of the difference."""
        return sign_flip_p(self.gain)

    def brief(self) -> str:
        """Write the label and both means, the second side first."""
        first, second = self.measure.mean(self.first), self.measure.mean(self.second)
        return f"{self.label}: {second} against {first}"


@dataclass(frozen=True)
class Claim:
    """A claim about batch norm, and the comparisons that test it.

    Parameters
    ----------
    name : str
        The claim in its usual words.
    statement : str
        The claim as a measurable statement, which begins a sentence.
    sides : (str, str)
        The names of the first and second side of the comparisons.
    """

    name: str
    statement: str
    comparisons: Sequence[Comparison]
    sides: tuple[str, str] = ("without", "with batch norm")

    @property
    def says(self) -> list[Says]:
        """The result of each comparison, by the rule at the top of this module."""
        shown = holm([comparison.p for comparison in self.comparisons], ALPHA)
        return [
            (Says.FOR if comparison.gain.mean() > 0 else Says.AGAINST) if differs else Says.NOTHING
            for comparison, differs in zip(self.comparisons, shown, strict=True)
        ]

    @property
    def verdict(self) -> Verdict:
        """The verdict, by the same rule."""
        speak_for = [says is Says.FOR for says in self.says]
        if speak_for and all(speak_for):
            return Verdict.CONFIRMED
        return Verdict.DEPENDS if any(speak_for) else Verdict.NOT_CONFIRMED

    def sentence(self) -> str:
        """Write the verdict in one sentence, with the means of every comparison."""
        parts = []
        for says in Says:
            these = [
                c.brief() for c, s in zip(self.comparisons, self.says, strict=True) if s is says
            ]
            if these:
                count = f"{len(these)} of {len(self.comparisons)}"
                parts.append(f"{says} in {count} comparisons ({'; '.join(these)})")
        return f"**{self.verdict.capitalize()}**: {self.statement}: {', '.join(parts)}."

    def table(self) -> Table:
        """Every comparison with its spread."""
        made = Table(self.name, ["comparison", "measure", *self.sides, "p", "says"])
        for c, says in zip(self.comparisons, self.says, strict=True):
            spreads = (c.measure.spread(values) for values in (c.first, c.second))
            made.lines.append([c.label, c.measure.name, *spreads, f"{c.p:.3f}", str(says)])
        return made
