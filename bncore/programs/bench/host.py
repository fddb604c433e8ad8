"""Command the workers: start their processes, and let them take turns."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from bncore.programs.bench import worker
from bncore.programs.bench.cases import Case

ELSEWHERE = Path(__file__).with_name("elsewhere.py")
PATIENCE = 600.0  # seconds for an answer; compiling takes the longest


class Failed(Exception):
    """A worker could not carry out a command; the message says why."""


class Remote:
    """A worker in a process of its own, under this Python or under the given interpreter."""

    def __init__(self, key: str, threads: int, python: Path | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        with _environment(worker.environment(key, threads)):
            if python is None:
                self.process: Any = context.Process(
                    target=worker.serve, args=(theirs, key, threads), daemon=True
                )
                self.process.start()
            else:
                self.process = OtherPython(python, theirs.fileno(), key, threads)
        theirs.close()

    def post(self, name: str, *arguments: Any) -> None:
        """Send the worker a command, without waiting."""
        with suppress(OSError):  # it died; `answer` says so
            self.connection.send((name, arguments))

    def answer(self) -> Any:
        """Wait for the answer to the last message.

        Raises
        ------
        Failed
            If the worker refused, died, or took too long.
        """
        try:
            if not self.connection.poll(PATIENCE):
                self.process.kill()
                raise Failed(f"no answer within {PATIENCE:.0f} s")
            succeeded, result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            raise Failed(f"its process ended with code {self.process.exitcode}") from None
        if not succeeded:
            raise Failed(result)
        return result

    def close(self) -> None:
        """Ask the worker to end, or end it."""
        self.post("close")
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.kill()
        self.connection.close()


class OtherPython:
    """A worker's process under another interpreter, as `multiprocessing` shows its processes."""

    def __init__(self, python: Path, descriptor: int, key: str, threads: int) -> None:
        command = [str(python), str(ELSEWHERE), str(descriptor), key, str(threads)]
        self.process = subprocess.Popen(command, pass_fds=[descriptor])

    @property
    def exitcode(self) -> int | None:
        """Return the code that it ended with."""
        return self.process.poll()

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self.process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait until it ends, or until the seconds are over."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)

    def kill(self) -> None:
        """End it."""
        self.process.kill()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for child processes to inherit."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Team:
    """The workers of one number of threads, by the key of their peer; started at the first use."""

    def __init__(self, threads: int, make: Callable[[str, int], Any] = Remote) -> None:
        self.threads = threads
        self.make = make
        self.workers: dict[str, Any] = {}

    def prepare(self, keys: list[str], case: Case) -> dict[str, float | Failed | None]:
        """Let all workers prepare a case at the same time.

        Return each error in ulp, None if the peer does not support the case, or why it failed.
        """
        for key in keys:
            if key not in self.workers:
                self.workers[key] = self.make(key, self.threads)
            self.workers[key].post("prepare", case)
        return {key: self._answer(key) for key in keys}

    def _answer(self, key: str) -> Any:
        try:
            return self.workers[key].answer()
        except Failed as failed:
            return failed

    def take_turns(self, keys: list[str], repeats: int) -> dict[str, list[Any]]:
        """Let all workers take a turn in each round, in a new order; leave out those that fail."""
        taken: dict[str, list[Any]] = {key: [] for key in keys}
        shuffle = Random(0).shuffle
        for _ in range(repeats):
            order = list(taken)
            shuffle(order)
            for key in order:
                self.workers[key].post("turn")
                result = self._answer(key)
                if isinstance(result, Failed):
                    del taken[key]
                else:
                    taken[key].append(result)
        return taken

    def release(self) -> None:
        """Let all workers free their memory."""
        for key, remote in self.workers.items():
            remote.post("release")
            self._answer(key)

    def close(self) -> None:
        """End all of them."""
        for remote in self.workers.values():
            remote.close()
        self.workers.clear()
