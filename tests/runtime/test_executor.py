"""How work is divided and distributed, tested with a host's own parallel-for, on any machine."""

from __future__ import annotations

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from variants import FOUND

pytestmark = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="the C interface needs the native extension"
)

if "native" in FOUND.names():
    import host

THREADS = (1, 2, 3, 5, 8, 16, 31, 64, 100, 128)
THREAD_VALUES = 32 * 1024  # fewer values than this per thread do not wake one

# (outer, channels, inner): ResNet-50 at batch 32 in both layouts, few channels, one channel.
SHAPES = [
    (32, 64, 12544), (32, 64, 3136), (32, 256, 3136), (32, 512, 784), (32, 1024, 196),
    (32, 2048, 49),
    (401408, 64, 1), (100352, 256, 1), (25088, 512, 1), (6272, 1024, 1), (1568, 2048, 1),
    (4, 3, 262144), (1, 1, 4194304), (1048576, 3, 1), (4194304, 1, 1),
]  # fmt: skip

# Arguments of the operations: x's size, or per channel (in, out).
OPERATIONS = {
    "moments": "ooX",
    "normalize": "YXiiii",
    "train": "YooXii",
    "grad_sums": "ooXXii",
    "train_backward": "YooXXiii",
    "infer_backward": "YooXXiii",
}


class Call:
    """An operation on arrays of a shape; x needs no pages of memory until it is written."""

    def __init__(self, shape, rng=None, dtype=np.float32):
        self.shape, self.dtype = shape, dtype
        size = math.prod(shape)
        self.x = np.zeros(size, dtype) if rng is None else rng.standard_normal(size).astype(dtype)
        self.given = np.linspace(0.5, 2.0, shape[1])

    def run(self, name, n_threads, parallel_for):
        results = []

        def argument(kind):
            if kind == "X":
                return self.x
            if kind == "i":
                return self.given
            results.append(np.zeros_like(self.x if kind == "Y" else self.given))
            return results[-1]

        p = host.problem(self.shape, self.dtype, n_threads)
        kept = host.with_executor(p, parallel_for)
        assert host.run(name, p, *map(argument, OPERATIONS[name])) == 0
        assert kept is not None
        return results


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_thread_gets_work(shape):
    """As many tasks as threads, from 1 to 128, as far as 64 segments of a channel reach."""
    call = Call(shape)
    for name in OPERATIONS:
        for n_threads in THREADS:
            seen = []
            call.run(
                name, n_threads, lambda tasks, threads, _, seen=seen: seen.append((tasks, threads))
            )
            useful = min(n_threads, max(math.prod(shape) // THREAD_VALUES, 1))
            if useful == 1:
                assert seen == [], (name, n_threads)
                continue
            assert 1 <= len(seen) <= 2, "one parallel loop, or one per pass over memory"
            for tasks, threads in seen:
                assert threads == useful, (name, n_threads)
                assert tasks >= min(useful, 48), (name, n_threads, tasks)


@pytest.mark.parametrize(
    "shape", [(8, 24, 784), (3001, 64, 1), (9001, 3, 5), (2, 2, 40001)], ids=str
)
def test_any_order_of_tasks_gives_the_same_bits(shape, rng):
    """The host may run the tasks backwards, and on threads of its own."""
    call = Call(shape, rng)

    def backwards(tasks, _threads, task):
        for i in reversed(range(tasks)):
            task(i)

    def pooled(tasks, threads, task):
        with ThreadPoolExecutor(min(threads, 4)) as pool:
            list(pool.map(task, range(tasks)))

    for name in OPERATIONS:
        expected = Call(shape)
        expected.x, expected.given = call.x, call.given
        expected = expected.run(name, 1, None)
        for n_threads in (2, 7, 128):
            for parallel_for in (backwards, pooled):
                for got, want in zip(
                    call.run(name, n_threads, parallel_for), expected, strict=True
                ):
                    assert got.tobytes() == want.tobytes(), (name, n_threads, parallel_for)


def test_own_scratch_is_enough_and_too_little_is_refused(rng):
    shape = (40, 7, 1000)
    call = Call(shape, rng)
    expected = call.run("train", 1, None)
    p = host.problem(shape)
    need = host.library().bncore_scratch_size(ctypes.byref(p))
    memory = np.full(need // 8 + 8, 7.0)
    p.scratch, p.scratch_size = memory.ctypes.data, need
    y, mean, m2 = np.zeros_like(call.x), np.zeros(7), np.zeros(7)
    assert host.run("train", p, y, mean, m2, call.x, call.given, call.given) == 0
    assert y.tobytes() == expected[0].tobytes()
    assert (memory[need // 8 :] == 7.0).all(), "nothing is written behind the scratch"
    p.scratch_size = need - 1
    y[:] = 7.0
    status = host.run("train", p, y, mean, m2, call.x, call.given, call.given)
    assert b"scratch" in host.library().bncore_status_string(status)
    assert (y == 7.0).all()


@pytest.mark.parametrize("inner", [1, 3, 15, 16, 4096])
@pytest.mark.parametrize("channels", [2, 3, 17, 255, 300])
@pytest.mark.parametrize("outer", [10, 10**6, 10**9])
def test_scratch_is_no_more_than_the_header_says(outer, channels, inner):
    size = host.library().bncore_scratch_size(ctypes.byref(host.problem((outer, channels, inner))))
    fixed, per_column = 8 * 1024, (64 * 4 + 16) * 8
    columns = 1 if inner >= 16 else inner
    if inner < 16 and channels * inner <= 256:
        columns = 240
        assert size <= 9 * 2**20
    assert 0 < size <= fixed + channels * columns * per_column


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer": -1}, b"size"),
        ({"outer": 2**40, "inner": 2**40}, b"size"),
        ({"dtype": 100}, b"dtype"),
        ({"eps": -1.0}, b"eps"),
        ({"eps": math.nan}, b"eps"),
        ({"n_threads": 0}, b"n_threads"),
    ],
    ids=str,
)
def test_a_problem_that_makes_no_sense_is_refused(change, message):
    p = host.problem((4, 3, 5))
    for field, value in change.items():
        setattr(p, field, value)
    y, c = np.full(60, 7.0, np.float32), np.ones(3)
    for arguments in (
        ("train", y, c, c, y, c, c),
        ("moments", c, c, y),
        ("normalize", y, y, c, c, c, c),
    ):
        status = host.run(arguments[0], p, *arguments[1:])
        assert message in host.library().bncore_status_string(status)
    assert (y == 7.0).all()
    assert host.library().bncore_scratch_size(ctypes.byref(p)) == 0


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 3e38), (np.float64, 1e308)])
def test_a_fusion_that_makes_no_sense_is_refused(dtype, most):
    p = host.problem((4, 3, 5), dtype)
    y, c = np.full(60, 7.0, dtype), np.ones(3)
    for activation, slope in ((3, 0.1), (-1, 0.1), (2, math.nan), (2, math.inf), (2, 10 * most)):
        p.fusion = ctypes.pointer(host.fusion(activation, slope))
        for arguments in (("train", y, c, c, y, c, c), ("moments", c, c, y)):
            status = host.run(arguments[0], p, *arguments[1:])
            assert b"activation" in host.library().bncore_status_string(status)
    assert (y == 7.0).all()
    # Only a leaky relu has a slope.
    for activation, slope in ((2, most), (1, math.nan), (0, math.nan)):
        p.fusion = ctypes.pointer(host.fusion(activation, slope))
        assert host.run("train", p, y, c, c, y, c, c) == 0
        assert np.isfinite(y).all()


def test_own_scratch_is_enough_for_what_is_fused(rng):
    shape = (40, 70, 3)
    x, dy, residual = rng.standard_normal((3, *shape)).astype(np.float32)
    given = [np.linspace(0.5, 2.0, 70) for _ in range(3)]  # mean, var, weight
    results = []
    for own in (False, True):
        p = host.problem(shape)
        fusion = host.fusion(1, residual=residual.ctypes.data, bias=given[0].ctypes.data)
        p.fusion = ctypes.pointer(fusion)
        memory = np.full(1 << 16, 7.0)
        if own:
            need = host.library().bncore_scratch_size(ctypes.byref(p))
            p.scratch, p.scratch_size = memory.ctypes.data, need
        dx, sum_dy, sum_dy_xhat = np.zeros_like(x), np.zeros(70), np.zeros(70)
        assert host.run("train_backward", p, dx, sum_dy, sum_dy_xhat, dy, x, *given) == 0
        assert not own or (memory[need // 8 :] == 7.0).all()
        results.append(dx.tobytes() + sum_dy.tobytes() + sum_dy_xhat.tobytes())
    assert results[0] == results[1]
