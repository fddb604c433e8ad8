"""A forked child works and never hangs, though the threads of its parent are not there."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest

import bncore
from bncore.backends import native_module
from bncore.runtime import buffer_pool as pool
from bncore.runtime import threads
from processes import SECONDS, exit_code_of_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # A fork beside threads is the point here; Python warns of it, and JAX where it was imported.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning"),
]


def work(x: np.ndarray) -> bytes:
    y, moments = bncore.batch_norm_train(x, n_threads=4)
    return y.tobytes() + moments.m2.tobytes()


def test_child_and_grandchild(backend, rng):
    x = rng.standard_normal((8, 16, 40, 40), dtype=np.float32)
    expected = work(x)  # the parent's threads exist now

    def grandchild() -> int:
        return 0 if work(x) == expected else 1

    def child() -> int:
        return 0 if work(x) == expected and exit_code_of_child(grandchild) == 0 else 1

    assert exit_code_of_child(child) == 0
    assert work(x) == expected  # and the parent goes on


def test_a_child_of_a_moment_when_the_buffer_pool_was_locked(rng):
    """The thread that holds the pool's lock is not in the child, which has an empty pool."""
    x = rng.standard_normal((4, 64, 64, 64), dtype=np.float32)
    bncore.set_buffer_pool(1 << 26)
    try:
        bncore.batch_norm_infer(x, np.zeros(64), np.ones(64))
        idle = pool.state()["idle_bytes"]
        assert idle >= x.nbytes
        locked, enough = threading.Event(), threading.Event()

        def hold() -> None:
            with pool.current._lock:
                locked.set()
                enough.wait(2 * SECONDS)

        def child() -> int:
            if pool.state()["idle_bytes"] != 0:
                return 1
            y = bncore.batch_norm_infer(x, np.zeros(64), np.ones(64), eps=0.0)
            if not np.array_equal(y, x):
                return 2
            del y
            return 0 if pool.state()["idle_bytes"] == idle else 4

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait()
        try:
            assert exit_code_of_child(child) == 0
        finally:
            enough.set()
            holder.join()
        assert pool.state()["idle_bytes"] == idle  # the parent's is as it was
    finally:
        bncore.set_buffer_pool(None)


@pytest.fixture(params=["own", "openmp", "serial"])
def executor(request, backend):
    """Run native's loops on each executor; the other backends have one way."""
    native = native_module()
    if backend.name != "native" or request.param not in native.available_executors():
        pytest.skip("only the native backend has executors")
    before = native.executor()
    native.set_executor(request.param)
    yield request.param
    native.set_executor(before)


def test_a_child_computes_with_each_executor(executor, rng):
    x = rng.standard_normal((8, 16, 40, 40), dtype=np.float32)
    expected = work(x)
    assert exit_code_of_child(lambda: 0 if work(x) == expected else 1) == 0
    assert work(x) == expected


def test_the_child_of_the_own_executor_makes_its_own_workers(executor, rng):
    if executor != "own":
        pytest.skip("the threads of OpenMP are not there, and serial has none")
    x = rng.standard_normal((8, 16, 40, 40), dtype=np.float32)
    expected = work(x)
    workers = native_module().workers
    assert workers() > 0

    def child() -> int:
        if workers() != 0:
            return 1
        return 0 if work(x) == expected and workers() > 0 else 2

    assert exit_code_of_child(child) == 0


def test_the_child_says_how_many_threads_it_has(executor):
    """As many as the parent, but for OpenMP, whose threads do not outlive a fork."""
    bncore.set_num_threads(3)
    own = {"own": (3, "set_num_threads"), "openmp": (1, "forked child"),
           "serial": (1, "serial executor")}[executor]  # fmt: skip

    def child() -> int:
        reported = bncore.show_config(mode="dicts")["threads"]
        return 0 if tuple(reported.values()) == own and bncore.get_num_threads() == own[0] else 1

    try:
        parent = threads.in_force()
        assert exit_code_of_child(child) == 0
        assert threads.in_force() == parent  # in the parent nothing has changed
    finally:
        bncore.set_num_threads(None)


def test_show_config_tells_a_child():
    parent = bncore.show_config("dicts")["native"]
    if parent is None:
        pytest.skip("the native module is missing")
    assert parent["forked_child"] is False
    if parent["openmp"]:

        def child() -> int:
            return 0 if bncore.show_config("dicts")["native"]["forked_child"] else 1

        assert exit_code_of_child(child) == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="fork is unsafe beside macOS's libraries")
def test_multiprocessing(backend, rng):
    x = rng.standard_normal((8, 16, 40, 40), dtype=np.float32)
    expected = work(x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(work, [x] * 4).get(timeout=SECONDS)
    assert results == [expected] * 4
