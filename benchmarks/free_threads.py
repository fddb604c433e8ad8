"""Throughput of Python threads that call bncore at once, against one thread.

    python benchmarks/free_threads.py
    python benchmarks/free_threads.py --threads 4 --seconds 2

Every thread makes calls on arrays of its own, each call on one thread, and a round lasts a fixed
time.  Rounds with one caller and with several alternate, so that a busy machine slows both; the
figures are medians over the rounds.  Three kinds of calls: long ones, which release the lock of an
ordinary Python and scale there as well; short ones, which hold it; and steps of a layer, most of
whose time is Python's.  In a free-threaded Python all of them should scale with the processors, as
a loop of Python alone does, which is timed first: where that does not scale, other programs take
the processors, and the other figures say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

import bncore

Call = Callable[[], object]
# Calls between two looks at the clock's flag, an object that all threads share.
BATCH = 32


def python_alone() -> Call:
    """Add numbers in a loop, without bncore."""
    return lambda: sum(i for i in range(1000))


def long_call() -> Call:
    """Train on 3.2 MB of float32."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (32, 32, 28, 28)).astype(np.float32)
    y = np.empty_like(x)
    return lambda: bncore.batch_norm_train(x, out=y, n_threads=1)


def short_call() -> Call:
    """Train on 2,048 values: some microseconds."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 32)).astype(np.float32)
    y = np.empty_like(x)
    return lambda: bncore.batch_norm_train(x, out=y, n_threads=1)


def layer_step() -> Call:
    """Make a step of a layer, forward and backward."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 32)).astype(np.float32)
    layer = bncore.BatchNorm(32, dtype=np.float32)

    def step() -> None:
        layer.backward(layer(x))

    return step


CALLS = {
    "Python alone": python_alone,
    "long calls": long_call,
    "short calls": short_call,
    "steps of a layer": layer_step,
}


def calls_per_second(make: Callable[[], Call], callers: int, seconds: float) -> float:
    """Let `callers` threads call for so long; the calls of all, by second."""
    done = [0] * callers
    begin, end = threading.Barrier(callers + 1), threading.Event()

    def run(i: int) -> None:
        call, count = make(), 0
        call()
        begin.wait()
        while not end.is_set():
            for _ in range(BATCH):
                call()
            count += BATCH
        done[i] = count

    threads = [threading.Thread(target=run, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    time.sleep(seconds)
    end.set()
    elapsed = time.perf_counter() - start
    for thread in threads:
        thread.join()
    return sum(done) / elapsed


def main() -> None:
    """Measure, and print a line for each kind of calls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, {'with' if locked else 'without'} a global lock")
    for name, make in CALLS.items():
        rounds = [
            [calls_per_second(make, n, options.seconds) for n in (1, options.threads)]
            for _ in range(options.rounds)
        ]
        one, several = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        print(
            f"{name:>16}: {one:8,.0f} per second on 1 thread, {several:8,.0f} on "
            f"{options.threads}: {ratio:.2f} times as many"
        )


if __name__ == "__main__":
    main()
