"""Where the workers of the library's own executor run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import processes
from checkout import COMPILER
from variants import FOUND

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are moved on Linux alone"),
    pytest.mark.skipif(
        "native" not in FOUND.names(), reason="the executor is part of the native extension"
    ),
]

two_processors = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="with one processor there is no other to move to",
)

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


# In the place of the system's function, one that refuses and counts.
REFUSING = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <sched.h>
    int refusals = 0;
    int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *set)
    {
        (void)thread, (void)size, (void)set;
        refusals++;
        errno = EPERM;
        return -1;
    }
"""


def python(code: str, **environment: str) -> list[str]:
    """The words that a new process prints which runs the code behind CALLS."""
    whole = textwrap.dedent(CALLS) + textwrap.dedent(code)
    chosen = {"BNCORE_BACKEND": "native", "BNCORE_EXECUTOR": "own", **environment}
    return processes.python(whole, **chosen).split()


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


def test_callers_at_once_keep_what_is_allowed():
    """Two that move a worker at the same time do not take each other's change for its affinity."""
    kept = python("""
        from threading import Thread

        def calls():
            own = np.empty_like(x)
            for _ in range(100):
                time.sleep(0.0002)
                bncore.batch_norm_train(x, out=own, n_threads=2)

        callers = [Thread(target=calls) for _ in range(4)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
        print(os.sched_getaffinity(worker) == allowed)
    """)
    assert kept == ["True"]


@two_processors
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


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@two_processors
def test_a_system_that_refuses_is_asked_once(tmp_path):
    """As in a sandbox: the calls go on, and their results are right."""
    library = tmp_path / "refusing.so"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", library],
        input=textwrap.dedent(REFUSING), text=True, check=True,
    )  # fmt: skip
    asked, right = python(
        """
        import ctypes

        for _ in range(20):
            call()
        print(ctypes.c_int.in_dll(ctypes.CDLL(None), "refusals").value, (y == 0).all())
        """,
        LD_PRELOAD=str(library),
    )
    assert (asked, right) == ("1", "True")
