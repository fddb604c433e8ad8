"""The default number of threads: the order of the settings, and the limits of the machine."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest

import bncore
from bncore.runtime import threads


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Start without any setting or cached number, and restore everything afterwards."""
    for name in ("_set", "_unlimited", "_limit", "_openmp"):
        monkeypatch.setattr(threads, name, None)
    monkeypatch.setattr(threads, "_counted", -math.inf)
    monkeypatch.setattr(threads, "_least", (1, ""))
    monkeypatch.delenv("BNCORE_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class Native:
    """Stands in for the native module; `openmp` is None where it was built without OpenMP."""

    def __init__(self, openmp, executor="own"):
        self.openmp = openmp
        self.name = executor
        self.most = 0

    def has_openmp(self):
        return self.openmp is not None

    def omp_max_threads(self):
        return self.openmp or 1

    def executor(self):
        return self.name

    def max_threads(self):
        return self.most

    def set_max_threads(self, threads):
        self.most = threads

    def in_forked_child(self):
        return False


def machine(monkeypatch, *, openmp=None, cpus=8, quota=None, native=None):
    native = native or (None if openmp is None else Native(openmp))
    monkeypatch.setattr(threads, "native_module", lambda: native)
    monkeypatch.setattr(threads, "_cpus", lambda: cpus)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda root, membership: quota)
    return native


def test_the_least_limit_counts(monkeypatch):
    for limits, expected in (
        ({"openmp": 4}, (4, "OpenMP")),
        ({"openmp": 16}, (8, "CPU affinity")),
        ({"openmp": 16, "quota": 3}, (3, "cgroup CPU quota")),
        ({"openmp": 2, "quota": 3}, (2, "OpenMP")),
        ({"openmp": 8}, (8, "CPU affinity")),
        ({"openmp": 3, "quota": 3}, (3, "cgroup CPU quota")),
        ({}, (8, "CPU affinity")),
        ({"quota": 5}, (5, "cgroup CPU quota")),
    ):
        monkeypatch.setattr(threads, "_limit", None)
        machine(monkeypatch, **limits)
        assert threads.in_force() == expected
        assert bncore.get_num_threads() == expected[0]


@pytest.mark.parametrize(("text", "openmp", "expected"), [
    ("4", 4, (4, "OMP_NUM_THREADS")), ("8,2", 8, (8, "OMP_NUM_THREADS")),
    ("4", 3, (3, "OpenMP")),  # the program has changed it
    ("8", 16, (8, "CPU affinity")), ("16", 16, (8, "CPU affinity")),
    ("8", None, (8, "OMP_NUM_THREADS")), ("many", 8, (8, "CPU affinity")),
])  # fmt: skip
def test_the_variable_of_openmp_is_named_if_it_decides(monkeypatch, text, openmp, expected):
    machine(monkeypatch, native=Native(openmp))
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads.in_force() == expected


def test_openmp_is_asked_every_time(monkeypatch):
    native = machine(monkeypatch, openmp=4)
    assert bncore.get_num_threads() == 4
    native.openmp = 1
    assert bncore.get_num_threads() == 1


@pytest.mark.parametrize(("text", "expected"), [("3", (3, "OMP_NUM_THREADS")), ("", None)])
def test_a_build_without_openmp_reads_its_variable_and_takes_all_processors(
    monkeypatch, text, expected
):
    machine(monkeypatch, native=Native(None))
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads.in_force() == (expected or (8, "CPU affinity"))


def test_serial_is_one_thread(monkeypatch):
    monkeypatch.setattr(threads, "current", lambda: SimpleNamespace(name="native"))
    machine(monkeypatch, native=Native(4, "serial"))
    bncore.set_num_threads(3)
    assert threads.in_force() == (1, "serial executor")


def test_a_limit_bounds_what_is_set_and_ends_with_the_number_before_it(monkeypatch):
    native = machine(monkeypatch, openmp=6)
    monkeypatch.setattr(threads, "current", lambda: SimpleNamespace(name="native"))
    assert threads.before_a_limit() == 6
    native.openmp = 1  # threadpoolctl limits OpenMP's runtime, too, maybe before this one
    threads.limit(1)
    assert native.most == 1
    native.openmp = 6
    threads.limit(2)
    assert threads.in_force() == (2, "threadpoolctl")
    assert threads.before_a_limit() == 2
    bncore.set_num_threads(5)
    assert threads.in_force() == (2, "threadpoolctl")
    threads.limit(6)
    assert native.most == 0
    assert threads.in_force() == (5, "set_num_threads")
    with pytest.raises(ValueError, match=r"^n: expected an integer >= 1, got 0"):
        threads.limit(0)


def test_another_backend_is_not_limited(monkeypatch):
    machine(monkeypatch, openmp=6)
    threads.limit(2)
    monkeypatch.setattr(threads, "current", lambda: SimpleNamespace(name="numpy"))
    assert threads.in_force() == (6, "OpenMP")


def test_without_the_native_module_there_is_nothing_to_limit(monkeypatch):
    machine(monkeypatch, cpus=4)
    threads.limit(1)
    assert threads.in_force() == (4, "CPU affinity")


def test_the_cpus_are_counted_again(monkeypatch):
    """A question for the number counts CPUs anew; a call does so after a tenth of a second."""
    now = 100.0
    machine(monkeypatch, cpus=8)
    monkeypatch.setattr(threads, "monotonic", lambda: now)
    assert threads.resolve(None) == 8
    machine(monkeypatch, cpus=3)
    now += threads.CPUS_AGE / 2
    assert threads.resolve(None) == 8
    now += threads.CPUS_AGE
    assert threads.resolve(None) == 3
    machine(monkeypatch, cpus=2)
    assert bncore.get_num_threads() == threads.resolve(None) == 2
    machine(monkeypatch, cpus=1)
    bncore.set_num_threads(None)
    assert threads.resolve(None) == 1


def test_the_quota_is_read_again_when_the_default_is_asked_for(monkeypatch):
    machine(monkeypatch, quota=3)
    assert bncore.get_num_threads() == 3
    machine(monkeypatch, quota=5)
    assert bncore.get_num_threads() == 3
    bncore.set_num_threads(None)
    assert bncore.get_num_threads() == 5


@pytest.mark.parametrize(("text", "expected"), [
    ("3", 3), ("3,2", 3), (" 5 ", 5), ("64", 8), ("", 8), ("0", 8), ("many", 8), ("-1", 8),
])  # fmt: skip
def test_omp_num_threads_is_read_where_openmp_is_not_there(monkeypatch, text, expected):
    machine(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert threads.in_force()[0] == expected


def test_the_environment_comes_before_the_machine_and_set_num_threads_before_both(monkeypatch):
    machine(monkeypatch, openmp=4)
    monkeypatch.setenv("BNCORE_NUM_THREADS", "7")
    assert threads.in_force() == (7, "BNCORE_NUM_THREADS")
    bncore.set_num_threads(3)
    assert threads.in_force() == (3, "set_num_threads")
    assert threads.resolve(None) == bncore.get_num_threads() == 3
    assert threads.resolve(5) == 5
    bncore.set_num_threads(None)
    assert bncore.get_num_threads() == 7


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5", " "])
def test_a_bad_environment_is_named(monkeypatch, text):
    monkeypatch.setenv("BNCORE_NUM_THREADS", text)
    with pytest.raises(ValueError) as raised:
        bncore.get_num_threads()
    message = f"BNCORE_NUM_THREADS: expected an integer >= 1, got {text!r}"
    assert str(raised.value) == message


def test_thousands_are_cut(monkeypatch):
    most = max(64, os.cpu_count())
    for given in (most + 1, 2**31, 2**70):
        assert threads.resolve(given) == most
        bncore.set_num_threads(given)
        assert bncore.get_num_threads() == most
    bncore.set_num_threads(None)
    monkeypatch.setenv("BNCORE_NUM_THREADS", "1000000")
    assert bncore.get_num_threads() == most


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError),
                                          (True, TypeError), ("2", TypeError)])  # fmt: skip
def test_set_num_threads_wants_a_count(n, error):
    with pytest.raises(error, match=r"^n: expected an integer >= 1, got "):
        bncore.set_num_threads(n)


def test_this_process_has_a_cpu():
    assert 1 <= threads._cpus() <= os.cpu_count()


# ------------------------------------------------------------------------------------- cgroup files


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return threads.cgroup_cpus(root / "fs", root / "self")


V2 = "0::/user.slice/job"


@pytest.mark.parametrize(("files", "expected"), [
    ({"self": V2, "fs/user.slice/job/cpu.max": "200000 100000"}, 2),
    ({"self": V2, "fs/user.slice/job/cpu.max": "150000 100000"}, 2),
    ({"self": V2, "fs/user.slice/job/cpu.max": "10000 100000"}, 1),
    ({"self": V2, "fs/user.slice/job/cpu.max": "max 100000"}, None),
    ({"self": V2, "fs/user.slice/job/cpu.max": "max 100000",
      "fs/user.slice/cpu.max": "300000 100000"}, 3),
    ({"self": V2, "fs/user.slice/job/cpu.max": "400000 100000",
      "fs/user.slice/cpu.max": "300000 100000"}, 3),
    # In a container: the path is the host's, the files are at the root.
    ({"self": V2, "fs/cpu.max": "50000 25000"}, 2),
    ({"self": "0::/", "fs/cpu.max": "250000 100000"}, 3),
    ({"self": "0::/../other", "fs/cpu.max": "250000 100000"}, 3),
    ({"self": "4:cpu,cpuacct:/job\n3:memory:/job", "fs/cpu,cpuacct/job/cpu.cfs_quota_us": "350000",
      "fs/cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 4),
    ({"self": "4:cpu,cpuacct:/job", "fs/cpu/cpu.cfs_quota_us": "100000",
      "fs/cpu/cpu.cfs_period_us": "100000"}, 1),
    ({"self": "4:cpu:/", "fs/cpu/cpu.cfs_quota_us": "-1",
      "fs/cpu/cpu.cfs_period_us": "100000"}, None),
    # Both versions: the controllers of version 1, and an empty version 2.
    ({"self": "4:cpu:/job\n0::/job", "fs/cpu/job/cpu.cfs_quota_us": "200000",
      "fs/cpu/job/cpu.cfs_period_us": "100000"}, 2),
    ({"self": "3:cpuset:/job", "fs/cpuset/job/cpu.max": "100000 100000"}, None),
    ({"self": V2, "fs/user.slice/job/cpu.max": "nonsense"}, None),
    ({"self": V2, "fs/user.slice/job/cpu.max": "100000 0"}, None),
    ({"self": "a:b\n\n0::/", "fs/cpu.max": "100000 100000"}, 1),
    ({"self": "what is this", "fs/cpu.max": "100000 100000"}, None),
    ({"self": V2}, None),
    ({}, None),
])  # fmt: skip
def test_cgroup_quota(tmp_path, files, expected):
    assert tree(tmp_path, files) == expected
