"""Measure what is fused with batch norm, and what a returned array costs; print both tables.

    python benchmarks/fused.py [--threads N] [--repeats N]

y = relu(bn(x) + residual) in training, forward and backward, float32: bncore in one call; bncore's
batch norm call plus a read of one more array (what fusion must add at least); PyTorch's separate
operations and ``torch.compile`` (returned outputs; bncore writes into given ones and is shown
returned with its buffer pool as well).  Everybody takes turns in one process; medians.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import geometric_mean, median
from typing import Any

import numpy as np

import bncore
from bncore.bench.cases import EPS, LAYOUTS, SHAPES, Problem, named
from bncore.bench.tables import Table

Calls = dict[str, Callable[[], Any]]
NETWORK = "resnet50_n32"


def own_calls(p: Problem, r: np.ndarray, dr: np.ndarray, threads: int) -> tuple[Calls, Calls]:
    """bncore: fused, with the pool, and the parts of a bound from below."""
    common = {"axis": p.axis, "eps": EPS, "n_threads": threads}
    fused = {**common, "activation": "relu", "residual": r}
    x, w, b = p.x, p.weight, p.bias
    moments = bncore.moments(x, axis=p.axis)
    forward = {
        "fused": lambda: bncore.batch_norm_train(x, w, b, out=p.out, **fused),
        "fused, pool": lambda: bncore.batch_norm_train(x, w, b, **fused),
        "bn": lambda: bncore.batch_norm_train(x, w, b, out=p.out, **common),
        "read": lambda: bncore.moments(r, axis=p.axis, n_threads=threads),
    }
    backward = {
        "fused": lambda: bncore.batch_norm_train_backward(
            p.dy, x, moments, w, bias=b, out=p.out, dresidual=dr, **fused
        ),
        "bn": lambda: bncore.batch_norm_train_backward(p.dy, x, moments, w, out=p.out, **common),
        "read": forward["read"],
    }
    return forward, backward


def torch_calls(p: Problem, r: np.ndarray, threads: int) -> tuple[Calls, Calls]:
    """PyTorch, eager and compiled; channels last is a view of NHWC memory."""
    import torch

    torch.set_num_threads(threads)
    x, residual, dy = (torch.from_numpy(a).movedim(p.axis, 1) for a in (p.x, r, p.dy))
    w, b = torch.from_numpy(p.weight), torch.from_numpy(p.bias)
    aten = torch.ops.aten

    def forward(x: Any, residual: Any, w: Any, b: Any) -> Any:
        y = torch.nn.functional.batch_norm(x, None, None, w, b, True, 0.1, EPS)
        return torch.relu(y + residual)

    def backward(dy: Any, y: Any, x: Any, w: Any, mean: Any, invstd: Any) -> Any:
        g = aten.threshold_backward(dy, y, 0)
        saved = (None, None, mean, invstd, True, EPS, [True, True, True])
        return (*aten.native_batch_norm_backward(g, x, w, *saved), g)

    saved = torch.native_batch_norm(x, w, b, None, None, True, 0.1, EPS)[1:]
    y = forward(x, residual, w, b)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [torch.compile(f, dynamic=False, fullgraph=True) for f in (forward, backward)]
        made[0](x, residual, w, b), made[1](dy, y, x, w, *saved)
    return (
        {
            "PyTorch": lambda: forward(x, residual, w, b),
            "torch.compile": lambda: made[0](x, residual, w, b),
        },
        {
            "PyTorch": lambda: backward(dy, y, x, w, *saved),
            "torch.compile": lambda: made[1](dy, y, x, w, *saved),
        },
    )


def check(p: Problem, r: np.ndarray, y: np.ndarray) -> None:
    """The fused result is that of separate operations, to the bit."""
    bn, _ = bncore.batch_norm_train(p.x, p.weight, p.bias, axis=p.axis, eps=EPS)
    assert np.array_equal(y, np.maximum(bn + r, np.float32(0)))


def medians(calls: Calls, repeats: int) -> dict[str, float]:
    """Seconds of each call, in turns; the pool is on for the calls that name it."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            bncore.set_buffer_pool((1 << 30) if name.endswith("pool") else None)
            call()
            start = time.perf_counter()
            result = call()
            taken[name].append(time.perf_counter() - start)
            del result
    bncore.set_buffer_pool(None)
    return {name: median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    import torch

    head = ["layout, shape", "fused ms", "of bn + read", "PyTorch", "torch.compile"]
    pooled = Table("", ["layout, shape", "given, ms", "pool", "NumPy's allocation"])
    for place, direction in enumerate(("forward", "backward")):
        table = Table("", list(head))
        for layout in LAYOUTS:
            ratios: list[tuple[float, float, float]] = []
            for shape in SHAPES[NETWORK]:
                p = Problem(shape, layout)
                r, dr = p.dy.copy(), np.zeros_like(p.x)
                own = own_calls(p, r, dr, options.threads)[place]
                with torch.no_grad():
                    calls = own | torch_calls(p, r, options.threads)[place]
                    own["fused"]()
                    if direction == "forward":
                        check(p, r, p.out)
                    times = medians(calls, options.repeats)
                best = times.get("fused, pool", times["fused"])
                row = (
                    times["fused"] / (times["bn"] + times["read"]),
                    times["PyTorch"] / best,
                    times["torch.compile"] / best,
                )
                ratios.append(row)
                table.lines.append(
                    [f"{layout}, {named(shape)}", f"{times['fused'] * 1e3:.2f}"]
                    + [f"{value:.2f}×" for value in row]
                )
            means = [geometric_mean(column) for column in zip(*ratios, strict=True)]
            table.lines.append(
                [f"{layout}, geometric mean", ""] + [f"{value:.2f}×" for value in means]
            )
        print(f"\n{direction}, {options.threads} thread(s)\n\n{table.markdown()}", flush=True)

    for layout in LAYOUTS:
        p = Problem((32, 256, 56, 56), layout)
        common = {"axis": p.axis, "n_threads": options.threads}
        times = medians(
            {
                "given": lambda p=p, c=common: bncore.batch_norm_train(p.x, out=p.out, **c),
                "pool": lambda p=p, c=common: bncore.batch_norm_train(p.x, **c),
                "fresh": lambda p=p, c=common: bncore.batch_norm_train(p.x, **c),
            },
            options.repeats * 3,
        )
        pooled.lines.append(
            [f"{layout}, {named(p.shape)}", f"{times['given'] * 1e3:.2f}"]
            + [f"{times[name] / times['given']:.2f}×" for name in ("pool", "fresh")]
        )
    print(f"\nreturned arrays\n\n{pooled.markdown()}")


if __name__ == "__main__":
    main()
