"""Time bncore.torch's group, instance and layer norm against PyTorch's, in shapes of real networks.

Each case checks y and the gradients against float64 before it is timed.  The two libraries take
turns within one run, and a time is the median of their turns.  Each library has tensors of its own,
which the other's turn may push out of the caches.  With --warm each turn begins with a call that is
not timed, so that what fits the caches comes from there, as it does behind another layer.

    python benchmarks/norms.py [--quick] [--warm] [--threads N ...] [--only PART_OF_A_NAME]
                               [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

import bncore.torch

# In units of the largest value of each result; both libraries round float32.
CLOSE = {"y": 2e-6, "dx": 1e-5, "dweight": 1e-4, "dbias": 1e-4}


class Case(NamedTuple):
    """A layer of a network: its kind (groups, "instance" or "layer") and the shape of its input."""

    network: str
    kind: int | str
    shape: tuple[int, ...]
    quick: bool = False


CASES = [
    Case("nnU-Net 3D, first stage", "instance", (2, 32, 64, 64, 64)),
    Case("nnU-Net 3D, third stage", "instance", (2, 128, 16, 16, 16), True),
    Case("nnU-Net 3D, fifth stage", "instance", (2, 320, 8, 8, 8)),
    Case("style transfer", "instance", (4, 64, 128, 128)),
    Case("ResNet-50 with GroupNorm, stage 1", 32, (8, 256, 56, 56)),
    Case("ResNet-50 with GroupNorm, stage 2", 32, (8, 512, 28, 28)),
    Case("ResNet-50 with GroupNorm, stage 3", 32, (8, 1024, 14, 14), True),
    Case("ResNet-50 with GroupNorm, stage 4", 32, (8, 2048, 7, 7)),
    Case("U-Net of Stable Diffusion", 32, (2, 320, 64, 64)),
    Case("ViT-B/16", "layer", (8, 197, 768), True),
    Case("BERT-base", "layer", (16, 128, 768)),
    Case("GPT-2 medium", "layer", (4, 1024, 1024)),
    Case("ConvNeXt-T, stage 1", "layer", (8, 96, 56, 56)),
    Case("ConvNeXt-T, stage 3", "layer", (8, 384, 14, 14)),
]


def layouts(case: Case) -> list[str]:
    """Return the layouts in which the layer's input occurs."""
    if case.kind == "layer":  # a ConvNeXt permutes channels-last memory, which is contiguous then
        return ["channels last" if len(case.shape) == 4 else "tokens"]
    return ["NCHW", "channels last"]


def tensors(case: Case, layout: str) -> tuple[torch.Tensor, ...]:
    """Make x, weight and bias."""
    torch.manual_seed(0)
    x = torch.randn(case.shape)
    if case.kind == "layer" and len(case.shape) == 4:
        x = x.permute(0, 2, 3, 1).contiguous()
    elif layout == "channels last":
        kind = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        x = x.contiguous(memory_format=kind)
    channels = x.shape[-1] if case.kind == "layer" else x.shape[1]
    return x, torch.rand(channels) + 0.5, torch.randn(channels)


def call(library: Any, case: Case) -> Callable[..., torch.Tensor]:
    """Return the layer as a function of x, weight and bias."""
    if case.kind == "layer":
        return lambda x, w, b: library.layer_norm(x, w.shape, w, b)
    if case.kind == "instance":
        return lambda x, w, b: library.instance_norm(x, None, None, w, b)
    return lambda x, w, b: library.group_norm(x, case.kind, w, b)


class Layer:
    """A layer of one library with its input, ready for both directions."""

    def __init__(self, library: Any, case: Case, given: tuple[torch.Tensor, ...]) -> None:
        self.function = call(library, case)
        self.inputs = tuple(one.clone().requires_grad_() for one in given)
        self.y = self.function(*self.inputs)
        generator = torch.Generator().manual_seed(1)
        dy = torch.randn(self.y.shape, generator=generator, dtype=self.y.dtype)
        self.dy = torch.empty_like(self.y).copy_(dy)  # in y's own memory order

    def forward(self) -> None:
        with torch.no_grad():
            self.function(*self.inputs)

    def backward(self) -> None:
        self.gradients()

    def gradients(self) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(self.y, self.inputs, self.dy, retain_graph=True)

    def results(self) -> dict[str, np.ndarray]:
        values = (self.y.detach(), *self.gradients())
        return {name: v.numpy() for name, v in zip(CLOSE, values, strict=True)}


def check(layer: Layer, case: Case, given: tuple[torch.Tensor, ...]) -> None:
    """Compare a layer with PyTorch in float64."""
    exact = Layer(functional, case, tuple(one.double() for one in given))
    exact.dy = layer.dy.double()
    for name, want in exact.results().items():
        error = np.abs(layer.results()[name] - want).max() / np.abs(want).max()
        if not error <= CLOSE[name]:
            raise SystemExit(f"{case.network}: {name} is wrong by {error:.1e} of its largest value")


def medians(calls: list[Callable[[], None]], seconds: float, warm: bool) -> list[float]:
    """Time calls that take turns, and return the median of each."""
    for one in calls * 2:
        one()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for one, found in zip(calls, times, strict=True):
            if warm:
                one()
            start = time.perf_counter()
            one()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def measure(
    case: Case, layout: str, threads: int, seconds: float, warm: bool
) -> list[dict[str, Any]]:
    """Return a row for each direction."""
    torch.set_num_threads(threads)
    given = tensors(case, layout)
    layers = [Layer(library, case, given) for library in (functional, bncore.torch)]
    check(layers[1], case, given)
    rows = []
    for direction in ("forward", "backward"):
        calls = [getattr(layer, direction) for layer in layers]
        torch_time, own_time = medians(calls, seconds, warm)
        row = {
            "network": case.network, "kind": str(case.kind), "shape": case.shape, "layout": layout,
            "threads": threads, "warm": warm, "direction": direction,
            "torch": torch_time, "bncore": own_time,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{case.network:34} {layout:14} {threads} {direction:9}"
            f"{torch_time * 1e6:10.0f} us {own_time * 1e6:10.0f} us {torch_time / own_time:7.2f}x",
            flush=True,
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> None:
    """Print the geometric mean of the ratios, and the least, for each kind and in all."""
    for name in ("instance", "group", "layer", "all"):
        some = [
            r for r in rows if name in ("all", r["kind"]) or (name, r["kind"]) == ("group", "32")
        ]
        if some:
            ratios = np.array([row["torch"] / row["bncore"] for row in some])
            mean = float(np.exp(np.log(ratios).mean()))
            print(f"{name:9} geometric mean {mean:5.2f}x, least {ratios.min():5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="time three layers, one thread")
    parser.add_argument("--warm", action="store_true", help="begin each turn with an untimed call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="time networks with this in their name")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each pair of times")
    parser.add_argument("--json", type=Path, help="where to write all times")
    given = parser.parse_args()
    rows = []
    for threads in [1] if given.quick else given.threads:
        for case in CASES:
            if (given.quick and not case.quick) or given.only not in case.network:
                continue
            for layout in layouts(case):
                seconds = 0.1 if given.quick else given.seconds
                rows += measure(case, layout, threads, seconds, given.warm)
    summary(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
