"""Options, and the one function that every benchmark file uses: check, then time."""

from __future__ import annotations

from functools import lru_cache

import pytest

import cases
from check import assert_right
from contestants import Contestant, contestants


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every shape of shapes.json")
    parser.addoption("--threads", type=int, default=1, help="threads, for all (default 1)")


@lru_cache(maxsize=1)
def problem(shape: tuple[int, ...], layout: str, threads: int) -> cases.Problem:
    """The arrays; neighbouring benchmarks share them."""
    return cases.Problem(shape, layout, threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shapes = cases.QUICK
    if metafunc.config.getoption("--full"):
        shapes = [shape for network in cases.SHAPES.values() for shape in network]
    places = [(shape, layout) for shape in shapes for layout in cases.layouts_of(shape)]
    ids = [f"{'x'.join(map(str, shape))}-{layout}".replace(" ", "-") for shape, layout in places]
    metafunc.parametrize(("shape", "layout"), places, ids=ids, scope="session")
    pairs = [
        (operation, contestant)
        for operation in metafunc.module.OPERATIONS
        for contestant in contestants()
        if contestant.can(operation)
    ]
    ids = [f"{operation}-{contestant.name}".replace(" ", "-") for operation, contestant in pairs]
    metafunc.parametrize(("operation", "contestant"), pairs, ids=ids)


@pytest.fixture
def measure(benchmark, request):
    """Time one operation of one contestant, if its result is right."""

    def run(shape: tuple[int, ...], layout: str, operation: str, contestant: Contestant) -> None:
        threads = request.config.getoption("--threads")
        p = problem(shape, layout, threads)
        with contestant.active(threads):
            call = contestant.call(operation, p)
            ulp = assert_right(contestant, operation, p, call())
            benchmark.name = contestant.name
            benchmark.group = f"{operation} {'x'.join(map(str, shape))} {layout}"
            benchmark(call)
        moved = p.minimal_bytes(operation)
        benchmark.extra_info.update(minimal_bytes=moved, max_error_ulp=ulp, threads=threads)
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["GB/s"] = moved / benchmark.stats.stats.median / 1e9

    return run
