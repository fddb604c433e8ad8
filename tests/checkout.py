"""The checkout that the tests belong to, a compiler and a clean environment."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "CC", "CFLAGS", "LDFLAGS", "COVERAGE"}
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in SETTINGS and not name.startswith("BNCORE_")
}
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def blocks_of(page: str, language: str) -> list[str]:
    """Find the code blocks of a page that are in one language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def builds() -> bool:
    """Whether this environment has what pyproject.toml demands of one that builds the package."""
    for name, least in (("setuptools", 77), ("cython", 3)):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if int(found.partition(".")[0]) < least:
            return False
    return True
