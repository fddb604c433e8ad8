"""Run training steps of one network in this process alone, as torch_model.py asks for them.

torch_model.py starts one such process per contestant.  Its arguments say what to run.  Each line of
its input is a request, which a line of JSON answers:

- `steps N` runs one step and then N more, and returns the seconds and the processor's seconds of
  each of the N;
- `operations N` returns the seconds that the operations of a step take, by group, as PyTorch's
  profiler sees them;
- `memory` returns the most that the process ever had resident, in MiB, above what it has before the
  first step;
- `errors` returns the largest differences of the output and of all gradients from those of the same
  network in float64, relative to the largest value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_networks import network

FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
GROUPS = {  # an event belongs to the group of the nearest of these around it
    "optimizer": r"Optimizer\.step",
    "batch norm": r"batch_norm|BatchNorm|^Train",
    "convolution": r"conv",
    "relu": r"relu|Relu|clamp|threshold|Threshold|hardtanh",
    "add": r"aten::add_?$",
}


class Run:
    """A network, its data and its optimizer."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        order = FORMATS[options.layout]
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
        self.images = images.to(memory_format=order)
        self.labels = torch.randint(1000, (options.batch,), generator=generator)
        made = network(options.network, options.kind, options.stages)
        self.network = made.to(memory_format=order)
        self.optimizer = torch.optim.SGD(made.parameters(), lr=1e-3, momentum=0.9)
        self.call: Any = torch.compile(self.network) if options.compiled else self.network
        self.before = resident()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return autocast to bfloat16, or what changes nothing."""
        if self.options.dtype == "bfloat16":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def step(self) -> None:
        """Run forward, backward, and the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = nn.functional.cross_entropy(self.call(self.images), self.labels)
        loss.backward()
        self.optimizer.step()

    def steps(self, count: int) -> list[tuple[float, float]]:
        """Return seconds and processor's seconds of each of `count` steps, after one more."""
        taken = []
        for number in range(count + 1):
            start, processor = time.perf_counter(), time.process_time()
            self.step()
            if number:
                taken.append((time.perf_counter() - start, time.process_time() - processor))
        return taken

    def operations(self, count: int) -> dict[str, float]:
        """Return the seconds that each group of operations takes in a step."""
        from torch.profiler import ProfilerActivity, profile

        self.step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(count):
                self.step()
        found = dict.fromkeys([*GROUPS, "rest"], 0.0)
        for event in profiled.events():
            found[group(event)] += event.self_cpu_time_total / 1e6 / count
        return found

    def errors(self) -> dict[str, float]:
        """Return the largest differences from float64, relative to the largest value."""
        exact = network(self.options.network, "torch", self.options.stages).double()
        with torch.no_grad():
            for to, value in zip(exact.parameters(), self.network.parameters(), strict=True):
                to.copy_(value)
        output, *gradients = results(exact, self.images.double(), self.labels)
        with self.precision():
            own_output, *own_gradients = results(self.network, self.images, self.labels)
        return {
            "output error": difference([own_output], [output]),
            "gradient error": difference(own_gradients, gradients),
        }

    def memory(self) -> float:
        """MiB that this process had resident at most, above what it had before the first step."""
        return (high_water() - self.before) / 1024


def results(made: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, then the gradients by all parameters."""
    output = made(images)
    loss = nn.functional.cross_entropy(output, labels)
    return [output.detach(), *torch.autograd.grad(loss, list(made.parameters()))]


def difference(got: Iterable[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Return the largest difference of two lists of tensors, relative to the largest value."""
    largest = max(float(one.abs().max()) for one in exact)
    pairs = zip(got, exact, strict=True)
    return max(float((a.double() - b).abs().max()) for a, b in pairs) / largest


def group(event: Any) -> str:
    """Return the group that an event of the profiler belongs to."""
    nearest = "rest"
    while event is not None:
        for name, pattern in GROUPS.items():
            if re.search(pattern, event.name):
                if name == "optimizer":
                    return name
                nearest = name if nearest == "rest" else nearest
        event = event.cpu_parent
    return nearest


def high_water() -> int:
    """KiB that this process had resident at most (getrusage would count its parent's, too)."""
    return resident("VmHWM")


def resident(what: str = "VmRSS") -> int:
    """KiB that this process has resident."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found
    return int(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("network", "kind", "layout", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("threads", "batch", "size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--stages", type=int)
    parser.add_argument("--compiled", action="store_true")
    run = Run(parser.parse_args())
    for line in sys.stdin:
        what, *count = line.split()
        print(json.dumps(getattr(run, what)(*map(int, count))), flush=True)


if __name__ == "__main__":
    main()
