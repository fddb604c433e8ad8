"""The layer beside the functions that it calls; `layer.py` prints the ratios."""

from __future__ import annotations

import pytest

from bncore.programs.bench.cases import Problem, named
from layer import SMALL, Contest


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=False)
@pytest.mark.parametrize("who", ["layer", "functions"])
@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("shape", [SMALL, (32, 256, 14, 14)], ids=named)
def bench_layer(benchmark, shape, part, who):
    contest = Contest(Problem(shape), 1)
    contest.check()
    benchmark.name = who
    benchmark.group = f"layer {part} {named(shape)} 1t"
    benchmark(getattr(contest, f"{who}_{part}"))
