"""The measurements behind the README's table, a function each; they return plain data."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from statistics import median, quantiles
from typing import Any

import numpy as np

import bncore
from bncore.demo.timing import interleaved_times
from cases import LAYOUTS, SHAPES, Problem
from check import assert_right, error
from contestants import Contestant, contestants, native_module, torch_module

NETWORK = "resnet50_n32"
OPERATIONS = ("train", "infer", "train_backward")
MEAN_OVER_STD = (1.0, 1e2, 1e4, 1e6)


def machine() -> dict[str, str]:
    """Where and with what the figures were measured."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            names = [line.split(":", 1)[1].strip() for line in cpuinfo if "model name" in line]
        processor = names[0] if names else processor
    except OSError:
        pass
    facts = {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "bncore": f"{bncore.__version__} ({native_module().isa()})",
    }
    for package in ("numpy", "numba", "torch"):
        if package != "torch" or torch_module():
            facts[package] = version(package)
    return facts


def bound(contestant: Contestant, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call with its contestant chosen; the choice costs a microsecond or so."""

    def run() -> Any:
        with contestant.active(1):
            return call()

    return run


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return {"median": median(seconds), "low": low, "high": high}


def speed(repeats: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time every operation, layout and shape, one thread; contestants in turn, results checked."""
    who = [c for c in contestants() if c.name != "bncore numpy"]
    rows = []
    for operation in OPERATIONS:
        for layout in LAYOUTS:
            for shape in SHAPES[NETWORK]:
                progress(f"{operation}, {layout}, {'x'.join(map(str, shape))}")
                p = Problem(shape, layout)
                calls = []
                for contestant in who:
                    with contestant.active(1):
                        call = contestant.call(operation, p)
                        assert_right(contestant, operation, p, call())
                    calls.append(bound(contestant, call))
                times = interleaved_times(calls, repeats)
                rows.append(
                    {
                        "operation": operation,
                        "layout": layout,
                        "shape": shape,
                        "bytes": p.minimal_bytes(operation),
                        "seconds": {
                            c.name: spread(taken) for c, taken in zip(who, times, strict=True)
                        },
                    }
                )
    return rows


def accuracy(progress: Callable[[str], None]) -> dict[str, list[float]]:
    """Largest error of training forward, in ulp, on four channels of 1e6 normal values."""
    worst: dict[str, list[float]] = {}
    for ratio in MEAN_OVER_STD:
        progress(f"accuracy at mean/std {ratio:g}")
        for layout in LAYOUTS:
            p = Problem((16, 4, 250, 250), layout, mean=ratio, std=1.0)
            for contestant in contestants():
                with contestant.active(1):
                    ulp = error(contestant, "train", p, contestant.call("train", p)())
                worst.setdefault(f"{contestant.name}, {layout}", []).append(ulp)
    return worst


def tiny_call(repeats: int = 41, calls: int = 500) -> dict[str, float]:
    """Seconds of one training call on 1 x 16 x 4 x 4, the output returned and not given."""
    p = Problem((1, 16, 4, 4))
    functions: dict[str, Callable[[], Any]] = {
        "bncore": lambda: bncore.batch_norm_train(p.x, p.weight, p.bias, n_threads=1)
    }
    torch = torch_module()
    if torch:
        torch.set_num_threads(1)
        x, w, b = map(torch.from_numpy, (p.x, p.weight, p.bias))
        functions["PyTorch"] = lambda: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5)

    def many(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                function()

        return run

    times = interleaved_times([many(f) for f in functions.values()], repeats)
    return {name: median(taken) / calls for name, taken in zip(functions, times, strict=True)}


def subnormal_ratio(repeats: int = 15) -> dict[str, float]:
    """Time on subnormal input, in times that on normal input, of each operation."""
    normal, subnormal = Problem((32, 256, 14, 14)), Problem((32, 256, 14, 14))
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    for array in (subnormal.x, subnormal.dy):
        array[...] = np.round(array * 1000.0) * tiny
    native = contestants()[0]
    ratios = {}
    for operation in OPERATIONS:
        calls = [native.call(operation, p) for p in (normal, subnormal)]
        with native.active(1):
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


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(rows: list[dict[str, Any]], operation: str, layout: str, other: str) -> dict[Any, float]:
    """For each shape, the time of `other` in times that of bncore native."""
    return {
        row["shape"]: row["seconds"][other]["median"] / row["seconds"]["bncore native"]["median"]
        for row in rows
        if (row["operation"], row["layout"]) == (operation, layout) and other in row["seconds"]
    }
