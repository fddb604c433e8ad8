"""What a run comes to, in three sentences: how fast, where not, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bncore.programs.bench.cases import OUTPUTS
from bncore.programs.bench.results import Results, geometric_mean
from bncore.programs.bench.tables import BNCORE, Compared, comparisons

NAMED = 3  # so many peers are named, in the order of the registry
SHORT = ("PyTorch", "oneDNN", "NumPy formula", "ONNX Runtime", "JAX", "torch.compile")


def sentences(results: Results) -> list[str]:
    """Return the three sentences.

    Parameters
    ----------
    results : Results
        Of any run.

    Returns
    -------
    list of str
        How many times bncore's time the others take, where bncore is the slower one, and how
        exact the results and how steady the times are.
    """
    compared = comparisons(results.rows)
    return [_speed(compared), _behind(compared), _trust(results)]


def _speed(compared: Sequence[Compared]) -> str:
    ratios: dict[str, list[float]] = {}
    for one in compared:
        if one.case.output == OUTPUTS[0]:
            ratios.setdefault(one.peer, []).append(one.ratio)
    first, *others = [name for name in SHORT if name in ratios][:NAMED] or [""]
    if not first:
        return "No other library was timed, so there is nothing to compare bncore with."
    means = {name: geometric_mean(ratios[name]) for name in (first, *others)}
    said = [f"{first} takes {means[first]:.1f} times bncore's time"]
    said += [f"{name} {means[name]:.1f}" for name in others]
    return f"On average over shapes and operations, {_listed(said)}."


def _listed(parts: Sequence[str]) -> str:
    """Write a list in words."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _behind(compared: Sequence[Compared]) -> str:
    behind = [one for one in compared if one.ratio < 1]
    if not behind:
        return f"bncore is the slower one in none of {len(compared)} comparisons."
    worst = behind[0]
    return (
        f"bncore is the slower one in {len(behind)} of {len(compared)} comparisons, and most "
        f"clearly against {worst.peer} in {worst.where}, which takes {worst.ratio:.2f} times "
        "bncore's time."
    )


def _trust(results: Results) -> str:
    own = [row for row in results.rows if row.peer == BNCORE and not row.refused]
    if not own:
        return "bncore itself was not timed."
    worst = max(row.ulp for row in own)
    half = median((row.high - row.low) / 2 / row.median for row in own)
    load = results.machine.get("load", "an unknown number of processes running before")
    return (
        f"Every result was checked before it was timed, bncore's to within {worst:.1f} ulp, and "
        f"its times vary by {half:.0%} around their medians, with {load}: smaller differences "
        "are noise."
    )
