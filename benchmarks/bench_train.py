"""Normalization with the statistics of the batch."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import Case

OPERATIONS = ["train"]
MORE = [
    Case("train", (32, 256, 14, 14), dtype=dtype) for dtype in ("float64", "bfloat16", "float16")
]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_train(measure, case, key):
    measure(case, key)
