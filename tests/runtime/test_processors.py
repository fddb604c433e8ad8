"""Where the workers of the library's own executor run."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest

import processes
from variants import FOUND

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are moved on Linux alone"),
    pytest.mark.skipif(
        "native" not in FOUND.names(), reason="the executor is part of the native extension"
    ),
]

# A process in which worker 1 sleeps before each call.
CALLS = """
    import os, time
    from pathlib import Path
    import numpy as np
    import bncore

    x = np.ones((8, 64, 64, 64), np.float32)
    y = np.empty_like(x)

    def call():
        time.sleep(0.005)
        bncore.batch_norm_train(x, out=y, n_threads=2)

    worker = None
    while worker is None:  # it may not have begun when the first call ends
        call()
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text() == "bncore-1\\n":
                worker = int(task.name)
    allowed = os.sched_getaffinity(0)
"""


def python(code: str) -> list[str]:
    """The words that a new process prints which runs the code behind CALLS."""
    whole = textwrap.dedent(CALLS) + textwrap.dedent(code)
    return processes.python(whole, BNCORE_BACKEND="native", BNCORE_EXECUTOR="own").split()


def test_a_worker_may_run_where_it_might_before():
    """It is moved for a moment: what the process, or somebody else, allows it stays."""
    kept = python("""
        for processors in (allowed, {min(allowed)}, allowed):
            os.sched_setaffinity(worker, processors)
            for _ in range(10):
                call()
            print(os.sched_getaffinity(worker) == processors)
    """)
    assert kept == ["True"] * 3


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one processor",
)
def test_a_worker_leaves_the_processor_of_its_caller():
    """It is bound to its caller's processor, and may then run on another one, too."""
    (left,) = python("""
        own, other = sorted(allowed)[:2]
        os.sched_setaffinity(0, {own})
        left = 0
        for _ in range(20):
            os.sched_setaffinity(worker, {own})
            call()
            os.sched_setaffinity(worker, {own, other})
            call()
            stat = Path(f"/proc/self/task/{worker}/stat").read_text()
            left += int(stat.rpartition(")")[2].split()[36]) == other
        print(left)
    """)
    assert int(left) > 0
