"""Threads as a user sees them: their number, concurrent calls, the GIL, OpenMP's own limit."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import threadpoolctl

import bncore
import operations
import variants
from processes import python

NAMES = sorted(variants.FOUND.names())
NATIVE = pytest.mark.skipif("native" not in NAMES, reason="the native extension is absent")


def test_set_and_get():
    default = bncore.get_num_threads()
    assert 1 <= default <= (os.cpu_count() or 1)
    bncore.set_num_threads(3)
    assert bncore.get_num_threads() == 3
    bncore.set_num_threads(None)
    assert bncore.get_num_threads() == default


COUNT = "import bncore; print(bncore.get_num_threads())"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"BNCORE_NUM_THREADS": "3"}, "3"),
        ({"BNCORE_NUM_THREADS": "5", "OMP_NUM_THREADS": "1"}, "5"),
        ({"OMP_NUM_THREADS": "1"}, "1"),
    ],
    ids=str,
)
def test_the_environment(name, environment, expected):
    assert python(COUNT, BNCORE_BACKEND=name, **environment) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["abc", "0", "-1"])
def test_what_openmp_cannot_read_is_ignored(name, text):
    assert python(COUNT, BNCORE_BACKEND=name, OMP_NUM_THREADS=text) == python(COUNT)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize("name", NAMES)
def test_affinity(name):
    """A process bound to one CPU takes one thread, unless it is told otherwise."""
    bound = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {COUNT}"
    assert python(bound, BNCORE_BACKEND=name) == "1"
    assert python(bound, BNCORE_BACKEND=name, BNCORE_NUM_THREADS="2") == "2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
@pytest.mark.skipif(os.cpu_count() == 1, reason="with one CPU there is nothing to be bound to")
@pytest.mark.parametrize("name", NAMES)
def test_affinity_that_is_set_later(name):
    """A worker that binds itself after its first call keeps to its CPU from then on."""
    late = f"""
        import os, time
        import bncore
        from bncore.runtime import threads
        first = threads.resolve(None)
        os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
        time.sleep(1.5 * threads.CPUS_AGE)
        print(first > 1, threads.resolve(None), bncore.get_num_threads())
    """
    allowed = len(os.sched_getaffinity(0)) > 1
    assert python(late, BNCORE_BACKEND=name) == f"{allowed} 1 1"


@NATIVE
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux lists them")
@pytest.mark.parametrize(
    ("shape", "n_threads", "expected"),
    [
        ((8, 64, 64, 64), 1, 1),
        ((8, 64, 64, 64), 3, 3),
        ((8, 1, 256, 256), 3, 3),
        ((2, 2, 512, 512), 4, 4),
        ((1, 16, 4, 4), 4, 1),
    ],
    ids=str,
)
def test_threads_are_started_where_they_pay(shape, n_threads, expected):
    """As many as asked for, with fewer channels than threads too; none for a small problem."""
    started = python(
        f"""
        import os
        import numpy as np
        import bncore

        x = np.ones({shape}, np.float32)
        before = len(os.listdir("/proc/self/task"))
        y, moments = bncore.batch_norm_train(x, n_threads={n_threads})
        bncore.batch_norm_train_backward(y, x, moments, n_threads={n_threads})
        print(1 + len(os.listdir("/proc/self/task")) - before)
        """,
        BNCORE_BACKEND="native",
        OPENBLAS_NUM_THREADS="1",
    )
    if bncore.show_config(mode="dicts")["native"]["openmp"]:
        assert int(started) == expected
    else:
        assert int(started) == 1


def test_concurrent_calls(backend, rng):
    """Eight Python threads at once, each with its own data and parallel calls of its own."""
    cases = [operations.make_case(rng, (4, 8, 64, 64)) for _ in range(8)]

    def work(case: operations.Case) -> operations.Results:
        with bncore.use_backend(backend.name):  # a choice counts for its own thread
            return operations.run_all(operations.replace(case), n_threads=2)

    expected = [work(case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(work, cases * 3), expected * 3, strict=True):
            assert operations.differences(got, want) == []


@contextmanager
def ticking():
    """Another Python thread counts whenever it gets the GIL.

    The switch interval is longer than the test, so it counts only while this thread releases the
    GIL.
    """
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    try:
        thread.start()
        yield ticks
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python runs without the lock"
)
def test_the_gil_is_released(backend, rng):
    case = operations.make_case(rng, (4, 16, 128, 128)).with_statistics()
    out = np.empty_like(case.x)
    with ticking() as ticks:
        held = ticks[0]
        sum(range(10**6))
        assert ticks[0] == held  # as long as nobody lets go, nothing moves
        for name, operation in operations.ALL.items():
            options = {"out": out} if name in operations.WRITING else {}
            operation(case, n_threads=1, **options)  # compiled, pages touched
            held = ticks[0]
            for _ in range(300):  # the system may need more than one call to wake the other thread
                operation(case, n_threads=1, **options)
                if ticks[0] > held:
                    break
            assert ticks[0] > held, name


@NATIVE
def test_a_limit_of_openmp_counts_whichever_executor_runs():
    """Programs have long limited bncore through OpenMP's runtime."""
    if not bncore.show_config(mode="dicts")["native"]["openmp"]:
        pytest.skip("built without OpenMP")
    assert any(info["user_api"] == "openmp" for info in threadpoolctl.threadpool_info())
    before = bncore.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert bncore.get_num_threads() == 1
    assert bncore.get_num_threads() == before


SUBINTERPRETER = """
    import sys
    import {interpreters} as interpreters
    import numpy as np
    import bncore
    x = np.ones((8, 64, 64, 64), np.float32)
    expected = bncore.batch_norm_train(x, n_threads=2)[0].tobytes()
    other = interpreters.create()
    program = "import numpy, bncore; bncore.moments(numpy.ones((8, 64, 64, 64)), n_threads=2)"
    try:
        error = interpreters.run_string(other, program)
    except BaseException as raised:
        error = raised
    said = "" if error is None else str(error)
    interpreters.destroy(other)
    assert bncore.batch_norm_train(x, n_threads=2)[0].tobytes() == expected
    print("works" if not said else "refused" if "ImportError" in said else said)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_subinterpreter_works_or_is_refused():
    """The extension module may refuse it, as NumPy's does; nothing crashes or hangs."""
    name = "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
    assert python(SUBINTERPRETER.format(interpreters=name)) in ("works", "refused")
