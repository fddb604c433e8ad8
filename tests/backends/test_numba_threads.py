"""How the Numba backend spreads tasks over threads; the kernels here are plain Python."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from bncore.backends.numba import threads


@pytest.fixture(autouse=True)
def own_pool():
    """A pool without workers before the test, and none of its workers after it."""
    threads._pool.cache_clear()
    yield
    threads._pool().shutdown()
    threads._pool.cache_clear()


def spread(n_threads, n_tasks):
    """Return the ranges that were run, in order."""
    taken = []
    threads.spread(n_threads, n_tasks, lambda first, last: taken.append((first, last)))
    return sorted(taken)


@pytest.mark.parametrize("n_threads, n_tasks", [(1, 5), (2, 5), (3, 2), (7, 100), (4, 0)])
def test_every_task_runs_once(n_threads, n_tasks):
    ranges = spread(n_threads, n_tasks)
    assert len(ranges) == max(min(n_threads, n_tasks), 1)
    assert [task for first, last in ranges for task in range(first, last)] == [*range(n_tasks)]


def test_several_threads_work_at_once():
    both = threading.Barrier(2)
    threads.spread(2, 2, lambda first, last: both.wait(60))


def test_a_thread_that_has_not_begun_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 1)
    begun, end = threading.Event(), threading.Event()
    worker = threads._pool().submit(lambda: (begun.set(), end.wait(10)))
    assert begun.wait(60)
    assert spread(4, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert not worker.done()
    end.set()


def test_a_thread_that_comes_late_holds_no_memory(monkeypatch):
    """Else the buffer pool could not use the memory of an array that is gone."""
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 1)
    begun, end = threading.Event(), threading.Event()
    threads._pool().submit(lambda: (begun.set(), end.wait(60)))
    assert begun.wait(60)
    array = np.zeros(3)
    gone = weakref.ref(array)
    threads.spread(2, 2, lambda first, last, a: None, array)
    del array
    held = gone() is not None  # the task of the late thread is still in the executor's queue
    end.set()
    assert not held


def test_where_no_thread_can_be_created_nothing_runs_twice(monkeypatch):
    """The executor keeps what it was given, though `submit` raised; its worker finds it later."""
    begun, end = threading.Event(), threading.Event()
    worker = threads._pool().submit(lambda: (begun.set(), end.wait(60)))
    assert begun.wait(60)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        threads.spread(3, 3, lambda first, last: taken.append((first, last)))
    end.set()
    worker.result(60)
    threads._pool().submit(int).result(60)  # what was queued before it is done
    assert sorted(taken) == [(0, 1), (1, 2), (2, 3)]
