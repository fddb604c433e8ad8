"""Threads as a user meets them: concurrent calls, the GIL, and OpenMP's own limit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

import bncore
import variants

NATIVE = pytest.mark.skipif(
    "native" not in variants.FOUND.names(), reason="the native extension is absent"
)


def test_concurrent_calls(backend, rng):
    """Eight Python threads at once, each with its own data and parallel calls of its own."""
    arrays = [rng.standard_normal((4, 8, 64, 64)).astype(np.float32) for _ in range(8)]

    def work(x: np.ndarray) -> bytes:
        with backend.active():
            y, moments = bncore.batch_norm_train(x, n_threads=2)
            return y.tobytes() + moments.mean.tobytes()

    expected = [work(x) for x in arrays]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, arrays * 3)) == expected * 3


@NATIVE
def test_the_gil_is_released(rng):
    """Another Python thread counts on while one native call runs."""
    x = rng.standard_normal((8, 64, 128, 128)).astype(np.float32)
    out = np.empty_like(x)
    started, stop, count = threading.Event(), threading.Event(), [0]

    def tick() -> None:
        started.set()
        while not stop.wait(0.0005):
            count[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    with bncore.use_backend("native"):
        for _ in range(200):
            before = count[0]
            bncore.batch_norm_train(x, out=out, n_threads=1)
            if count[0] > before:
                break
    stop.set()
    thread.join()
    assert count[0] > before  # in some call of about 10 ms the other thread got its turn


@NATIVE
def test_threadpoolctl_sees_and_limits_openmp():
    if not bncore.show_config(mode="dicts")["native"]["openmp"]:
        pytest.skip("built without OpenMP")
    assert any(info["user_api"] == "openmp" for info in threadpoolctl.threadpool_info())
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert bncore.get_num_threads() == 1
