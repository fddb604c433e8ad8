"""Options, and the one function that every benchmark file uses: check, then time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from statistics import median

import pytest

from bncore.programs.bench import cases, check, limit, machine, peers
from bncore.programs.bench.cases import Case
from bncore.programs.bench.worker import seconds_of_turn

LIGHT = ("native", "numba", "numpy")  # who is measured if nobody is named


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every shape of shapes.json")
    parser.addoption("--threads", default="1", help="numbers of threads, such as 1,2 (1)")
    parser.addoption(
        "--peers",
        default=",".join(LIGHT),
        help=f"who: all, or some of {', '.join(peers.IN_PROCESS)} ({', '.join(LIGHT)})",
    )


@lru_cache(maxsize=1)
def problem(place: tuple[object, ...]) -> cases.Problem:
    """The arrays; neighbouring benchmarks share them."""
    return cases.Problem(*place)


@lru_cache(maxsize=1)
def reference(operation: str, place: tuple[object, ...]):
    return check.reference(operation, problem(place))


@cache
def streams(size: int, threads: int) -> tuple[float, float]:
    """Seconds of a streaming read and copy of that many bytes."""
    from bncore.programs.bench.streams import Streams

    calls = Streams(size, threads).call
    read, copy = (median(seconds_of_turn(calls[name]) for _ in range(5)) for name in calls)
    return read, copy


@cache
def found(key: str) -> peers.Peer | str:
    """The peer, or why it cannot run here."""
    try:
        return peers.load(key)
    except peers.Unavailable as reason:
        return str(reason)


def shapes(full: bool) -> list[cases.Shape]:
    """All of them; or those that take a minute."""
    if not full:
        return cases.SHAPES["quick"][1:]
    measured = (name for name in cases.SHAPES if name not in ("quick", "sizes", "reductions"))
    return list(dict.fromkeys(shape for name in measured for shape in cases.SHAPES[name]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    named = option("peers")
    keys = list(peers.IN_PROCESS) if named == "all" else named.split(",")
    made = [
        Case(operation, shape, layout, "float32", int(threads), output)
        for shape in shapes(option("full"))
        for layout in cases.layouts_of(shape)
        for operation in metafunc.module.OPERATIONS
        for threads in option("threads").split(",")
        for output in cases.outputs_of(operation)
    ]
    made += [case for case in metafunc.module.MORE if option("full") or case.x_bytes < 2**25]
    pairs = [
        pytest.param(case, key, id=f"{label(case)}-{key}".replace(" ", "-"))
        for case in made
        for key in keys
        if isinstance(found(key), str) or found(key).can(case)
    ]
    metafunc.parametrize(("case", "key"), pairs)


def label(case: Case) -> str:
    parts = [case.operation, "x".join(map(str, case.shape)), case.layout, case.dtype, case.output]
    return " ".join([*parts, f"{case.threads}t"])


@pytest.fixture
def measure(benchmark) -> Callable[[Case, str], None]:
    """Time one case of one peer, if its result is right."""

    def run(case: Case, key: str) -> None:
        peer = found(key)
        if isinstance(peer, str):
            pytest.skip(peer)
        p = problem(case.place)
        try:
            with peer.active(case.threads):
                p.clear(case)
                call = peer.call(case, p)
                outputs = peer.arrays(case, call(), p)
                errors = check.errors(outputs, reference(case.operation, case.place), p)
                check.assert_right(peer.exact, case, errors)
                benchmark.name = f"{peer.name}, {case.output}"
                benchmark.group = label(case).replace(f" {case.output}", "")
                benchmark(call)
        except peers.Unavailable as reason:
            pytest.skip(str(reason))
        note(benchmark, case, check.of_data(errors, case.dtype))

    return run


def note(benchmark, case: Case, ulp: float) -> None:
    """Say with the time what it is worth."""
    benchmark.extra_info.update(
        minimal_bytes=case.minimal_bytes, max_error_ulp=ulp, threads=case.threads
    )
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    cache = machine.cache_share(2, machine.caches())
    needed = limit.passes(case, cache).seconds(*streams(case.x_bytes, case.threads))
    benchmark.extra_info["GB/s"] = case.minimal_bytes / seconds / 1e9
    benchmark.extra_info["share_of_limit"] = needed / seconds
