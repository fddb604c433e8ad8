"""Helpers for the pictures of the experiments: lines with the range over seeds, and their names."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bncore.programs import look

COLOURS = (look.PLAIN, look.OWN)  # without, with batch norm
SIDES = ("without batch norm", "with batch norm")
SHORT = ("without", "with batch norm")  # at the end of a line
STYLES = (":", "-", "--")


class Panel:
    """One panel of a picture, which remembers its lines until their names are written.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.lines: list[tuple[str, str, ArrayLike, ArrayLike]] = []

    def line(self, x: ArrayLike, by_seed: Any, *, name: str, colour: str, style: str = "-") -> None:
        """Draw the mean over seeds, and a band from the smallest to the largest value.

        A line with an empty name has none.
        """
        values = np.asarray(by_seed, dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        whole = ~np.isnan(values).any(axis=0)
        x = np.asarray(x)[whole]
        values = values[:, whole]
        mean = values.mean(axis=0)
        self.axes.plot(x, mean, style, color=colour, marker="o", markersize=3.5)
        low, high = values.min(axis=0), values.max(axis=0)
        self.axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        if name:
            self.lines.append((name, colour, x, mean))

    def finish(self, title: str, x: str, y: str, *, log: str = "") -> None:
        """Write what the panel shows; `log` names the axes that are logarithmic."""
        if "x" in log:
            self.axes.set_xscale("log")
        if "y" in log:
            self.axes.set_yscale("log")
        self.axes.grid(axis="y", color=look.FAINT)
        look.describe(self.axes, title, x, y)
        look.names_at_ends(self.axes, self.lines)


def panels(count: int, title: str, height: float = 2.7) -> tuple[Figure, list[Panel]]:
    """Make a picture of some panels, one below the other, with a title above."""
    figure, grid = look.figure(rows=count, height=height)
    look.head(figure, title)
    return figure, [Panel(axes) for axes in grid[:, 0]]


def sides(
    panel: Panel, x: ArrayLike, pair: NDArray[np.float64], how: str = "", style: str = "-"
) -> None:
    """Draw a line for each side: `pair` is (side, seed, place)."""
    for colour, name, by_seed in zip(COLOURS, SHORT, pair, strict=True):
        panel.line(x, by_seed, name=name + (f", {how}" if how else ""), colour=colour, style=style)
