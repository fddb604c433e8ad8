"""The look of the figures that the site draws, and the study's verdicts beside them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

from bncore.programs.look import STYLE


def reset(gallery_conf: dict[str, Any], name: str) -> None:
    """Set the style before an example runs."""
    matplotlib.rcdefaults()
    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)


def verdict(claim: str) -> str:
    """Return what the study says about a claim, from the page that `make study` wrote."""
    page = (Path(__file__).resolve().parents[1] / "study" / "README.md").read_text("utf-8")
    found = re.search(rf"^\*{re.escape(claim)}\.\* \*\*(.*?)\*\*: (.*)$", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"claim: expected one of the study's, got {claim!r}")
    said = f"{claim}: {found[1].upper()}. In the study: {found[2]}"
    return textwrap.fill(said, 88)
