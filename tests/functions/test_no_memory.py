"""When memory runs out in a small call, it raises MemoryError and nothing else.

CPython can let its own allocations fail from the n-th on.  Every function with a fast path is
called in this way, in a process of its own, for n = 1, 2, ... until the call succeeds.  Calls that
leave the fast path run NumPy's code.  Some of it ends the process (`numpy.errstate`) or raises
SystemError (ufuncs) when memory runs out, and bncore cannot change that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bncore
import calls

pytest.importorskip("_testcapi", reason="this Python has no allocations that can be made to fail")

PROGRAM = """
import gc
import sys
import _testcapi
import bncore
import calls

FAST = (
    "batch_norm_train", "batch_norm_train_backward", "batch_norm_infer",
    "batch_norm_infer_backward", "moments", "normalize", "grad_sums", "grad_input", "mean_var",
    "update_running_stats",
)
MOST = 100  # allocations of one call
strange, raised = [], [None]
sys.unraisablehook = lambda given: strange.append("ignored " + given.exc_type.__name__)


def attempt(call, arguments, number):
    # With no memory from the n-th allocation on; nothing here may allocate meanwhile.
    raised[0] = None
    gc.collect()  # empties the lists of free objects, which need no allocation
    _testcapi.set_nomemory(number, 0)
    try:
        call.function(**arguments)
    except BaseException as error:
        raised[0] = error
    finally:
        _testcapi.remove_mem_hooks()
    return raised[0]


failed = 0
for name in FAST:
    call = calls.CALLS[name]
    for fused in (False, True):
        arguments = call.arguments(fused=fused)
        if name == "mean_var":
            arguments["axis"] = 0
        for _ in range(3):
            call(arguments)
        for number in range(1, MOST):
            error = attempt(call, arguments, number)
            if error is None:
                break
            failed += 1
            if not isinstance(error, MemoryError):
                strange.append(f"{name}: {error!r} at {number}")
        else:
            strange.append(f"{name}: never enough")
print(*strange, sep="; ")
sys.exit(bool(strange) or failed < len(FAST))
"""


NATIVE = bncore.show_config("dicts")["backend"] == "native"


@pytest.mark.skipif(not NATIVE, reason="only the native backend answers small calls at once")
def test_only_memory_errors():
    path = os.pathsep.join([str(Path(calls.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
