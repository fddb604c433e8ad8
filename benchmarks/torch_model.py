"""Training steps of whole networks in PyTorch, before and after `bncore.torch.convert`.

    python benchmarks/torch_model.py [--quick] [--networks A,B] [--dtypes A,B] [--layouts A,B]
        [--threads 1,2] [--modes eager,compiled] [--isa avx2] [--turns 3] [--steps 3] [--write]
    python benchmarks/torch_model.py --executors torch,own,openmp --threads 2 [--busy 2]

A step is forward, backward and SGD with momentum.  Each contestant has a process of its own, which
runs some steps in a row while the others wait, and then the next has its turn: the first step of a
turn is not timed, since it pays for memory and caches that others had in the meantime.  Contestants
are PyTorch's batch norm, that after `convert`, and `BatchNormReLU` and `BatchNormAddReLU` besides,
all with the same weights.  After the turns of eager networks come as many with PyTorch's profiler,
which says how long each group of operations takes.  Then each process says how much memory its
steps needed, and how far its results are from those of the same network in float64.

Figures go into docs/data/torch_model.csv, those of a setting in the place of earlier ones of the
same setting, so that a long measurement can be made in parts.  --write puts the tables of that file
into docs/pytorch.md; with --turns 0 nothing is measured before.  --quick is a small run that shows
whether everything works.  --executors compares who runs the loops of batch norm, beside as many
busy processes as --busy says: docs/decisions/0016-threads-in-pytorch.md has the outcome.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bncore.programs.bench.busy import busy
from steps import made_on, put
from torch_tables import DATA, PAGE, executors_table, tables
from torch_worker import FORMATS

WORKER = Path(__file__).with_name("torch_worker.py")
MODES = ("eager", "compiled")


@dataclass(frozen=True)
class Setting:
    """What all contestants of a comparison have in common."""

    network: str
    dtype: str
    layout: str
    threads: int
    mode: str
    isa: str  # "" is what bncore chooses
    batch: int
    size: int


@dataclass(frozen=True)
class Contestant:
    """One of torch_networks.KINDS, and the executor of bncore's loops, "" for its own choice."""

    kind: str
    executor: str = ""


class Refused(Exception):
    """A network that cannot run in a setting, and why."""


class Worker:
    """A process that runs one network."""

    def __init__(self, setting: Setting, contestant: Contestant, stages: int | None) -> None:
        command = [sys.executable, str(WORKER), "--kind", contestant.kind]
        for name in ("network", "dtype", "layout", "threads", "batch", "size"):
            command += [f"--{name}", str(getattr(setting, name))]
        if stages is not None:
            command += ["--stages", str(stages)]
        if setting.mode == "compiled":
            command.append("--compiled")
        environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads)}
        if setting.isa:
            environment["BNCORE_ISA"] = setting.isa
        if contestant.executor:
            environment["BNCORE_EXECUTOR"] = contestant.executor
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=environment, text=True, stderr=self.said,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def ask(self, request: str) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{request}\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it could not begin; it said why
            pass
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        self.process.wait()
        self.said.seek(0)
        raise Refused((self.said.read().strip().splitlines() or ["it ended"])[-1])


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), low, high


def measure(
    setting: Setting, contestants: list[Contestant], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one setting."""
    taken: dict[Contestant, list[tuple[float, float]]] = {one: [] for one in contestants}
    with ExitStack() as stack:
        workers = {
            one: stack.enter_context(Worker(setting, one, options.stages)) for one in contestants
        }
        stack.enter_context(busy(options.busy))
        for _, one in itertools.product(range(options.turns), contestants):
            if one not in workers:
                continue
            try:
                taken[one] += workers[one].ask(f"steps {options.steps}")
            except Refused as reason:
                print(f"{setting}: {one.kind} does not run: {reason}", file=sys.stderr)
                del workers[one], taken[one]
        operations: dict[Contestant, list[dict[str, float]]] = {one: [] for one in workers}
        profiled = setting.mode == "eager" and not options.executors
        for _, one in itertools.product(range(options.turns if profiled else 0), workers):
            operations[one].append(workers[one].ask(f"operations {options.steps}"))
        for one, worker in workers.items():
            found = {
                "step": spread([seconds for seconds, _ in taken[one]]),
                "processor": spread([seconds for _, seconds in taken[one]]),
            }
            if profiled:
                for name in operations[one][0]:
                    found[name] = spread([turn[name] for turn in operations[one]])
                found["MiB"] = (worker.ask("memory"),) * 3
                for name, error in worker.ask("errors").items():
                    found[name] = (error,) * 3
            for name, (middle, low, high) in found.items():
                yield asdict(setting) | asdict(one) | {
                    "quantity": name, "median": middle, "low": low, "high": high,
                    "steps": len(taken[one]),
                }  # fmt: skip


COLUMNS = [
    *(field.name for kind in (Setting, Contestant) for field in fields(kind)),
    *("quantity", "median", "low", "high", "steps"),
]
KEY = [field.name for field in fields(Setting)]


def read() -> list[dict[str, str]]:
    """Return the rows that were measured before."""
    if not DATA.exists():
        return []
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows of a setting, in the place of earlier ones."""
    key = [str(rows[0][name]) for name in KEY]
    others = [row for row in read() if [row[name] for name in KEY] != key]
    everything = others + [{name: text(row[name]) for name in COLUMNS} for row in rows]
    everything.sort(key=lambda row: [row[name] for name in KEY])  # rows of a setting keep order
    with DATA.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)


def text(value: Any) -> str:
    """Write a figure with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def listed(given: str) -> list[str]:
    return given.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=listed, default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--dtypes", type=listed, default=["float32", "bfloat16"])
    parser.add_argument("--layouts", type=listed, default=list(FORMATS))
    parser.add_argument("--threads", type=listed, default=["1", "2"])
    parser.add_argument("--modes", type=listed, default=list(MODES))
    parser.add_argument("--kinds", type=listed, default=["torch", "convert", "fused"])
    parser.add_argument("--isa", default="", help="BNCORE_ISA of the processes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stages", type=int, help="the first of the network alone")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps in a row")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--executors", type=listed, metavar="A,B", help="torch, own, openmp, serial"
    )
    parser.add_argument("--busy", type=int, default=0, help="busy processes, with --executors")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.size, options.stages = 2, 64, 2
        options.turns, options.steps, options.threads = 2, 1, ["1"]
    if options.executors:
        options.modes, options.dtypes = ["eager"], ["float32"]
        options.layouts, options.networks = options.layouts[:1], options.networks[:1]
    return options


def main() -> None:
    options = parse()
    contestants = [Contestant(kind) for kind in options.kinds]
    if options.executors:
        contestants = [Contestant("torch")]
        contestants += [Contestant("convert", name) for name in options.executors]
    whole = not (options.executors or options.stages)  # else the figures are not for the page
    settings = itertools.product(
        options.networks, options.dtypes, options.layouts, options.threads, options.modes
    )
    for network, dtype, layout, threads, mode in settings if options.turns else ():
        setting = Setting(
            network, dtype, layout, int(threads), mode, options.isa, options.batch, options.size
        )
        rows = list(measure(setting, contestants, options))
        if options.executors:
            print(executors_table(rows).markdown())
        else:
            for table in tables([{name: text(row[name]) for name in COLUMNS} for row in rows]):
                print(f"{table.markdown()}\n", flush=True)
        if rows and whole:
            keep(rows)
    if options.write:
        put(PAGE, "model", "\n\n".join([t.markdown() for t in tables(read())] + [made_on("torch")]))


if __name__ == "__main__":
    main()
