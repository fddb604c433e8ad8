"""Normalization with given statistics."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import Case

OPERATIONS = ["infer"]
MORE = [
    Case("infer", (32, 256, 14, 14), dtype=dtype) for dtype in ("float64", "bfloat16", "float16")
]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_infer(measure, case, key):
    measure(case, key)
