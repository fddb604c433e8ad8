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
from itertools import product
from statistics import median, quantiles
from typing import Any

import bncore
from bncore.programs.bench import check
from bncore.programs.bench.cases import EPS, Case, Shape, named
from bncore.programs.bench.plan import count_from, listed, shapes_of
from bncore.programs.bench.results import geometric_mean
from bncore.programs.bench.tables import Table, counted
from bncore.programs.terminal import Show

SHAPES = "4096x64,16x672x14x14,24x1152x7x7,24x240x28x28,32x256x14x14"
EXECUTORS = ("own", "openmp", "serial")
TURN = 20  # calls of one number of threads, one after the other, before the next takes its turn
PATIENCE = 600.0  # seconds for one shape
ALIKE = 0.05  # times that differ by less than this part are called about equal

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


def spread(seconds: Sequence[float]) -> Spread:
    """Return median and 95th percentile of at least two times."""
    return Spread(median(seconds), quantiles(seconds, n=20, method="inclusive")[-1])


@dataclass(frozen=True)
class Line:
    """One executor on one shape: the times on one thread and on several, or why there are none."""

    executor: str
    shape: Shape
    one: Spread | None = None
    several: Spread | None = None
    refused: str = ""

    @property
    def ratios(self) -> tuple[float, float] | None:
        """The time on several threads over that on one, of medians and of 95th percentiles."""
        if self.one is None or self.several is None:
            return None
        return self.several.median / self.one.median, self.several.high / self.one.high


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
        check.assert_right(True, case, check.errors((call(number)[0],), exact, p))
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
    made = Table(
        f"Training forward beside {counted_busy(beside)}: "
        f"{counted(threads)} in times of 1 thread",
        ["shape", "executor", "1 thread, median", f"{counted(threads)}, median",
         "ratio of medians", "ratio of 95 %"],
    )  # fmt: skip
    lines = list(lines)
    for line in lines:
        if line.one is None or line.several is None or line.ratios is None:
            made.lines.append([named(line.shape), line.executor, "not timed"])
            continue
        medians = in_one_unit(line.one.median, line.several.median)
        ratios = [f"{ratio:.2f}" for ratio in line.ratios]
        made.lines.append([named(line.shape), line.executor, *medians, *ratios])
    for executor, means in mean_ratios(lines).items():
        made.lines.append(["geometric mean", executor, "", "", *(f"{m:.2f}" for m in means)])
    return made


def counted_busy(processes: int) -> str:
    """Write a number of busy processes in words."""
    return f"{processes or 'no'} busy process{'es' * (processes != 1)}"


def in_one_unit(*seconds: float) -> list[str]:
    """Write times with three digits, all in µs or all in ms, as suits the shortest of them."""
    unit, factor = ("µs", 1e6) if min(seconds) < 1e-3 else ("ms", 1e3)
    numbers = [second * factor for second in seconds]
    return [f"{n:.{0 if n >= 100 else 1 if n >= 10 else 2}f} {unit}" for n in numbers]


def mean_ratios(lines: Iterable[Line]) -> dict[str, tuple[float, float]]:
    """Return the geometric means of the ratios of each executor that was timed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.ratios is not None:
            found.setdefault(line.executor, []).append(line.ratios)
    means = {}
    for executor, ratios in found.items():
        medians, highs = zip(*ratios, strict=True)
        means[executor] = (geometric_mean(medians), geometric_mean(highs))
    return means


def verdicts(lines: Iterable[Line], threads: int) -> list[str]:
    """Say for each executor in one line whether more threads make calls faster or slower."""
    lines = list(lines)
    said = []
    for executor, (ratio, _) in mean_ratios(lines).items():
        how = "about as fast as" if abs(ratio - 1) < ALIKE else "faster" if ratio < 1 else "slower"
        than = "" if how.endswith("as") else " than"
        said.append(
            f"{executor} executor: {counted(threads)} are {how}{than} 1 thread "
            f"({ratio:.2f} times its time)."
        )
    for line in lines:
        if line.refused:
            said.append(f"{line.executor} executor, {named(line.shape)}: {line.refused}")
    return said or ["Nothing was timed."]


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    busy: int
    threads: int
    executors: tuple[str, ...]
    shapes: tuple[Shape, ...]
    calls: int
    json: bool = False


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
    add("--json", action="store_true", help="print the results as JSON instead of a table")
    if "--quick" in arguments:
        made.error("--quick and --busy exclude each other: they are two different measurements")
    return Options(**vars(made.parse_args(arguments)))


def run(options: Options, show: Show = lambda total, done, what: None) -> list[Line]:
    """Measure everything that the options select; Ctrl-C ends it early."""
    lines: list[Line] = []
    todo = list(product(options.shapes, options.executors))
    try:
        with busy(options.busy):
            for shape, executor in todo:
                show(len(todo), len(lines), f"{executor} executor, {named(shape)}")
                lines.append(measured(executor, shape, options.threads, options.calls))
    except KeyboardInterrupt:
        print("interrupted: the table shows what was measured until then", file=sys.stderr)
    return lines


if __name__ == "__main__":
    serve(sys.argv[1:])
