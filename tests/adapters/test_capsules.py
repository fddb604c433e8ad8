"""The C functions as capsules and addresses: SciPy, ctypes, and the executor of the process."""

from __future__ import annotations

import ctypes
import os
import re
import threading

import numpy as np
import pytest

import bncore
from checkout import ROOT
from processes import exit_code_of_child
from variants import FOUND

pytestmark = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="the C interface needs the native extension"
)

if "native" in FOUND.names():
    import host


def function(name, result, *arguments):
    return ctypes.CFUNCTYPE(result, *arguments)(bncore.get_address(name))


def test_the_example_of_the_documentation_runs():
    pytest.importorskip("scipy", reason="SciPy is not installed")
    page = (ROOT / "docs" / "embedding.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "LowLevelCallable" in code
    exec(compile(code, "embedding.md", "exec"), {})


def test_every_function_of_the_header_has_a_capsule():
    header = (ROOT / "src_c" / "include" / "bncore.h").read_text()
    names = re.findall(r"^BNCORE_API .*?(bncore_\w+)\(", header, re.MULTILINE)
    assert set(names) == set(bncore.get_capsules())


def test_ctypes_calls_an_address():
    assert function("bncore_version", ctypes.c_char_p)() == bncore.__version__.encode()
    assert function("bncore_abi_version", ctypes.c_int)() == host.library().bncore_abi_version()


def test_it_is_the_function_that_bncore_calls(rng):
    x = rng.standard_normal((6, 5, 40)).astype(np.float32)
    y, mean, m2 = np.empty_like(x), np.empty(5), np.empty(5)
    train = function("bncore_train", ctypes.c_int, *[ctypes.c_void_p] * 7)
    p = host.problem(x.shape)
    pointers = [array.ctypes.data for array in (y, mean, m2, x)]
    assert train(ctypes.addressof(p), *pointers, None, None) == 0
    want, moments = bncore.batch_norm_train(x)
    assert y.tobytes() == want.tobytes() and m2.tobytes() == moments.m2.tobytes()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"^name: expected one of .*, got 'bncore_x'"):
        bncore.get_address("bncore_x")


# ---- the executor of the process


CONTEXT = 1234


class Host:
    """A parallel-for that goes backwards and counts its loops."""

    def __init__(self):
        self.loops = 0
        self.threads = set()

        def parallel_for(context, tasks, threads, task, arg):
            assert context == CONTEXT
            self.loops += 1
            self.threads.add(threads)
            for i in reversed(range(tasks)):
                task(arg, i)

        self.executor = host.Executor(host.PARALLEL_FOR(parallel_for), CONTEXT)


def set_executor(executor):
    return host.library().bncore_executor_set(None if executor is None else ctypes.byref(executor))


def executor_now():
    return function("bncore_executor_now", ctypes.c_void_p)()


@pytest.fixture
def of_process():
    mine = Host()
    assert executor_now() is None
    assert set_executor(mine.executor) == 0
    assert executor_now() == ctypes.addressof(mine.executor)
    yield mine
    assert set_executor(None) == 0
    assert executor_now() is None


def train(x, n_threads=3):
    y, moments = bncore.batch_norm_train(x, n_threads=n_threads)
    return y.tobytes() + moments.mean.tobytes() + moments.m2.tobytes()


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 6, 4096)).astype(np.float32)


@pytest.fixture(autouse=True)
def native():
    with bncore.use_backend("native"):
        yield


def test_the_process_executor_is_asked_and_changes_no_bit(x, of_process):
    got = train(x)
    assert of_process.loops > 0 and of_process.threads == {3}
    before = of_process.loops
    assert set_executor(None) == 0
    assert train(x) == got
    assert of_process.loops == before


def test_the_executor_of_a_call_comes_first(x, of_process):
    p = host.problem(x.shape, n_threads=3)
    seen = []

    def parallel_for(tasks, threads, task):
        seen.append(threads)
        for i in range(tasks):
            task(i)

    kept = host.with_executor(p, parallel_for)
    mean, m2 = np.empty(6), np.empty(6)
    assert host.run("moments", p, mean, m2, x) == 0
    assert kept is not None and seen and of_process.loops == 0


def test_an_executor_without_a_loop_is_refused(x, of_process):
    empty = host.Executor(host.PARALLEL_FOR(0), None)
    assert b"NULL" in host.library().bncore_status_string(set_executor(empty))
    assert executor_now() == ctypes.addressof(of_process.executor)
    train(x)
    assert of_process.loops > 0, "the one before stays"
    p = host.problem(x.shape, n_threads=3)
    p.executor = ctypes.pointer(empty)
    mean = np.full(6, 7.0)
    assert host.run("moments", p, mean, mean, x) != 0
    assert (mean == 7.0).all()


def test_it_may_be_changed_while_others_compute(x, of_process):
    want, results = train(x), []
    workers = [
        threading.Thread(target=lambda: results.extend(train(x) for _ in range(20)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for _ in range(200):
        set_executor(None)
        set_executor(of_process.executor)
    for worker in workers:
        worker.join()
    assert len(results) == 60 and set(results) == {want}


def test_a_host_may_compute_inside_its_own_loop(x):
    """Every function is re-entrant: a task of the host may be batch norm of something else."""
    want, inside = train(x), []

    def parallel_for(_context, tasks, _threads, task, arg):
        for i in range(tasks):
            inside.append(train(x, n_threads=1))
            task(arg, i)

    executor = host.Executor(host.PARALLEL_FOR(parallel_for), None)
    assert set_executor(executor) == 0
    try:
        assert train(x) == want
    finally:
        assert set_executor(None) == 0
    assert inside and set(inside) == {want}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_child_starts_with_none_and_may_set_its_own(x, of_process):
    want, before = train(x), of_process.loops

    def child() -> int:
        if executor_now() is not None or train(x) != want or of_process.loops != before:
            return 1
        own = Host()
        if set_executor(own.executor) or run_in_three(x) or own.loops == 0:
            return 2
        return 0

    assert exit_code_of_child(child) == 0
    train(x)
    assert of_process.loops > before


def run_in_three(x):
    """Call C for three threads: in a child Python's functions ask for one."""
    mean, m2 = np.empty(6), np.empty(6)
    return host.run("moments", host.problem(x.shape, n_threads=3), mean, m2, x)
