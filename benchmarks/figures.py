"""Figures of the report that are no comparison of speed; a function each, plain data."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from bncore.programs.bench import check, peers
from bncore.programs.bench.cases import LAYOUTS, MAIN, SHAPES, Case
from bncore.programs.bench.plan import NETWORKS
from bncore.programs.bench.results import Row, geometric_mean, times_of
from bncore.programs.demo.timing import interleaved_times

MEAN_OVER_STD = (1.0, 1e2, 1e4, 1e6)
PRECISE = ("native", "numba", "twin", "numpy", "torch")  # whose accuracy is shown


def accuracy(progress: Callable[[str], None]) -> dict[str, list[float]]:
    """Largest error of training forward, in ulp, on four channels of 1e6 normal values."""
    worst: dict[str, list[float]] = {}
    for layout in LAYOUTS:
        for ratio in MEAN_OVER_STD:
            progress(f"accuracy, {layout}, mean/std {ratio:g}")
            case = Case("train", (16, 4, 250, 250), layout)
            p = replace(case.problem(), mean=ratio)
            expected = check.reference("train", p)
            for key in PRECISE:
                try:
                    peer = peers.load(key)
                except peers.Unavailable:
                    continue
                with peer.active(1):
                    outputs = peer.arrays(case, peer.call(case, p)(), p)
                name = f"{peer.name}, {layout}"
                worst.setdefault(name, []).append(check.error(outputs, expected, p))
    return worst


def subnormal_ratio(repeats: int = 15) -> dict[str, float]:
    """Time on subnormal input, in times that on normal input, of each operation."""
    native = peers.load(peers.OWN)
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    ratios = {}
    for operation in MAIN:
        case = Case(operation, (32, 256, 14, 14))
        normal, subnormal = case.problem(), case.problem()
        for array in (subnormal.x, subnormal.dy):
            array[...] = np.round(array * 1000.0) * tiny
        with native.active(1):
            calls = [native.call(case, p) for p in (normal, subnormal)]
            usual, slow = map(median, interleaved_times(calls, repeats))
        ratios[operation] = slow / usual
    return ratios


FIRST_CALL = """
import time
import numpy as np, bncore
x = np.ones((4, 3, 5, 5), np.float32)
start = time.perf_counter()
with bncore.use_backend("numba"):
    y, moments = bncore.batch_norm_train(x)
    forward = time.perf_counter()
    bncore.batch_norm_train_backward(x, x, moments)
print(forward - start, time.perf_counter() - forward)
"""


def numba_compile_time() -> dict[str, list[float]]:
    """Seconds of the first train and backward call in a fresh process, by state of the cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        return {
            state: [
                float(seconds)
                for seconds in subprocess.run(
                    [sys.executable, "-c", FIRST_CALL],
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()
            ]
            for state in ("nothing cached", "cached")
        }


def numba_against_native(rows: Sequence[Row]) -> float | None:
    """Numba's time in times that of native on ResNet-50's shapes, one thread, outputs given: the
    worst operation's geometric mean.
    """
    native, numba = (peers.PEERS[key].name for key in ("native", "numba"))
    by_operation: dict[tuple[str, str], list[float]] = {}
    for case, found in times_of(rows).items():
        if (
            case.shape not in SHAPES[NETWORKS[0]]
            or case.threads != 1
            or case.output != "given"
            or case.dtype != "float32"
        ):
            continue
        if {native, numba} <= found.keys() and case.operation in MAIN:
            ratio = found[numba].median / found[native].median
            by_operation.setdefault((case.operation, case.layout), []).append(ratio)
    return max(map(geometric_mean, by_operation.values()), default=None)
