"""Normalization: with the batch's statistics, and with given ones."""

from __future__ import annotations

import pytest

from cases import FORWARD

OPERATIONS = list(FORWARD)


@pytest.mark.benchmark(max_time=0.15, min_rounds=5, warmup=False)
def bench_forward(measure, shape, layout, operation, contestant):
    measure(shape, layout, operation, contestant)
