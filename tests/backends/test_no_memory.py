"""Memory that runs out in the midst of a call: MemoryError, never a SystemError or a crash.

Each request of the interpreter for memory fails in turn, by a hook that CPython brings for its own
tests. What the C library asks for itself is refused in `tests/c/no_memory.c`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

import variants

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="this Python is without _testcapi"
)

PROGRAM = """
import sys
import _testcapi
import numpy as np
import bncore

shape, dtype = {shape}, np.{dtype}
x = np.linspace(-1, 1, int(np.prod(shape)), dtype=dtype).reshape(shape)
weight, bias = np.ones(shape[1]), np.zeros(shape[1])
y, moments = bncore.batch_norm_train(x, weight, bias)
out = np.empty_like(x)
mean, var = moments.mean.copy(), moments.var()
calls = [
    lambda: bncore.batch_norm_train(x, weight, bias),
    lambda: bncore.batch_norm_train(x, weight, bias, out=out),
    lambda: bncore.batch_norm_infer(x, mean, var, weight, bias),
    lambda: bncore.batch_norm_train_backward(x, x, moments, weight, out=out),
    lambda: bncore.moments(x),
    lambda: bncore.mean_var(x, axis=0),
]
refused = 0
for call in calls:
    call()
    request = unheard = 0
    while unheard < 20:  # the call makes fewer requests than that
        error = None
        _testcapi.set_nomemory(request, request + 1)
        try:
            call()
        except BaseException as caught:
            error = caught
        _testcapi.remove_mem_hooks()
        if isinstance(error, MemoryError):
            refused += 1
            unheard = 0
            call()
        elif error is not None:
            sys.exit(f"request {{request}}: {{type(error).__name__}}: {{error}}")
        request += 1
        unheard += 1
print(refused)
"""


@pytest.mark.skipif("native" not in variants.FOUND.names(), reason="there is no extension")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (40, 300, 20)], ids=str)
def test_a_call_without_memory_raises_memory_error(shape, dtype):
    program = PROGRAM.format(shape=shape, dtype=dtype)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"BNCORE_BACKEND": "native"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10, "the hook refused next to nothing"
