"""Results do not depend on the caller's floating-point environment, and do not change it."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import arrays
import bncore
from bncore.arguments import float_environment
from calls import CALLS
from checkout import COMPILER

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux",
    reason="the test sets MXCSR in glibc's fenv_t",
)

DEFAULT, MXCSR, BYTES = 0x1F80, slice(28, 32), 64
FLAGS = 0x3F
STATES = {
    "subnormal numbers are zero": DEFAULT | 0x8040,
    "towards zero": DEFAULT | 0x6000,
    "upwards": DEFAULT | 0x4000,
}
library = ctypes.CDLL(None)


def mxcsr() -> int:
    environment = ctypes.create_string_buffer(BYTES)
    library.fegetenv(environment)
    return int.from_bytes(environment.raw[MXCSR], "little")


def set_mxcsr(value: int) -> None:
    environment = ctypes.create_string_buffer(BYTES)
    library.fegetenv(environment)
    changed = bytearray(environment.raw)
    changed[MXCSR] = value.to_bytes(4, "little")
    library.fesetenv(ctypes.create_string_buffer(bytes(changed), BYTES))


@contextmanager
def state(value: int):
    before = mxcsr()
    set_mxcsr(value)
    try:
        yield
    finally:
        after = mxcsr()
        set_mxcsr(before)
    assert after & ~FLAGS == value & ~FLAGS, "the caller's environment has changed"


def subnormal(rng, shape, dtype) -> np.ndarray:
    """Values around the least normal number of the dtype, most of them below it."""
    tiny = np.finfo(np.float32 if dtype == arrays.bfloat16 else dtype).tiny  # of one exponent range
    return (rng.standard_normal(shape) * float(tiny) / 4).astype(dtype)


class Everything:
    """Each function, on subnormal data and parameters."""

    def __init__(self, rng, dtype, shape=(16, 24, 28, 28)):
        self.x, self.dy = subnormal(rng, shape, dtype), subnormal(rng, shape, dtype)
        self.weight, self.bias = subnormal(rng, (2, shape[1]), np.float32)
        self.mean = subnormal(rng, shape[1], np.float32)
        self.var = rng.uniform(0.5, 2.0, shape[1]).astype(np.float32)
        self.running = np.stack([self.mean, self.var])

    def results(self, n_threads: int, axis: int, eps: float = 1e-30) -> list[bytes]:
        t = {"n_threads": n_threads, "axis": axis}
        y, moments = bncore.batch_norm_train(self.x, self.weight, self.bias, eps=eps, **t)
        sums = bncore.grad_sums(self.dy, self.x, moments, eps=eps, **t)
        values = [y, moments.mean, moments.m2, sums.sum_dy, sums.sum_dy_xhat]
        values += bncore.batch_norm_train_backward(
            self.dy, self.x, moments, self.weight, eps=eps, **t
        )
        values.append(
            bncore.batch_norm_infer(self.x, self.mean, self.var, self.weight, self.bias, **t)
        )
        values += bncore.batch_norm_infer_backward(
            self.dy, self.x, self.mean, self.var, self.weight, **t
        )
        running_mean, running_var = self.running.copy()
        bncore.update_running_stats(running_mean, running_var, moments)
        return [np.asarray(value).tobytes() for value in (*values, running_mean, running_var)]


@pytest.mark.parametrize("dtype", [*arrays.FLOATS, *arrays.SIXTEEN_BITS])
@pytest.mark.parametrize("value", STATES.values(), ids=STATES)
def test_the_bits_of_every_backend(backend, rng, dtype, value):
    data = Everything(rng, dtype, (16, 24, 28, 28) if backend.name == "native" else (4, 24, 9, 9))
    for axis in (1, -1):
        if axis == -1:
            data.x, data.dy = (np.moveaxis(a, 1, -1).copy() for a in (data.x, data.dy))
        expected = data.results(1, axis)
        for n_threads in (1, 2):
            with state(value):
                got = data.results(n_threads, axis)
            assert got == expected, (axis, n_threads)


def bytes_of(result) -> list[bytes]:
    """Return the results of a function, or the state of a layer, as bytes."""
    if isinstance(result, bncore.Moments):
        return bytes_of((result.count, result.mean, result.m2))
    if isinstance(result, bncore.GradSums):
        return bytes_of((result.sum_dy, result.sum_dy_xhat))
    if isinstance(result, tuple | list):
        return [one for value in result for one in bytes_of(value)]
    return [np.asarray(result).tobytes()]


def as_subnormal(name: str, value):
    """An argument near the least normal number of its dtype; what divides stays as it is."""
    if isinstance(value, np.ndarray) and name not in ("var", "running_var"):
        return (value * float(np.finfo(value.dtype).tiny) / 4).astype(value.dtype)
    return value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CALLS)
def test_the_bits_of_every_function(backend, name, dtype):
    call = CALLS[name]
    usual = call.arguments(dtype=dtype)
    for given in (usual, {k: as_subnormal(k, v) for k, v in usual.items()}):

        def results(given=given) -> list[bytes]:
            own = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()}
            returned = call(own)
            written = [v for k, v in own.items() if k.startswith("running_")]
            return bytes_of([*bytes_of(() if returned is None else returned), *written])

        expected = results()
        for what, value in STATES.items():
            with state(value):
                got = results()
            assert got == expected, what


@pytest.mark.parametrize("value", STATES.values(), ids=STATES)
def test_the_bits_of_statistics(rng, value):
    """Test what only Python computes: merging moments and sums, variances, conversions."""
    for scale in (1.0, 1e-308):
        means, m2s = rng.standard_normal((2, 50)) * scale, rng.uniform(0.0, 3.0, (2, 50)) * scale
        small = subnormal(rng, 50, np.float32)

        def results(means=means, m2s=m2s, small=small) -> list[bytes]:
            a, b = (
                bncore.Moments(n, *v)
                for n, v in zip((3, 7), zip(means, m2s, strict=True), strict=True)
            )
            sums = bncore.GradSums(*means)
            converted = bncore.Moments(3, small, abs(small))
            return bytes_of(
                [a.merge(b), sums.merge(sums), sums + bncore.GradSums(*m2s), converted]
                + [f for m in (a, b) for f in (m.var(), m.var(1), m.std(), m.invstd(1e-300))]
            )

        expected = results()
        with state(value):
            got = results()
        assert got == expected


@pytest.mark.parametrize("value", STATES.values(), ids=STATES)
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"debias": True}], ids=str)
def test_the_bits_of_a_layer(backend, rng, settings, value):
    x, dy = rng.standard_normal((2, 3, 6, 8, 5)).astype(np.float32)

    def results() -> list[bytes]:
        layer = bncore.BatchNorm(8, **settings)
        values = []
        for one in x:
            values += [layer(one), layer.backward(dy[0])]
        values += [layer.running_mean, layer.running_var, layer.eval()(x[0])]
        return bytes_of(values)

    expected = results()
    with state(value):
        got = results()
    assert got == expected


def test_threads_created_in_another_environment(backend, rng):
    """A thread that the executor creates inherits the environment of its creator."""
    data = Everything(rng, np.float32, (32, 24, 28, 28))
    expected = data.results(1, 1)
    with state(STATES["subnormal numbers are zero"]):
        for n_threads in (3, 6, 9):
            assert data.results(n_threads, 1) == expected


def test_arguments_that_are_repaired(backend, rng):
    """Python code converts arguments that are not canonical."""
    data = Everything(rng, np.float32, (4, 6, 5, 5))
    expected = data.results(1, 1)
    data.x = data.x.astype(">f4")
    data.weight = np.repeat(data.weight, 2)[::2]
    data.bias = data.bias.astype(">f4")
    y = np.frombuffer(expected[0], np.float32).astype(">f4").tobytes()
    for value in (DEFAULT, *STATES.values()):
        with state(value):
            got = data.results(1, 1)
        assert got[0] in (y, expected[0])
        assert got[1:5] == expected[1:5]


def test_status_flags_stay_as_they_were(rng):
    if bncore.backends.native_module() is None:
        pytest.skip("the native module is missing")
    x = np.full((4, 8, 5, 5), np.inf, np.float32)
    with bncore.use_backend("native"), state(DEFAULT):
        bncore.batch_norm_train(x)
        set_mxcsr(DEFAULT)
        bncore.batch_norm_train(x, n_threads=1)
        invalid = mxcsr() & 1
    assert not invalid


def test_each_thread_of_the_caller_keeps_its_own(backend, rng):
    data, seen = Everything(rng, np.float32, (8, 24, 28, 28)), {}
    expected = data.results(1, 1)

    def call(value: int) -> None:
        set_mxcsr(value)
        seen[value] = (data.results(2, 1) == expected, mxcsr() & ~FLAGS)

    threads = [threading.Thread(target=call, args=(value,)) for value in STATES.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {value: (True, value) for value in STATES.values()}


def test_the_default_environment_is_what_the_c_library_says(tmp_path, monkeypatch):
    """Some C libraries have a variable for the default, and would read from the address -1."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "fenv.so"
    for name in ("_FE_DFL_ENV", "__fe_dfl_env"):
        source = f"const char {name}[64] = {{1}};"
        command = [COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
        subprocess.run(command, input=source, text=True, check=True)
        loaded = ctypes.CDLL(str(library))
        address = ctypes.addressof(ctypes.c_char.in_dll(loaded, name))
        assert float_environment._default(loaded).value == address
        library = tmp_path / "another.so"
    without = ctypes.CDLL(ctypes.util.find_library("c"))
    assert float_environment._default(without).value == ctypes.c_void_p(-1).value
    monkeypatch.setattr(sys, "platform", "haiku")
    assert float_environment._default(without) is None
