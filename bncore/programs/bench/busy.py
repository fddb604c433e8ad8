"""The benchmark beside busy processes: ``python -m bncore bench --busy 2``.

A machine is rarely idle.  This part of the benchmark starts processes that do nothing but compute,
times training forward on one thread and on several, in turns, and shows whether more threads make
a call slower than one.  Each executor is measured in a process of its own, which `measured` starts
and which runs this module.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles
from typing import Any

import bncore
from bncore.programs.bench import check
from bncore.programs.bench.cases import EPS, Case, Shape, named
from bncore.programs.bench.plan import count_from, listed, shapes_of
from bncore.programs.bench.results import geometric_mean
from bncore.programs.bench.tables import Table, milliseconds

SHAPES = "4096x64,16x672x14x14,24x1152x7x7,24x240x28x28,32x256x14x14"
EXECUTORS = ("own", "openmp", "serial")
TURN = 20  # calls of one number of threads, one after the other, before the next takes its turn
PATIENCE = 600.0  # seconds for one shape

# A busy process prints a line when it has begun.  It ends when the process that started it is gone,
# even if that process was killed.
COMPUTE = """
import os
parent = os.getppid()
print("computing", flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@dataclass(frozen=True)
class Spread:
    """A summary of the times of many calls, in seconds."""

    median: float
    high: float  # the 95th percentile
    mean: float


def spread(seconds: Sequence[float]) -> Spread:
    """Return median, 95th percentile and mean of at least two times."""
    return Spread(median(seconds), quantiles(seconds, n=20, method="inclusive")[-1], fmean(seconds))


@dataclass(frozen=True)
class Line:
    """One executor on one shape: the times on one thread and on several, or why there are none."""

    executor: str
    shape: Shape
    one: Spread | None = None
    several: Spread | None = None
    refused: str = ""


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes that compute without a pause, and end them when the block is left.

    Parameters
    ----------
    processes : int
        The number of processes.  All of them are computing when the block begins.

    Yields
    ------
    list of subprocess.Popen
        The processes.
    """
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(processes):
            command = [sys.executable, "-I", "-S", "-c", COMPUTE]
            started.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
        for process in started:
            if process.stdout is None or process.stdout.readline() != "computing\n":
                raise RuntimeError("a busy process ended before it began to compute")
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


# ---- in the process that is measured ----


def times(shape: Shape, threads: int, calls: int) -> tuple[list[float], list[float]]:
    """Time training forward on one thread and on several, in turns.

    Parameters
    ----------
    shape : tuple of int
        Of x: (N, C, spatial...), float32, channels first.
    threads : int
        The number of threads that is compared with one.
    calls : int
        How many calls are timed of each.

    Returns
    -------
    one, several : list of float
        Seconds of each call.

    Raises
    ------
    WrongResult
        If a result is not right.  This is checked before anything is timed.
    """
    numbers = (1, threads)
    case = Case("train", shape, threads=threads)
    p = case.problem()
    exact = check.reference(case.operation, p)

    def call(n_threads: int) -> Any:
        return bncore.batch_norm_train(
            p.x, p.weight, p.bias, axis=p.axis, eps=EPS, out=p.out, n_threads=n_threads
        )

    for number in numbers:
        p.clear(case)
        check.assert_right(True, case, check.error((call(number)[0],), exact, p))
    taken: dict[int, list[float]] = {0: [], 1: []}
    while len(taken[1]) < calls:
        for place, number in enumerate(numbers):
            for _ in range(min(TURN, calls - len(taken[place]))):
                start = time.perf_counter()
                call(number)
                taken[place].append(time.perf_counter() - start)
    return taken[0], taken[1]


def serve(arguments: Sequence[str]) -> None:
    """Print the times of one shape as JSON; `measured` runs this in a process of its own."""
    shape, threads, calls = json.loads(arguments[0])
    one, several = times(tuple(shape), threads, calls)
    print(json.dumps([asdict(spread(one)), asdict(spread(several))]))


# ---- in the process that shows the table ----


def measured(executor: str, shape: Shape, threads: int, calls: int) -> Line:
    """Measure one executor on one shape, in a process of its own."""
    request = json.dumps([shape, threads, calls])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bncore.programs.bench.busy", request],
            env={**os.environ, "BNCORE_EXECUTOR": executor, "BNCORE_BACKEND": "native"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Line(executor, shape, refused=f"no result within {PATIENCE:.0f} s")
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return Line(executor, shape, refused=last)
    one, several = (Spread(**part) for part in json.loads(done.stdout))
    return Line(executor, shape, one, several)


def table(lines: Iterable[Line], threads: int, beside: int) -> Table:
    """Show the lines, and the geometric mean of the ratios of each executor."""
    processes = f"{beside} busy process{'es' * (beside != 1)}"
    made = Table(
        f"train, float32, channels first, beside {processes}: times in ms",
        ["shape", "executor"]
        + [f"{n} thread{'s' * (n > 1)}, {what}" for n in (1, threads)
           for what in ("median", "95 %", "mean")]
        + ["median, ratio", "95 %, ratio", f"mean / median, {threads} threads"],
    )  # fmt: skip
    ratios: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.one is None or line.several is None:
            made.lines.append([named(line.shape), line.executor, line.refused])
            continue
        one, several = line.one, line.several
        found = (several.median / one.median, several.high / one.high)
        ratios.setdefault(line.executor, []).append(found)
        made.lines.append([
            named(line.shape),
            line.executor,
            *(milliseconds(t) for s in (one, several) for t in (s.median, s.high, s.mean)),
            *(f"{ratio:.2f}" for ratio in (*found, several.mean / several.median)),
        ])  # fmt: skip
    for executor, found_of_all in ratios.items():
        means = [f"{geometric_mean(part):.2f}" for part in zip(*found_of_all, strict=True)]
        made.lines.append(["geometric mean", executor, *[""] * 6, *means, ""])
    return made


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    busy: int
    threads: int
    executors: tuple[str, ...]
    shapes: tuple[Shape, ...]
    calls: int


def asked_for(arguments: Sequence[str]) -> bool:
    """Tell whether a command line of the benchmark asks for this measurement."""
    return any(word == "--busy" or word.startswith("--busy=") for word in arguments)


def _shapes(text: str) -> tuple[Shape, ...]:
    try:
        return tuple(shape for name in text.split(",") for shape in shapes_of(name))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: Sequence[str], prog: str = "python -m bncore bench") -> Options:
    """Read the command line."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Time training forward on one thread and on several while other processes "
        "keep the processors busy. The program starts and ends these processes itself.",
    )
    add = made.add_argument
    add("--busy", type=count_from(0), required=True, metavar="N",
        help="how many busy processes (0: none)")  # fmt: skip
    add("--threads", type=count_from(2), default=2, metavar="N",
        help="the number of threads to compare with one (2)")  # fmt: skip
    add("--executors", type=listed(EXECUTORS), default=EXECUTORS[:1], metavar="A,B",
        help="own (the default), openmp, serial")  # fmt: skip
    add("--shapes", type=_shapes, default=_shapes(SHAPES), metavar="SET|NxCxHxW,...",
        help=f"sets or shapes ({SHAPES})")  # fmt: skip
    add("--calls", type=count_from(2), default=1000, metavar="N", help="timed calls of each (1000)")
    if "--quick" in arguments:
        made.error("--quick and --busy exclude each other: they are two different measurements")
    return Options(**vars(made.parse_args(arguments)))


def run(options: Options) -> Table:
    """Measure everything that the options select; Ctrl-C ends it early."""
    lines: list[Line] = []
    try:
        with busy(options.busy):
            for shape in options.shapes:
                for executor in options.executors:
                    lines.append(measured(executor, shape, options.threads, options.calls))
    except KeyboardInterrupt:
        print("interrupted: the table shows what was measured until then", file=sys.stderr)
    return table(lines, options.threads, options.busy)


if __name__ == "__main__":
    serve(sys.argv[1:])
