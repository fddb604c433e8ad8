"""A forked child works and never hangs, although it does not have the threads of its parent."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time

import numpy as np
import pytest

import bncore
from bncore.backends import native_module
from bncore.runtime import buffer_pool, threads
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
        idle = buffer_pool.state()["idle_bytes"]
        assert idle >= x.nbytes
        locked, enough = threading.Event(), threading.Event()

        def hold() -> None:
            with buffer_pool.current._lock:
                locked.set()
                enough.wait(2 * SECONDS)

        def child() -> int:
            if buffer_pool.state()["idle_bytes"] != 0:
                return 1
            y = bncore.batch_norm_infer(x, np.zeros(64), np.ones(64), eps=0.0)
            if not np.array_equal(y, x):
                return 2
            del y
            return 0 if buffer_pool.state()["idle_bytes"] == idle else 4

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait()
        try:
            assert exit_code_of_child(child) == 0
        finally:
            enough.set()
            holder.join()
        assert buffer_pool.state()["idle_bytes"] == idle  # the parent's is as it was
    finally:
        bncore.set_buffer_pool(None)


def test_a_child_creates_workers_of_its_own(rng):
    native = native_module()
    if native is None or "own" not in native.available_executors():
        pytest.skip("the native module is missing, or has no executor of its own")
    x = rng.standard_normal((8, 64, 40, 40), dtype=np.float32)

    def calls_until_there_are(workers: int) -> bool:
        """On a busy machine calls may do without workers for a while."""
        end = time.monotonic() + SECONDS / 2
        while native.workers() < workers and time.monotonic() < end:
            work(x)
        return native.workers() >= workers

    def child() -> int:
        if native.workers() != 0:
            return 1
        return 0 if calls_until_there_are(3) and native.workers() == 3 else 2

    before = native.executor()
    native.set_executor("own")
    try:
        with bncore.use_backend("native"):
            assert calls_until_there_are(3)
            there = native.workers()
            assert exit_code_of_child(child) == 0
            assert native.workers() == there
    finally:
        native.set_executor(before)


@pytest.mark.parametrize("executor", ["own", "openmp", "serial"])
def test_the_child_says_how_many_threads_it_has(backend, executor):
    """A child uses as many threads as its parent; with OpenMP, whose threads end, only one."""
    native = native_module()
    if native is None or executor not in native.available_executors():
        pytest.skip(f"{executor} is not built in")
    parent = child_says = (3, "set_num_threads")
    if backend.name == "native" and executor == "serial":
        parent = child_says = (1, "serial executor")
    if backend.name == "native" and executor == "openmp":
        child_says = (1, "forked child")
    before = native.executor()
    native.set_executor(executor)
    bncore.set_num_threads(3)

    def child() -> int:
        reported = bncore.show_config(mode="dicts")["threads"]
        if tuple(reported.values()) != child_says or bncore.get_num_threads() != child_says[0]:
            return 1
        bncore.set_num_threads(None)
        known = ((1, "forked child"), (1, "serial executor"))
        return 0 if (threads.in_force() in known) == (child_says in known) else 2

    try:
        assert exit_code_of_child(child) == 0
        assert threads.in_force() == parent  # in the parent nothing has changed
    finally:
        native.set_executor(before)


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
