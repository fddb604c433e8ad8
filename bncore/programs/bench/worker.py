"""The worker process, which prepares and times one peer.

Every peer with every number of threads has its own process, because several OpenMP runtimes in one
process disturb each other, and so do the spinning threads of one peer and the work of another.  A
worker takes its turn when it gets a command.  It answers when none of its threads works or spins
any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from itertools import count, repeat
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from bncore.programs.bench import check, peers
from bncore.programs.bench.cases import Case, Problem

STREAMS = "streams"  # the worker that measures the limit
TURN = 0.004  # a turn takes about this many seconds, in addition to a first, untimed call
MOST_SAMPLES = 15
SAMPLE = 1e-4  # shorter calls are timed several at a time
SWEPT_BYTES = 2**26  # written between two calls with cold caches
COLD_SAMPLES = 3  # calls with cold caches in a turn, in addition to a first, untimed call
SETTLED = 0.3  # seconds after which we no longer wait for threads that do not stop spinning


class Connection(Protocol):
    """The end of a pipe."""

    def recv(self) -> Any:
        """Take the next message."""

    def send(self, message: Any) -> None:
        """Answer it."""


def environment(key: str, threads: int) -> dict[str, str]:
    """Return the environment variables that must be set before a worker's process starts."""
    chosen = {"OMP_NUM_THREADS": str(threads)}
    if key in peers.PEERS:
        chosen |= dict(peers.PEERS[key].environment)
    if key == STREAMS:  # it has few, long parallel regions, so its threads need not spin
        chosen["OMP_WAIT_POLICY"] = "PASSIVE"
    return chosen


def seconds_of_turn(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call, after one that fills caches and wakes threads."""
    start = perf_counter()
    call()
    first = max(perf_counter() - start, 1e-7)
    calls = max(1, min(1000, round(SAMPLE / first)))
    samples = max(1, min(MOST_SAMPLES, round(TURN / (calls * first))))
    taken = []
    for _ in range(samples):
        start = perf_counter()
        for _ in repeat(None, calls):
            call()
        taken.append((perf_counter() - start) / calls)
    return median(taken)


@cache
def sweeper() -> Callable[[], None]:
    """Make the function that pushes everything else out of the caches, as far as they hold it."""
    swept, number = np.zeros(SWEPT_BYTES, np.uint8), count()
    return lambda: swept.fill(next(number) % 256)


def seconds_of_cold_turn(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call, a large array being written before each."""
    sweep = sweeper()
    call()
    taken = []
    for _ in range(COLD_SAMPLES):
        sweep()
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)
    return median(taken)


TURNS = {"warm": seconds_of_turn, "cold": seconds_of_cold_turn}


def settle() -> None:
    """Wait until two checks in a row find no thread of this process that uses processor time."""
    end, quiet = perf_counter() + SETTLED, 0
    while quiet < 2 and perf_counter() < end:
        before = time.process_time()
        time.sleep(0.001)
        quiet = quiet + 1 if time.process_time() - before < 0.0003 else 0


class Worker:
    """A peer with the calls that were prepared for it."""

    def __init__(self, key: str, threads: int) -> None:
        self.peer = peers.load(key)
        self.threads = threads
        self.stack = ExitStack()
        self.stack.enter_context(self.peer.active(threads))
        self.place: tuple[Any, ...] = ()
        self.problem: Problem | None = None
        self.references: dict[str, Any] = {}
        self.call: Callable[[], Any] | None = None
        self.take = seconds_of_turn

    def prepare(self, case: Case) -> float | None:
        """Make the arrays and the call, run it once, and return its error in ulp.

        Return None if the peer does not support the case.

        Raises
        ------
        WrongResult
            If the result is wrong, so that the call must not be timed.
        """
        self.call = None
        if not self.peer.can(case):
            return None
        if self.problem is None or case.place != self.place:
            self.release()
            self.place, self.problem = case.place, case.problem()
        p = self.problem
        if case.operation not in self.references:
            self.references[case.operation] = check.reference(case.operation, p)
        p.clear(case)
        call = self.peer.call(case, p)
        outputs = self.peer.arrays(case, call(), p)
        found = check.errors(outputs, self.references[case.operation], p)
        check.assert_right(self.peer.exact, case, found)
        self.call, self.take = call, TURNS[case.caches]
        return check.of_data(found, case.dtype)

    def turn(self) -> float:
        """Take a turn, and return the median seconds of the prepared call."""
        if self.call is None:
            raise RuntimeError("nothing is prepared")
        taken = self.take(self.call)
        settle()
        return taken

    def release(self) -> None:
        """Give the memory back."""
        self.call = self.problem = None
        self.references.clear()

    def close(self) -> None:
        """Undo what `active` did."""
        self.release()
        self.stack.close()


class StreamsWorker:
    """The worker that measures the limit: in a turn it does a read and a copy."""

    def __init__(self, threads: int) -> None:
        from bncore.programs.bench.streams import Streams

        self.make = Streams
        self.threads = threads
        self.size = 0
        self.take = seconds_of_turn
        self.streams: Streams | None = None

    def prepare(self, case: Case) -> float:
        """Make arrays of x's size."""
        self.take = TURNS[case.caches]
        if self.streams is None or case.x_bytes != self.size:
            self.size, self.streams = case.x_bytes, self.make(case.x_bytes, self.threads)
        return 0.0

    def turn(self) -> tuple[float, float]:
        """Return the seconds of a read and of a copy."""
        if self.streams is None:
            raise RuntimeError("nothing is prepared")
        read, copy = (self.take(self.streams.call[name]) for name in ("read", "copy"))
        settle()
        return read, copy

    def release(self) -> None:
        """Give the memory back."""
        self.streams = None

    def close(self) -> None:
        """End."""
        self.release()


def start(key: str, threads: int) -> Worker | StreamsWorker:
    """Make the worker of a peer, or of the limit."""
    return StreamsWorker(threads) if key == STREAMS else Worker(key, threads)


def serve(connection: Connection, key: str, threads: int) -> None:
    """Answer messages, (method, arguments), with (succeeded, result or reason), until closed."""
    worker = None
    while True:
        name, arguments = connection.recv()
        try:
            if worker is None:
                worker = start(key, threads)
            connection.send((True, getattr(worker, name)(*arguments)))
        except peers.Unavailable as error:
            connection.send((False, str(error)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {str(error).strip()[:300]}"))
        if name == "close":
            return
