"""The end of a residual block in training, relu(bn(x) + residual)."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import Case

OPERATIONS = ["add_relu"]
MORE = [Case("add_relu", (32, 256, 14, 14), dtype="float64")]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_add_relu(measure, case, key):
    measure(case, key)
