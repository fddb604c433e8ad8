"""Gradients of the end of a residual block, that of the residual included."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import Case

OPERATIONS = ["add_relu_backward"]
MORE = [Case("add_relu_backward", (32, 256, 14, 14), dtype="float64")]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_add_relu_backward(measure, case, key):
    measure(case, key)
