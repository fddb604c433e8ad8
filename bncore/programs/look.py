"""How every picture of the project looks: each colour has one meaning, and lines have their names.

A picture is as wide as a phone shows it, with letters that can be read there.  It has few lines,
and a line's name stands at its end in its colour, so that there is no legend to look up.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

OWN = "#12708f"  # bncore, and networks with batch norm
PLAIN = "#6b6b6b"  # the formula in NumPy, and networks without batch norm
PYTORCH = "#c8382e"
ONEDNN = "#d98a00"
OTHER = "#7a4f9a"  # a third thing, where there is one
INK = "#222222"
FAINT = "#d8d8d8"

WIDTH = 5.0  # inches; a phone shows such a picture at about four fifths of its size
DPI = 160
STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "figure.figsize": (WIDTH, 3.4),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": FAINT,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def figure(
    rows: int = 1, columns: int = 1, height: float = 3.4, **shared: Any
) -> tuple[Figure, Any]:
    """Make a picture and its panels, an array of (rows, columns); `height` is that of a row."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        made = Figure(figsize=(WIDTH if columns == 1 else 4.0 * columns, height * rows))
        return made, made.subplots(rows, columns, squeeze=False, **shared)


def save(made: Figure, path: Path) -> None:
    """Write a picture with few colours, which makes the file a third of the size."""
    from matplotlib import rc_context

    whole = BytesIO()
    with rc_context(STYLE):
        made.savefig(whole, dpi=DPI, facecolor="white")
    Image.open(whole).convert("RGB").quantize(64).save(path, optimize=True)


def describe(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """Write a panel's title and what its axes are; the name of y stands above it, not beside it."""
    axes.set_title("\n".join(filter(None, (title, y))), loc="left", fontsize=10)
    axes.set_xlabel(x)


def head(made: Figure, title: str) -> None:
    """Write the title of a picture, from its left edge."""
    made.suptitle(title, x=0.015, ha="left", fontsize=11.5, fontweight="bold")


def names_at_ends(
    axes: Any, lines: Sequence[tuple[str, str, ArrayLike, ArrayLike]], *, room: float = 0.3
) -> None:
    """Write the name of each line behind its last point, moved apart where two would overlap.

    Parameters
    ----------
    axes : Axes
        With its limits and scales set; they are widened to the right.
    lines : sequence of (name, colour, x, y)
        What was drawn.
    room : float
        The share of the panel's width that the names take.
    """
    import numpy as np

    placed = []
    for name, colour, x, y in lines:
        xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
        known = np.flatnonzero(np.isfinite(ys))
        if known.size:
            placed.append((name, colour, xs[known[-1]], ys[known[-1]]))
    if not placed:
        return
    shown = axes.transAxes.inverted()
    heights = [shown.transform(axes.transData.transform((x, y)))[1] for _, _, x, y in placed]
    inches = axes.get_position().height * axes.figure.get_figheight()
    apart = 0.19 / max(inches, 0.5)
    order = sorted(range(len(placed)), key=heights.__getitem__)
    for lower, upper in pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + apart)
    over = max(0.0, heights[order[-1]] - 1.0)
    for number, (name, colour, *_) in enumerate(placed):
        axes.text(
            1.02, heights[number] - over, name, color=colour, transform=axes.transAxes,
            va="center", ha="left", fontsize=9.5, fontweight="bold",
        )  # fmt: skip
