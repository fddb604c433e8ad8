"""What docs/embed_example.c prints, and the lists of setup.py that its build commands name."""

from __future__ import annotations

import ast

import numpy as np

import bncore
from checkout import ROOT


def setup_constant(name: str) -> list[str]:
    """Read a list of setup.py, which cannot be imported without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def expected() -> str:
    x = (np.arange(60) ** 2 % 17).astype(np.float32).reshape(4, 3, 5)
    y, moments = bncore.batch_norm_train(x, np.array([1.0, 2.0, 3.0]), np.array([0.0, 10.0, 20.0]))
    part = bncore.moments(x[:3])
    whole = "".join(
        f"channel {c}: mean {moments.mean[c]:.17g}, variance {moments.var()[c]:.17g}, "
        f"first value {y[0, c, 0]:.9g}\n"
        for c in range(3)
    )
    return whole + "".join(f"without padding: count 15, mean {m:.17g}\n" for m in part.mean)
