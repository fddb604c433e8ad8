"""The buffer pool reuses memory, but never while anybody can still see it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import bncore
import calls
from arrays import SIXTEEN_BITS
from bncore.runtime import buffer_pool

LARGE = (4, 64, 64, 64)  # 4 MiB of float32


@pytest.fixture(autouse=True)
def _pool_restored():
    yield
    bncore.set_buffer_pool(None)


def large(rng, dtype=np.float32):
    return rng.standard_normal(LARGE).astype(dtype)


def test_memory_is_used_again(backend, rng):
    x = large(rng)
    expected, moments = bncore.batch_norm_train(x)
    bncore.set_buffer_pool(1 << 26)
    y, _ = bncore.batch_norm_train(x)
    place = y.ctypes.data
    del y
    dx, _, _ = bncore.batch_norm_train_backward(x, x, moments)
    assert dx.ctypes.data == place
    del dx
    y, _ = bncore.batch_norm_train(x)
    assert y.ctypes.data == place
    assert np.array_equal(y, expected)


SHAPE = (4, 66, 32, 32)  # a little more than 1 MiB of float32, and groups of 22 channels


def layouts_of(plain: np.ndarray) -> list[np.ndarray]:
    """The same values in other memory orders, with gaps, backwards and in foreign byte order."""
    return [
        plain,
        np.moveaxis(plain, 1, -1).copy().transpose(0, 3, 1, 2),
        plain.copy(order="F"),
        plain[:, ::-1].copy()[:, ::-1],
        np.repeat(plain, 2, axis=-1)[..., ::2],
        plain.astype(plain.dtype.newbyteorder(">")),
    ]


@pytest.mark.parametrize("name", calls.NORMALIZING)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_function_and_layout(name, dtype):
    """With the pool, results have the same values, dtype and memory order as without it."""
    call = calls.NORMALIZING[name]
    good = call.arguments(SHAPE, dtype)
    for x in layouts_of(good["x"]):
        arguments = good | {"x": x}
        bncore.set_buffer_pool(None)
        expected = call.output(call(arguments))
        bncore.set_buffer_pool(1 << 26)
        got = call.output(call(arguments))
        assert buffer_pool.state()["idle_bytes"] == 0
        assert got.strides == expected.strides
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)
        size = got.nbytes
        del got
        assert size <= buffer_pool.state()["idle_bytes"] <= size + 4096
        place = call.output(call(arguments)).ctypes.data  # its block is free again
        assert call.output(call(arguments)).ctypes.data == place


def test_a_view_keeps_the_memory(rng):
    x = large(rng)
    bncore.set_buffer_pool(1 << 26)
    y, _ = bncore.batch_norm_train(x)
    place, view, kept = y.ctypes.data, y[1:, 3].T, y[1:, 3].T.copy()
    reshaped = np.asarray(memoryview(view))
    del y, view
    gc.collect()
    other, _ = bncore.batch_norm_train(-x)
    assert other.ctypes.data != place
    assert np.array_equal(reshaped, kept)
    del reshaped
    again, _ = bncore.batch_norm_train(x)
    assert again.ctypes.data == place


def test_the_bound_holds(rng):
    x = large(rng)
    bncore.set_buffer_pool(2 * x.nbytes + 4096)
    results = [bncore.batch_norm_train(x)[0] for _ in range(5)]
    assert buffer_pool.state() == {"max_bytes": 2 * x.nbytes + 4096, "idle_bytes": 0}
    del results
    idle = buffer_pool.state()["idle_bytes"]
    assert 2 * x.nbytes <= idle <= 2 * x.nbytes + 4096
    bncore.set_buffer_pool(0)
    y, _ = bncore.batch_norm_train(x)
    del y
    assert buffer_pool.state()["idle_bytes"] == 0


def test_the_oldest_block_goes_first(rng):
    small, big = large(rng), large(rng, np.float64)
    bncore.set_buffer_pool(big.nbytes + 4096)
    bncore.batch_norm_train(small)
    bncore.batch_norm_train(big)
    assert big.nbytes <= buffer_pool.state()["idle_bytes"] < big.nbytes + small.nbytes


@pytest.mark.parametrize("call", ["take", "give", "idle_bytes"])
def test_the_bound_holds_for_what_comes_back_while_the_pool_is_busy(call, monkeypatch):
    """The garbage collector may give a block back in the middle of any call."""
    busy = buffer_pool.Pool(0)
    settle = buffer_pool.Pool._settle
    late = [np.empty(4096, np.uint8)]

    def interrupted(self) -> None:
        settle(self)
        if late:
            self.give(late.pop())

    monkeypatch.setattr(buffer_pool.Pool, "_settle", interrupted)
    arguments = {"take": ((8,), np.dtype(float)), "give": (np.empty(8, np.uint8),)}
    kept = getattr(busy, call)(
        *arguments.get(call, ())
    )  # an array gives its block back when it goes
    assert not late and not busy._given and not busy._idle, kept


def test_small_arrays_given_outputs_and_bad_input_are_not_the_pools(rng):
    bncore.set_buffer_pool(1 << 26)
    y, _ = bncore.batch_norm_train(rng.standard_normal((4, 3, 5)))
    assert y.flags.owndata
    x = large(rng)
    out = np.empty_like(x)
    assert bncore.batch_norm_train(x, out=out)[0] is out
    with pytest.raises(
        TypeError, match="x: expected float16, bfloat16, float32 or float64, got int64"
    ):
        bncore.batch_norm_train(np.ones(LARGE, np.int64))
    with pytest.raises(ValueError, match="weight"):
        bncore.batch_norm_train(x, np.ones(3))


def test_without_a_pool_numpy_allocates(rng):
    assert buffer_pool.state() is None
    assert bncore.batch_norm_infer(large(rng), np.zeros(64), np.ones(64)).base is None


@pytest.mark.parametrize("bad", [-1, 1.5, "1", True])
def test_bad_bounds(bad):
    with pytest.raises((TypeError, ValueError), match="max_bytes: expected an integer >= 0"):
        bncore.set_buffer_pool(bad)
    assert buffer_pool.state() is None


def test_threads_never_share_a_block(rng):
    """Each thread checks that nobody else wrote to its result."""
    bncore.set_buffer_pool(1 << 26)
    base = large(rng)
    wrong = []

    def work(shift: float) -> None:
        x = base + np.float32(shift)
        for _ in range(20):
            y = bncore.batch_norm_infer(x, np.zeros(64), np.ones(64), eps=0.0, n_threads=1)
            if not np.array_equal(y, x):
                wrong.append(shift)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_arrays_outlive_the_pool_and_the_interpreter():
    """One result outlives its pool, and another one lives until the process ends."""
    program = (
        "import numpy as np, bncore\n"
        "bncore.set_buffer_pool(1 << 26)\n"
        "x = np.ones((4, 64, 64, 64), np.float32)\n"
        "y, _ = bncore.batch_norm_train(x)\n"
        "bncore.set_buffer_pool(None)\n"
        "assert (y == 0).all()\n"
        "z = bncore.batch_norm_infer(x, np.zeros(64), np.ones(64), eps=0.0)\n"
        "assert (y == 0).all() and (z == 1).all()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "BNCORE_BACKEND": bncore.show_config("dicts")["backend"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pool_that_was_replaced_keeps_nothing(rng):
    x = large(rng)
    bncore.set_buffer_pool(1 << 28)
    old = buffer_pool.current
    kept, gone = (bncore.batch_norm_train(x)[0] for _ in range(2))
    bncore.set_buffer_pool(None)
    del gone
    assert old.idle_bytes() == 0
    bncore.set_buffer_pool(1 << 28)
    del kept
    assert old.idle_bytes() == 0
    assert buffer_pool.state()["idle_bytes"] == 0


def test_a_call_while_the_lock_is_held_above_it_does_without(rng):
    """A finalizer runs inside the pool and calls a function that takes memory from the pool."""
    x = large(rng)
    bncore.set_buffer_pool(1 << 26)
    with buffer_pool.current._lock:
        y, _ = bncore.batch_norm_train(x)
        assert buffer_pool.state()["idle_bytes"] == 0
        del y
    assert buffer_pool.state()["idle_bytes"] >= x.nbytes


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_memory_of_16_bit_results_is_used_again(dtype):
    x = np.ones((1 << 10, 1 << 10), dtype)
    bncore.set_buffer_pool(1 << 24)
    try:
        places = set()
        for view in (x, x[:, ::-1], x, x[:, ::-1]):
            y = bncore.batch_norm_infer(view, np.zeros(1 << 10), np.ones(1 << 10), eps=0.0)
            assert y.dtype == dtype and (y == 1.0).all() and not y.flags.owndata
            places.add(y.ctypes.data)
            del y
        assert len(places) == 1
    finally:
        bncore.set_buffer_pool(None)
