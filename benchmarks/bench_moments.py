"""Statistics alone: one pass over memory."""

from __future__ import annotations

import pytest

from cases import MOMENTS

OPERATIONS = list(MOMENTS)


@pytest.mark.benchmark(max_time=0.15, min_rounds=5, warmup=False)
def bench_moments(measure, shape, layout, operation, contestant):
    measure(shape, layout, operation, contestant)
