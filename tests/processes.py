"""Processes in tests: forked children, and fresh interpreters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

SECONDS = 60  # far more than the work takes


def exit_code_of_child(child) -> int:
    """Fork, run child() there, and return its exit code; kill it when it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child())
        finally:
            os._exit(3)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def python(script: str, **environment: str) -> str:
    """What a fresh process prints; no thread setting is inherited."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
