"""The two halves of the gradient."""

from __future__ import annotations

import pytest

OPERATIONS = ["grad_sums", "grad_input"]
MORE = []


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
def bench_gradient_steps(measure, case, key):
    measure(case, key)
