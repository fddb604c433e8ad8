"""threadpoolctl sees and limits bncore's threads, whichever of the two is imported first."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import threadpoolctl

import bncore
from bncore.runtime import threadpool, threads
from processes import python
from variants import FOUND

pytestmark = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="threadpoolctl looks for the native extension"
)

ORDERS = {
    "bncore first": "import bncore, threadpoolctl",
    "threadpoolctl first": "import threadpoolctl, bncore",
    "looked for before": (
        "import importlib.util, bncore\n"
        "assert importlib.util.find_spec('threadpoolctl')\n"
        "import threadpoolctl"
    ),
}


def entry(infos):
    (found,) = (info for info in infos if info["user_api"] == "bncore")
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_listed_and_limited_in_any_order_of_imports(order):
    script = f"""{ORDERS[order]}
import sys
import numpy as np
before = bncore.get_num_threads()
(info,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "bncore"]
assert info["num_threads"] == before, info
with threadpoolctl.threadpool_limits(1, user_api="bncore"):
    assert bncore.get_num_threads() == 1
assert bncore.get_num_threads() == before
names = [c.__name__ for c in threadpoolctl._ALL_CONTROLLERS]
print(names.count("BncoreController"), "_AfterImport" in [type(f).__name__ for f in sys.meta_path])
"""
    assert python(script, BNCORE_NUM_THREADS="3", BNCORE_BACKEND="native") == "1 False"


def test_bncore_does_not_import_it():
    assert python("import sys, bncore; print('threadpoolctl' in sys.modules)") == "False"


def test_what_is_listed(backend):
    info = entry(threadpoolctl.threadpool_info())
    native = bncore.show_config(mode="dicts")["native"]
    assert info["version"] == bncore.__version__
    assert info["executor"] == native["executor"]
    assert info["internal_api"] == "bncore"
    assert info["num_threads"] == bncore.get_num_threads()


def test_a_limit_bounds_everything_that_asks_for_threads():
    """A limit bounds `set_num_threads` and ``n_threads=``, too; a higher limit has no effect."""
    bncore.set_num_threads(3)
    try:
        with threadpoolctl.threadpool_limits(2, user_api="bncore"):
            assert threads.in_force() == (2, "threadpoolctl")
            with threadpoolctl.threadpool_limits(1):
                assert bncore.get_num_threads() == 1
            assert bncore.get_num_threads() == 2
            with threadpoolctl.threadpool_limits(3, user_api="bncore"):
                assert threads.in_force() == (3, "set_num_threads")
            assert bncore.get_num_threads() == 2
        assert threads.in_force() == (3, "set_num_threads")
    finally:
        bncore.set_num_threads(None)
    assert bncore.show_config(mode="dicts")["native"]["thread_limit"] is None


def test_a_later_change_counts_again_after_the_block():
    """After a block no limit is left."""
    bncore.set_num_threads(2)
    try:
        with threadpoolctl.threadpool_limits(1, user_api="bncore"):
            pass
        bncore.set_num_threads(4)
        assert bncore.get_num_threads() == 4
    finally:
        bncore.set_num_threads(None)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux lists them")
@pytest.mark.parametrize("executor", ["own", "openmp"])
def test_a_limited_call_starts_no_thread(executor):
    script = """
        import os, time
        import numpy as np
        import bncore, threadpoolctl
        bncore.get_num_threads()  # the extension is loaded
        x = np.ones((8, 64, 64, 64), np.float32)
        def started(enough):
            # On a busy machine calls may do without further threads for a while.
            before, end = len(os.listdir("/proc/self/task")), time.monotonic() + 30
            for _ in range(50):
                bncore.batch_norm_train(x, n_threads=3)
            while (found := len(os.listdir("/proc/self/task")) - before) < enough:
                bncore.batch_norm_train(x, n_threads=3)
                if time.monotonic() > end:
                    break
            return found
        with threadpoolctl.threadpool_limits(1):
            print(started(0))
        print(started(2))
    """
    if executor not in bncore.show_config(mode="dicts")["native"]["executors"]:
        pytest.skip("built without OpenMP")
    options = {"BNCORE_EXECUTOR": executor, "BNCORE_BACKEND": "native"}
    assert python(script, OPENBLAS_NUM_THREADS="1", **options).split() == ["0", "2"]


def test_a_limit_changes_no_bit(rng):
    x = rng.standard_normal((8, 64, 32, 32), dtype=np.float32)
    expected, _ = bncore.batch_norm_train(x, n_threads=3)
    with threadpoolctl.threadpool_limits(1):
        limited, _ = bncore.batch_norm_train(x, n_threads=3)
    assert limited.tobytes() == expected.tobytes()


def test_another_library_of_the_same_name_is_left_alone():
    """The controller is asked for its version before the symbols are looked at."""
    make = threadpool.controller(threadpoolctl)
    other = make.__new__(make)
    other.dynlib = object()
    assert make.get_version(other) is None


def test_a_threadpoolctl_that_knows_no_controllers_is_left_alone(monkeypatch):
    class Old:
        pass

    monkeypatch.setitem(sys.modules, "threadpoolctl", Old)
    finders = list(sys.meta_path)
    threadpool.watch()
    assert sys.meta_path == finders
