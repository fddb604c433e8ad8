"""The checkout that the tests belong to, a compiler and a clean environment."""

from __future__ import annotations

import ast
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


def blocks_of_the_readme(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def setup_constant(name: str) -> list[str]:
    """Read a list of setup.py, which cannot be imported without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")
