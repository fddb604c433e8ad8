"""The look of the site's figures: what `bncore.programs.look` sets, before each example."""

from __future__ import annotations

from typing import Any

import matplotlib

from bncore.programs.look import STYLE


def reset(gallery_conf: dict[str, Any], name: str) -> None:
    """Set the style before an example runs."""
    matplotlib.rcdefaults()
    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
