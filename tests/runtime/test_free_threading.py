"""Many threads call the same functions at once, with a global lock or without one.

Under an ordinary Python these tests find what a switch between two threads can break.  Under a
free-threaded one (`make test-freethreaded`) the threads really run at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest

import bncore
import variants
from bncore import backends
from bncore.runtime import buffer_pool
from bncore.runtime import threads as thread_counts

THREADS = 8
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def at_once(*works: Callable[[], object], threads: int = THREADS) -> list[object]:
    """Call the works in turn, each in a thread of its own, all at the same moment."""
    results: list[object] = [None] * threads
    errors: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def run(i: int, work: Callable[[], object]) -> None:
        try:
            barrier.wait(timeout=60)
            results[i] = work()
        except BaseException as error:
            errors.append(error)

    started = [
        threading.Thread(target=run, args=(i, work))
        for i, work in zip(range(threads), cycle(works), strict=False)
    ]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    return results


def bits(*arrays: object) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def everything(x: np.ndarray, dy: np.ndarray, n_threads: int | None) -> bytes:
    """Call one function of each kind; return the bits of all results."""
    channels = x.shape[1]
    weight, bias = np.linspace(0.5, 2.0, channels), np.linspace(-1.0, 1.0, channels)
    given = {"n_threads": n_threads}
    y, moments = bncore.batch_norm_train(x, weight, bias, activation="relu", **given)
    grads = bncore.batch_norm_train_backward(
        dy, x, moments, weight, bias=bias, activation="relu", **given
    )
    mean, var = bncore.mean_var(x, axis=(0, *range(2, x.ndim)), **given)
    running_mean, running_var = np.zeros(channels), np.ones(channels)
    bncore.update_running_stats(running_mean, running_var, moments)
    z = bncore.batch_norm_infer(x, running_mean, running_var, weight, bias, **given)
    grouped = bncore.group_norm(x, 2, weight, bias, **given)
    layer = bncore.layer_norm(x, **given)
    parts = [part for result in (grouped, layer) for part in np.atleast_1d(result[0])]
    return bits(
        y, moments.mean, moments.m2, *grads, mean, var, running_mean, running_var, z, *parts
    )


@pytest.mark.parametrize("shape", [(8, 4, 5), (64, 16, 28, 28)], ids=str)
@pytest.mark.parametrize("n_threads", [1, 3, None], ids=str)
def test_calls_at_once_have_the_bits_of_one_call(backend, rng, shape, n_threads):
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    alone = everything(x, dy, n_threads)
    rounds = 10 if x.size < 1000 else 2

    def work() -> set[bytes]:
        with backend.active():
            return {everything(x, dy, n_threads) for _ in range(rounds)}

    assert at_once(work) == [{alone}] * THREADS


def test_each_thread_has_the_backend_that_it_chose(rng):
    names = [name for name in backends.NAMES if name in variants.FOUND.names()]
    x = rng.standard_normal((32, 8)).astype(np.float32)
    alone = bncore.moments(x)

    def work(name: str) -> bool:
        for _ in range(50):
            with bncore.use_backend(name):
                found = bncore.moments(x)
                if backends.current().name != name:
                    return False
                if bits(found.mean, found.m2) != bits(alone.mean, alone.m2):
                    return False
        return True

    assert all(at_once(*(lambda name=name: work(name) for name in names)))


def test_the_number_of_threads_may_change_meanwhile(rng):
    x, dy = (rng.standard_normal((64, 16, 28, 28)).astype(np.float32) for _ in range(2))
    alone = everything(x, dy, 1)
    ended = threading.Event()

    def compute() -> object:
        try:
            return {everything(x, dy, None) for _ in range(5)} == {alone}
        finally:
            ended.set()

    def change() -> object:
        numbers = set()
        while not ended.is_set():
            for n in (1, 2, None):
                bncore.set_num_threads(n)
                numbers.add(bncore.get_num_threads())
        return all(1 <= n <= 1024 for n in numbers)

    assert all(at_once(compute, change))


def test_the_pool_serves_all_threads_and_never_two_with_one_block(rng):
    """Every array keeps its own thread's values as long as it lives."""
    x = rng.standard_normal((64, 64, 8, 16)).astype(np.float32)  # 2 MiB: the pool's business
    bncore.set_buffer_pool(1 << 24)
    try:

        def work() -> bool:
            kept: list[tuple[np.ndarray, float]] = []
            for i in range(60):
                y = buffer_pool.output(x)
                value = threading.get_ident() % 4093 + i / 64
                y.fill(value)
                kept.append((y, value))
                if len(kept) > 3:
                    old, expected = kept.pop(0)
                    if not (old == expected).all():
                        return False
            return all((y == value).all() for y, value in kept)

        assert all(at_once(work))
        state = buffer_pool.state()
        assert state is not None
        assert 0 < state["idle_bytes"] <= state["max_bytes"]
    finally:
        bncore.set_buffer_pool(None)


def test_the_pool_may_be_replaced_meanwhile(rng):
    """No replaced pool keeps memory once its arrays are gone."""
    x = rng.standard_normal((64, 64, 8, 16)).astype(np.float32)
    alone = bits(bncore.batch_norm_train(x)[0])

    def compute() -> bool:
        return all(bits(bncore.batch_norm_train(x)[0]) == alone for _ in range(10))

    def replace() -> bool:
        for _ in range(100):
            bncore.set_buffer_pool(1 << 24)
        return True

    try:
        assert all(at_once(compute, replace))
    finally:
        bncore.set_buffer_pool(None)
    assert all(pool.idle_bytes() == 0 for pool in list(buffer_pool._pools))


def test_one_layer_evaluates_in_many_threads(rng):
    x = rng.standard_normal((16, 8, 6)).astype(np.float32)
    layer = bncore.BatchNorm(8, activation="relu")
    layer(x)
    layer.eval()
    alone = bits(layer(x))
    assert at_once(lambda: {bits(layer(x)) for _ in range(50)}) == [{alone}] * THREADS


# What two threads can do to each other, brought about on purpose


def test_a_backend_that_two_threads_load_is_one_object(monkeypatch):
    name = "numpy"
    module = backends.importlib.import_module(backends.MODULES[name])
    both = threading.Barrier(2)

    def import_module(path: str) -> object:
        both.wait(timeout=60)
        return module

    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    first, second = at_once(lambda: backends.load(name), threads=2)
    assert first is second


def test_each_pool_that_is_replaced_is_closed(monkeypatch):
    both = threading.Barrier(2)
    made = []

    def pool(max_bytes: int, pool=buffer_pool.Pool) -> buffer_pool.Pool:
        both.wait(timeout=60)
        made.append(pool(max_bytes))
        return made[-1]

    with monkeypatch.context() as meeting:
        meeting.setattr(buffer_pool, "Pool", pool)
        at_once(lambda: bncore.set_buffer_pool(1 << 24), threads=2)
    bncore.set_buffer_pool(None)
    assert [one.max_bytes for one in made] == [0, 0]


def test_a_change_of_the_environment_is_not_missed_while_another_thread_reads_it(monkeypatch):
    """A number in BNCORE_NUM_THREADS would else count until the end of the process."""
    changing: list[threading.Thread] = []

    def change() -> None:
        monkeypatch.setenv("BNCORE_NUM_THREADS", "2")
        bncore.set_num_threads(None)

    def environment_limit(text: str, limit=thread_counts.environment_limit):
        if not changing:
            changing.append(threading.Thread(target=change))
            changing[0].start()
            changing[0].join(timeout=0.5)  # it has to wait for this thread, and comes after it
        return limit(text)

    monkeypatch.setenv("BNCORE_NUM_THREADS", "3")
    bncore.set_num_threads(None)
    with monkeypatch.context() as slow:
        slow.setattr(thread_counts, "environment_limit", environment_limit)
        assert bncore.get_num_threads() == 3
        changing[0].join()
    assert bncore.get_num_threads() == 2


FIRST_CALL = """
import sys, threading
import numpy as np
import bncore

x = np.arange(64.0).reshape(16, 4)
barrier = threading.Barrier(16)
results = []

def work():
    barrier.wait()
    y, moments = bncore.batch_norm_train(x)
    results.append((y.tobytes(), bncore.get_num_threads()))

threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 16 and len({*results}) == 1, results
"""


@pytest.mark.parametrize("name", sorted(variants.FOUND.names()))
def test_the_first_call_may_come_from_many_threads_at_once(name):
    """The backend is imported by whoever comes first, and all have the same one."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST_CALL],
        env=os.environ | {"BNCORE_BACKEND": name},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


IMPORTED = """
import sys
import bncore
import bncore.backends.native.binding
print(sys._is_gil_enabled())
"""


@pytest.mark.skipif(not FREE, reason="needs a free-threaded Python; see `make test-freethreaded`")
def test_importing_bncore_does_not_bring_the_lock_back():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("False", "")


@pytest.mark.skipif(not FREE, reason="needs a free-threaded Python; see `make test-freethreaded`")
def test_the_lock_is_off_while_these_tests_run():
    assert not sys._is_gil_enabled()


@pytest.mark.skipif(not FREE, reason="needs a free-threaded Python; see `make test-freethreaded`")
@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="later ones count what is in a list")
def test_threads_do_not_count_the_references_to_what_all_of_them_use():
    native = backends.load("native")
    for each in (native, native.fast.fast_train):
        before = sys.getrefcount(each)
        several = [each] * 100
        assert sys.getrefcount(several[0]) == before
