"""Gradients: whole, and their two halves."""

from __future__ import annotations

import pytest

from cases import BACKWARD

OPERATIONS = list(BACKWARD)


@pytest.mark.benchmark(max_time=0.15, min_rounds=5, warmup=False)
def bench_backward(measure, shape, layout, operation, contestant):
    measure(shape, layout, operation, contestant)
