"""With out= given, no operation allocates anything of x's size."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tolerances
import variants

SCRIPT = textwrap.dedent(
    """
    import re, sys
    import numpy as np
    import bncore

    def peak():  # not ru_maxrss, which a child inherits from whoever started it
        with open("/proc/self/status") as status:
            return int(re.search("VmHWM:[^0-9]*([0-9]+) kB", status.read())[1]) * 1024

    def operations(x, dy, out, axis, threads):
        one = {"axis": axis, "n_threads": threads}
        y, moments = bncore.batch_norm_train(x, out=out, **one)
        mean, var = moments.mean, moments.var()
        bncore.batch_norm_train_backward(dy, x, moments, out=out, **one)
        bncore.batch_norm_infer(x, mean, var, out=out, **one)
        bncore.batch_norm_infer_backward(dy, x, mean, var, out=out, **one)
        fused = {"activation": "relu", "residual": dy, **one}
        bncore.batch_norm_train(x, out=out, **fused)
        bncore.batch_norm_train_backward(dy, x, moments, out=out, **fused)
        bncore.batch_norm_train_backward(dy, x, moments, out=out, dresidual=dy, **fused)
        bncore.batch_norm_infer(x, mean, var, out=out, **fused)
        bncore.batch_norm_infer_backward(dy, x, mean, var, out=out, **fused)
        bncore.moments(x, **one)
        bncore.normalize(x, moments, out=out, **one)
        sums = bncore.grad_sums(dy, x, moments, **one)
        bncore.grad_input(dy, x, moments, sums, out=out, **one)
        bncore.mean_var(x, axis=tuple(i for i in range(4) if i != axis), n_threads=threads)

    shape, axis = ((16, 64, 128, 128), 1) if sys.argv[1] == "NCHW" else ((16, 128, 128, 64), 3)
    small = np.ones((2, 64, 32, 32) if axis == 1 else (2, 32, 32, 64), np.float32)
    for threads in (1, 2):
        operations(small, small.copy(), small.copy(), axis, threads)
    x, dy, out = (np.full(shape, value, np.float32) for value in (1.0, 2.0, 3.0))
    before = peak()
    for threads in (1, 2):
        operations(x, dy, out, axis, threads)
    if sys.argv[2] == "leaking":
        np.full(shape, 4.0, np.float32)
    print(peak() - before)
    """
)


def growth(variant: variants.Variant, layout: str, call: str = "as it is") -> int:
    """Return by how many bytes the operations raise the peak memory of a new process."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, layout, call],
        env={**os.environ, **variant.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("variant", variants.FOUND.present, ids=str)
def test_growth(variant, layout):
    """Every operation on 64 MiB, on one thread and two."""
    assert growth(variant, layout) <= tolerances.HEAP_GROWTH_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_an_array_too_many_is_seen():
    """It works even if this process has been much larger than the one that is measured."""
    np.full(1 << 26, 1.0)  # 512 MiB
    leaked = growth(variants.FOUND.present[-1], "NCHW", "leaking")
    assert leaked > 60 << 20 > tolerances.HEAP_GROWTH_BYTES
