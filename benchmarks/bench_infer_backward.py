"""Gradients where the statistics are constants."""

from __future__ import annotations

import pytest

OPERATIONS = ["infer_backward"]
MORE = []


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_infer_backward(measure, case, key):
    measure(case, key)
