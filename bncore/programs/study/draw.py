"""Helpers for the pictures of the experiments: colours, and lines with the range over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

COLOURS = ("#d1495b", "#1f6f8b")  # without, with batch norm
SIDES = ("without batch norm", "with batch norm")
STYLES = ("-", "--", ":")
FURTHER = ("#1f6f8b", "#edae49", "#d1495b", "#66a182")  # more than two sides


def panels(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[Any]]:
    """Make a picture of several, with a title above."""
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    return figure, grid


def line(
    axes: Any,
    x: ArrayLike,
    by_seed: Any,
    *,
    label: str,
    colour: str,
    style: str = "-",
) -> None:
    """Draw the mean over seeds, and a band from the smallest to the largest value."""
    values = np.asarray(by_seed, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    whole = ~np.isnan(values).any(axis=0)
    x = np.asarray(x)[whole]
    values = values[:, whole]
    axes.plot(x, values.mean(axis=0), style, color=colour, label=label, linewidth=1.4, marker=".")
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)


def finish(axes: Any, title: str, x: str, y: str, *, log: str = "") -> None:
    """Label a panel; `log` names the axes that are logarithmic."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")


def legend(figure: Figure, axes: Any, columns: int = 4) -> None:
    """Explain the lines of a panel below the picture; the other panels have the same lines."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7)
