"""Forked children in tests."""

from __future__ import annotations

import os
import signal
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
