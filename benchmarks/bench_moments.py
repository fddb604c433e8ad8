"""Statistics alone: one pass over memory."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import SHAPES, Case

OPERATIONS = ["moments", "mean_var"]
MORE = [Case("mean_var", shape) for shape in SHAPES["reductions"]]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_moments(measure, case, key):
    measure(case, key)
