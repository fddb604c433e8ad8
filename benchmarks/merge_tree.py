"""Count and simulate the merging of moments on many workers, without a cluster.

    python benchmarks/merge_tree.py [--values 1e9,1e12] [--workers 64,4096] [--channels 64]
                                    [--split-every 8] [--gigabytes-per-second 1] [--write]

`bncore.dask` computes the moments of each chunk and merges them in a tree.  For every number of
values and of workers this program builds that tree, and says how many chunks, levels, merges,
messages and bytes it has, how long a worker computes and merges, and how large the error is.

- Chunks are dealt out to the workers in runs.  A task of the tree runs where its first input lies,
  and every input that lies elsewhere is one message.
- A chunk has 2**24 values, or fewer, so that every worker has at least four.
- Times are those of this machine on one thread, the least of 25 calls: the moments of a chunk, and
  a merge.  The network is not timed: a message takes its bytes at the rate that is given.
- The error is real.  The leaves are the moments of a few different float32 chunks with mean/std
  1e4, repeated.  `Moments.merge` merges them through the whole tree, and the result is compared
  with exact sums of integers.  Beside it: the same states merged one after the other, and the
  textbook formula E[x**2] - E[x]**2 with sums in float64.

--write puts the table into docs/scale.md.
"""

from __future__ import annotations

import argparse
import pickle
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from pathlib import Path

import numpy as np

import bncore
from bncore import Moments

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
LARGEST_CHUNK = 2**24
LEAST_CHUNKS = 4  # of a worker
GRID = 2**10  # float32 values from 8192 to 16384 are multiples of 1 / GRID
CENTER = 10**4
DIFFERENT = 16  # chunks with values of their own; the others repeat them


@dataclass(frozen=True)
class Plan:
    """How many values lie on how many workers, and how they are merged."""

    values: int
    workers: int
    channels: int = 64
    split_every: int = 8

    @property
    def chunk(self) -> int:
        """Values of a chunk, a power of two."""
        most = min(LARGEST_CHUNK, self.values // (LEAST_CHUNKS * self.workers))
        return 2 ** (most.bit_length() - 1)

    @property
    def chunks(self) -> int:
        return -(-self.values // self.chunk)

    def worker_of(self, chunk: int) -> int:
        return chunk * self.workers // self.chunks


@dataclass(frozen=True)
class Tree:
    """What the merging of a plan costs.

    Attributes
    ----------
    levels : steps from a chunk to the result, one after the other
    tasks : tasks that merge; `merges` : pairs of states that they merge
    messages : states that go from one worker to another
    busiest : the most pairs that one worker merges
    received : the most messages that one worker gets
    """

    levels: int
    tasks: int
    merges: int
    messages: int
    busiest: int
    received: int


def tree_of(plan: Plan) -> Tree:
    """Count the tasks and messages of the tree, level by level."""
    places = np.arange(plan.chunks) * plan.workers // plan.chunks
    levels = tasks = messages = 0
    merged, received = np.zeros(plan.workers, int), np.zeros(plan.workers, int)
    while len(places) > 1 or not levels:
        starts = np.arange(0, len(places), plan.split_every)
        homes = places[starts]
        sizes = np.diff([*starts, len(places)])
        away = np.add.reduceat(places != np.repeat(homes, sizes), starts)
        np.add.at(merged, homes, sizes - 1)
        np.add.at(received, homes, away)
        levels, tasks, messages = levels + 1, tasks + len(starts), messages + int(away.sum())
        places = homes
    return Tree(
        levels, tasks, plan.chunks - 1, messages, int(merged.max()), int(received.max())
    )  # fmt: skip


# Values whose sums are known exactly


@dataclass(frozen=True)
class Leaf:
    """A chunk's moments as bncore computes them, its plain sums in float64, and its exact sums."""

    moments: Moments
    plain: tuple[float, float]
    count: int
    total: int  # of (x - CENTER) * GRID
    squares: int


def leaf(rng: np.random.Generator, size: int) -> Leaf:
    """Make a chunk of one channel whose mean is 1e4 and whose deviation is 1."""
    shift = rng.normal(0.0, 0.1)  # chunks differ in their means
    x = rng.normal(CENTER + shift, 1.0, size).astype(np.float32)
    steps = ((x.astype(np.float64) - CENTER) * GRID).astype(np.int64)
    assert (steps == (x.astype(np.float64) - CENTER) * GRID).all()
    wide = x.astype(np.float64)
    return Leaf(
        bncore.moments(x[:, None], n_threads=1), (float(wide.sum()), float((wide * wide).sum())),
        size, int(steps.sum()), int((steps * steps).sum()),
    )  # fmt: skip


def through_tree(states: list[Moments], split_every: int) -> Moments:
    """Merge states as the tree does."""
    while len(states) > 1:
        groups = [states[i : i + split_every] for i in range(0, len(states), split_every)]
        states = [reduce(Moments.merge, group) for group in groups]
    return states[0]


def errors(plan: Plan) -> dict[str, float]:
    """Relative errors of the variance, and that of the mean in standard deviations."""
    rng = np.random.default_rng(0)
    size = max(plan.chunk // plan.channels, 2)
    kinds = [leaf(rng, size) for _ in range(min(DIFFERENT, plan.chunks))]
    order = [i % len(kinds) for i in range(plan.chunks)]
    times = np.bincount(order).tolist()
    count = sum(k.count * n for k, n in zip(kinds, times, strict=True))
    total = sum(k.total * n for k, n in zip(kinds, times, strict=True))
    squares = sum(k.squares * n for k, n in zip(kinds, times, strict=True))
    mean = Fraction(total, count) / GRID + CENTER
    var = (Fraction(squares, count) - Fraction(total, count) ** 2) / GRID**2
    states = [kinds[i].moments for i in order]
    tree, chain = through_tree(states, plan.split_every), reduce(Moments.merge, states)
    one, two = (sum(kinds[i].plain[k] for i in order) / count for k in range(2))

    def off(got: float, exact: Fraction) -> float:
        return float(abs(Fraction(got) - exact) / exact)

    assert tree.count[0] == count
    return {
        "tree": off(float(tree.var()[0]), var),
        "chain": off(float(chain.var()[0]), var),
        "textbook": off(two - one * one, var),
        "mean": float(abs(Fraction(float(tree.mean[0])) - mean)) / float(var) ** 0.5,
    }


# Times


def seconds(call: Callable[[], object], repeats: int = 25) -> float:
    """Least time of a call: what else the machine does only adds to it."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


@dataclass(frozen=True)
class Costs:
    """What this machine takes."""

    value: float  # seconds for a value of a chunk in memory, on one thread
    merge: float  # seconds for a pair of states
    state: int  # bytes of a pickled state


def costs(channels: int) -> Costs:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2**24 // channels // 256, channels, 256), np.float32)
    value = seconds(lambda: bncore.moments(x, n_threads=1)) / x.size
    state = bncore.moments(x[:8])
    other = bncore.moments(x[8:16]).merge(state)
    merge = seconds(lambda: [state.merge(other) for _ in range(100)]) / 100
    return Costs(value, merge, len(pickle.dumps(other)))


# The table


def column(plan: Plan, cost: Costs, rate: float) -> dict[str, str]:
    """What the table says of a plan, by the names of its rows."""
    tree, error = tree_of(plan), errors(plan)
    own = -(-plan.chunks // plan.workers)
    return {
        "values": f"{plan.values:.0e}".replace("e+", "e"),
        "workers": f"{plan.workers:,}",
        "values of a chunk": f"2^{plan.chunk.bit_length() - 1}",
        "chunks": f"{plan.chunks:,}",
        "levels of the tree": f"{tree.levels}",
        "tasks that merge": f"{tree.tasks:,}",
        "merges of two states": f"{tree.merges:,}",
        "messages": f"{tree.messages:,}",
        "bytes of all messages": f"{tree.messages * cost.state / 1e6:.2f} MB",
        "a worker computes": f"{own * plan.chunk * cost.value:.3g} s",
        "the busiest one merges": f"{tree.busiest * cost.merge * 1e3:.2g} ms",
        "and receives": f"{tree.received * cost.state / rate * 1e3:.2g} ms",
        "error of the variance": f"{error['tree']:.1e}",
        "one merge after the other": f"{error['chain']:.1e}",
        "E[x²] − E[x]² in float64": f"{error['textbook']:.1e}",
        "error of the mean, in std": f"{error['mean']:.1e}",
    }


def table(options: argparse.Namespace) -> str:
    cost = costs(options.channels)
    plans = [
        Plan(int(float(values)), int(workers), options.channels, options.split_every)
        for values in options.values.split(",")
        for workers in options.workers.split(",")
    ]
    columns = [column(plan, cost, options.gigabytes_per_second * 1e9) for plan in plans]
    lines = [f"| {' | '.join([name, *(c[name] for c in columns)])} |" for name in columns[0]]
    return "\n".join([
        lines[0], "|" + "---|" * (len(plans) + 1), *lines[1:], "",
        f"A state of {options.channels} channels has {cost.state:,} bytes when it is pickled. One "
        f"thread of this machine took {cost.value * 1e9:.2f} ns for a",
        f"float32 value of a chunk in memory, and {cost.merge * 1e6:.0f} µs for a merge.",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", default="1e9,1e12")
    parser.add_argument("--workers", default="64,4096")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--split-every", type=int, default=8)
    parser.add_argument("--gigabytes-per-second", type=float, default=1.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table(options)
    print(text)
    if options.write:
        marks = re.compile(r"(<!-- plan:begin -->\n).*?(<!-- plan:end -->)", re.DOTALL)
        PAGE.write_text(marks.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
