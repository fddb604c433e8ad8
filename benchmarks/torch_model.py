"""A ResNet-50 before and after `bncore.torch.convert`: time, memory and error of a training step.

    python benchmarks/torch_model.py [--batch 8] [--size 224] [--threads 1] [--steps 5] [--write]
    python benchmarks/torch_model.py --executors torch,own,openmp --threads 2 [--busy 2]

The network is defined here (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
table 1), its weights are random.  Three networks of the same weights: PyTorch's batch norm; that
after `convert`; and with `BatchNormReLU` and `BatchNormAddReLU` as well.  Time: of whole steps
(forward and backward), in turns in one process, medians; the share of batch norm (with the ReLU and
the addition, which the fused modules do too) by PyTorch's profiler.  Memory: the peak of a fresh
process each.  Error: the largest differences of output and gradients from the same network in
float64, relative to the largest value of the output and of all gradients.  --write puts table and
picture into docs/.

--executors measures something else: steps of the network after `convert` where each of these
executors runs the loops of batch norm, in turns with the network of PyTorch's batch norm, beside as
many busy processes as --busy says.  docs/decisions/0016-threads-in-pytorch.md has the outcome.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

import bncore.torch
from bncore.programs.bench.busy import busy
from bncore.programs.bench.tables import Table
from bncore.torch import compiled
from steps import made_on
from torch_step import PAGE, put

KINDS = {
    "torch.nn": "PyTorch",
    "convert": "after `convert`",
    "fused": "with fused modules",
}
LAYERS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, first stride


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, fused: bool) -> None:
        super().__init__()
        relu = bncore.torch.BatchNormReLU if fused else nn.BatchNorm2d
        self.fused = fused
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = relu(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = relu(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = (bncore.torch.BatchNormAddReLU if fused else nn.BatchNorm2d)(4 * width)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != 4 * width:
            self.shortcut.append(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return self.bn3(self.conv3(y), self.shortcut(x))
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(kind: str, stages: int = len(LAYERS)) -> nn.Module:
    """Make the network, its batch norm of one of KINDS; the same state dict for all.

    Fewer stages are the beginning of the network, with a smaller last layer.
    """
    fused = kind == "fused"
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
    if fused:
        parts += [bncore.torch.BatchNormReLU(64), nn.Identity()]
    else:
        parts += [nn.BatchNorm2d(64), nn.ReLU()]
    parts.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for width, blocks, stride in LAYERS[:stages]:
        for block in range(blocks):
            parts.append(Bottleneck(inputs, width, 1 if block else stride, fused))
            inputs = 4 * width
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    network = nn.Sequential(*parts)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network if kind == "torch.nn" else bncore.torch.convert(network)


def batch(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    labels = torch.randint(1000, (options.batch,), generator=generator)
    return images.to(memory_format=getattr(torch, options.memory_format)), labels


def step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Forward and backward; returns the output."""
    network.zero_grad(set_to_none=True)
    output = network(images)
    nn.functional.cross_entropy(output, labels).backward()
    return output.detach()


def times(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, in turns."""
    images, labels = batch(options)
    networks = {kind: resnet50(kind).to(memory_format=images_format(options)) for kind in KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(options.steps + 1):
        for kind, network in networks.items():
            start = time.perf_counter()
            step(network, images, labels)
            if turn:
                taken[kind].append(time.perf_counter() - start)
    return {kind: median(values) for kind, values in taken.items()}


def by_executor(options: argparse.Namespace) -> Table:
    """Steps of the same network with each executor, in turns: median, and 95th percentile."""
    images, labels = batch(options)
    kinds = ("torch.nn", "convert")
    networks = {
        kind: resnet50(kind, options.stages).to(memory_format=images_format(options))
        for kind in kinds
    }
    set_executor = compiled.adapter.set_executor
    ways = [("torch.nn", ""), *(("convert", name) for name in options.executors.split(","))]
    taken: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    outputs = []
    end = time.monotonic() + options.seconds
    with busy(options.busy):
        for turn in range(options.steps + 1):
            if turn > 2 and time.monotonic() > end:
                break
            for kind, name in ways:
                set_executor(name)
                start = time.perf_counter()
                output = step(networks[kind], images, labels)
                seconds = time.perf_counter() - start
                if turn:
                    taken[kind, name].append(seconds)
                elif kind == "convert":
                    outputs.append(output)
    set_executor("")
    assert all(torch.equal(output, outputs[0]) for output in outputs), "executors differ in bits"
    turns = len(taken[ways[0]])
    made = Table(
        "ResNet-50",
        [f"{turns} turns", "executor", "step, ms", "95 %, ms", "of PyTorch's"],
    )
    first = median(taken[ways[0]])
    for (kind, name), seconds in taken.items():
        high = quantiles(seconds, n=20, method="inclusive")[-1]
        cells = [f"{median(seconds) * 1e3:.0f}", f"{high * 1e3:.0f}"]
        made.lines.append([KINDS[kind], name, *cells, f"{median(seconds) / first:.2f}"])
    return made


def images_format(options: argparse.Namespace) -> Any:
    return getattr(torch, options.memory_format)


NORMALIZING = re.compile(r"batch_norm|BatchNorm|relu|threshold|^Train|aten::add_?$")


def share(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Part of a step that goes into batch norm, ReLU and additions."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step(network, images, labels)
    events = profiled.key_averages()
    everything = sum(event.self_cpu_time_total for event in events)
    found = sum(e.self_cpu_time_total for e in events if NORMALIZING.search(e.key))
    return found / everything


def alone(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Run steps in this process alone: the peak of its memory above that before them, the share."""
    images, labels = batch(options)
    network = resnet50(kind).to(memory_format=images_format(options))
    before = high_water()
    for _ in range(2):
        step(network, images, labels)
    found = {"MiB": (high_water() - before) / 1024}
    return found | {"share": share(network, images, labels)}


def high_water() -> int:
    """KiB that this process had resident at most (getrusage would count its parent's, too)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def errors(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Largest differences from float64, relative to the tensor's largest value."""
    images, labels = batch(options)
    exact = resnet50("torch.nn").double()
    state = copy.deepcopy(exact.state_dict())
    expected = step(exact, images.double(), labels), [p.grad for p in exact.parameters()]
    found = {}
    for kind in KINDS:
        network = resnet50(kind)
        network.load_state_dict(state)
        output = step(network, images, labels)
        gradients = [p.grad for p in network.parameters()]
        largest = max(float(gradient.abs().max()) for gradient in expected[1])
        found[kind] = {
            "output": difference(output, expected[0]) / float(expected[0].abs().max()),
            "gradients": max(map(difference, gradients, expected[1])) / largest,
        }
    return found


def difference(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference of two tensors."""
    return float((got.double() - exact).abs().max())


def table(found: dict[str, Any]) -> Table:
    made = Table("ResNet-50", ["", *KINDS.values()])
    seconds, first = found["seconds"], found["seconds"]["torch.nn"]
    rows = {
        "step": [f"{seconds[k] * 1e3:.0f} ms" for k in KINDS],
        "of PyTorch's step": [f"{seconds[k] / first:.2f}" for k in KINDS],
        "share of batch norm, ReLU, addition": [f"{found['alone'][k]['share']:.0%}" for k in KINDS],
        "peak memory of the steps": [f"{found['alone'][k]['MiB']:.0f} MiB" for k in KINDS],
    }
    for part in ("output", "gradients"):
        rows[f"largest error, {part}"] = [f"{found['errors'][k][part]:.1e}" for k in KINDS]
    made.lines = [[name, *cells] for name, cells in rows.items()]
    return made


def picture(found: dict[str, Any], path: Path) -> None:
    """Bars: a step, the part of batch norm in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    names = [name.replace("`", "") for name in KINDS.values()]
    whole = [found["seconds"][kind] * 1e3 for kind in KINDS]
    part = [w * found["alone"][kind]["share"] for w, kind in zip(whole, KINDS, strict=True)]
    rest = [w - p for w, p in zip(whole, part, strict=True)]
    axes.barh(names, rest, color="#b0b7bf", label="convolutions and the rest")
    axes.barh(names, part, left=rest, color="#1f6fb4", label="batch norm, ReLU, addition")
    axes.invert_yaxis()
    axes.set_xlabel("training step, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, 1.25), ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--memory-format", choices=["contiguous_format", "channels_last"],
        default="contiguous_format",
    )  # fmt: skip
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--executors", metavar="A,B", help="torch, own, openmp, serial")
    parser.add_argument("--busy", type=int, default=0, help="busy processes, with --executors")
    parser.add_argument("--stages", type=int, default=len(LAYERS), help="the first of the network")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no turn begins later")
    parser.add_argument("--alone", choices=KINDS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(alone(options.alone, options)))
        return
    if options.executors:
        print(by_executor(options).markdown())
        return
    found: dict[str, Any] = {"errors": errors(options), "seconds": times(options)}
    found["alone"] = {}
    for kind in KINDS:
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found["alone"][kind] = json.loads(done.stdout.splitlines()[-1])
    text = (
        f"Batch {options.batch}, {options.size}×{options.size}, {options.threads} thread(s), "
        f"{options.memory_format}, float32.\n\n{table(found).markdown()}\n\n{made_on('torch')}"
    )
    print(text)
    if options.write:
        put("model", text)
        picture(found, PAGE.parent / "images" / "resnet50.png")


if __name__ == "__main__":
    main()
