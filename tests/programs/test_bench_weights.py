"""The benchmark of masks and weights: it checks every result before it takes the time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.checkout import ROOT

PROGRAM = ROOT / "benchmarks" / "weights.py"


@pytest.fixture(scope="module")
def printed() -> str:
    options = ["--shapes", "3x4x5x6", "--values", "20000", "--turns", "1"]
    run = subprocess.run(
        [sys.executable, PROGRAM, *options], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return run.stdout


def test_every_kind_of_weights_is_timed_in_both_layouts(printed):
    lines = [line for line in printed.splitlines() if line.startswith("3×4×5×6")]
    ratios = [float(word) for line in lines for word in line.split()[1:]]
    assert len(ratios) == 2 * 2 * 5  # layouts, train and backward, kinds
    assert min(ratios) > 0.0


def test_statistics_are_compared_with_numpys(printed):
    for start in ("NaN, axis 0", "NaN, axis 1", "NaN, axis None", "weights, axis 0"):
        assert any(line.startswith(start) for line in printed.splitlines()), start
