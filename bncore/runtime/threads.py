"""How many threads a call may use.

The first of these that is given counts: ``n_threads=`` of the call, `set_num_threads`, the
environment variable BNCORE_NUM_THREADS.  Where none is given, it is the least of OMP_NUM_THREADS
(or what the OpenMP runtime says, where it was built in: a program can change that), the CPUs that
this process may run on, and the CPU quota of its cgroup.  `limit`, which threadpoolctl calls,
bounds all of these.  A small problem uses fewer threads.  The results do not depend on any of this.

OpenMP is asked at every call, whichever executor is in use.  The CPUs are counted again where the
last count is older than `CPUS_AGE`, so that a process that is bound to some of them after the
import keeps to those.  Counting at every call would cost a small call a third of its time, and more
on a larger machine.  The environment and the quota are read once, and again after
``set_num_threads(None)``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from time import monotonic
from typing import Any, SupportsIndex

from bncore.arguments import scalars
from bncore.backends import current, native_module

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")

# More threads than this only cost; asking the system for thousands can end the process.
MOST = max(64, os.cpu_count() or 1)

CPUS_AGE = 0.1  # seconds

_set: int | None = None  # set_num_threads
_unlimited: int | None = None  # the number that threadpoolctl was told last while it set no limit
_limit: tuple[int, str] | None = None  # the environment and the cgroup: read once
_openmp: Callable[[], int] | None = None  # OpenMP's own limit, which may change at any time
_least = (1, "")  # that limit, or the CPUs of this process where they are fewer
_counted = -math.inf  # when they were counted
_counting = RLock()  # held by whoever changes these four, so that no change is lost


def set_num_threads(n: SupportsIndex | None) -> None:
    """Set how many threads a call uses where its ``n_threads`` is None.

    Parameters
    ----------
    n : int or None
        At least 1.  Counts above 64 and above the number of CPUs are cut to the larger of the two.
        None goes back to the default: BNCORE_NUM_THREADS, or what the machine allows, read anew.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or below 1.

    Examples
    --------
    >>> import bncore
    >>> bncore.set_num_threads(2)
    >>> bncore.get_num_threads()
    2
    >>> bncore.set_num_threads(None)
    """
    global _set, _limit, _counted
    _set = None if n is None else min(scalars.integer_at_least("n", n, 1), MOST)
    if n is None:
        with _counting:
            _limit, _counted = None, -math.inf


def get_num_threads() -> int:
    """Return how many threads a call uses where its ``n_threads`` is None.

    It is the first of: `set_num_threads`; the environment variable BNCORE_NUM_THREADS; the least
    of OpenMP's own limit (OMP_NUM_THREADS), the CPUs that the process may run on, and the CPU quota
    of its cgroup, rounded up.  A value of OMP_NUM_THREADS that is no integer >= 1 is ignored, as
    OpenMP does.  A limit that is set through threadpoolctl bounds the number further.

    Two executors make it 1 with the native backend: "serial", and "openmp" in a forked child, since
    the threads of OpenMP do not outlive a fork.  The library's own executor starts new threads in
    the child.

    Raises
    ------
    ValueError
        If BNCORE_NUM_THREADS, where it is what counts, is no integer >= 1.
    """
    return in_force()[0]


def resolve(n_threads: SupportsIndex | None) -> int:
    """Return the ``n_threads`` of a call as a number."""
    if n_threads is None:
        return _set or _default(CPUS_AGE)[0]
    if type(n_threads) is int and 1 <= n_threads <= MOST:
        return n_threads
    return min(scalars.integer_at_least("n_threads", n_threads, 1), MOST)


def in_force() -> tuple[int, str]:
    """Return the number of threads that is in force, and what gave it."""
    native = native_module()
    if native is None or current().name != "native":
        return _asked_for()
    executor = native.executor()
    if executor == "serial":
        return 1, "serial executor"
    if executor == "openmp" and native.in_forked_child():
        return 1, "forked child"
    most, found = native.max_threads(), _asked_for()
    return (most, "threadpoolctl") if 0 < most < found[0] else found


def _asked_for() -> tuple[int, str]:
    """Return the number that the program asked for, else the default, and what gave it."""
    return (_set, "set_num_threads") if _set is not None else _default(0.0)


def before_a_limit() -> int:
    """Return the number of threads in force, as threadpoolctl asks before it sets a limit."""
    global _unlimited
    number = in_force()[0]
    native = native_module()
    if native is not None and native.max_threads() == 0:
        _unlimited = number
    return number


def limit(n: int) -> None:
    """Let no call of the native backend take more than `n` threads: what threadpoolctl sets.

    It bounds ``n_threads=`` of a call, too.  The number that was in force without a limit is none:
    threadpoolctl sets that number when a block ends, and from then on a change of the machine or of
    `set_num_threads` counts again.

    Parameters
    ----------
    n : int
        At least 1.
    """
    number = scalars.integer_at_least("n", n, 1)
    native = native_module()
    if native is not None:
        native.set_max_threads(0 if number == _unlimited else number)


def _default(cpus_age: float) -> tuple[int, str]:
    """Find the default number of threads and what gave it; the CPUs counted so lately."""
    if monotonic() - _counted >= cpus_age:
        native = native_module()  # before the lock, since the import of a module has locks, too
        with _counting:
            _count(native)
    openmp, least = _openmp, _least  # another thread may change them
    if openmp is not None:
        number = openmp()
        if number <= least[0]:
            return number, "OpenMP"
    return least


def _count(native: Any) -> None:
    """Read the environment and the cgroup, if that was not done yet, and count the CPUs."""
    global _limit, _openmp, _least, _counted
    limit = _limit
    if limit is None:
        asked = native.omp_max_threads if native is not None and native.has_openmp() else None
        by_hand = os.environ.get("OMP_NUM_THREADS", "") if asked is None else ""
        chosen = environment_limit(os.environ.get("BNCORE_NUM_THREADS", ""))
        _openmp = None if chosen else asked
        _limit = limit = chosen or machine_limit(by_hand)
    if limit[1] == "BNCORE_NUM_THREADS":
        _least, _counted = limit, math.inf
    else:
        _least, _counted = min(limit, (_cpus(), "CPU affinity")), monotonic()


def _after_fork_in_child() -> None:
    """Free the lock, which another thread of the parent may have held: here nobody lets go."""
    global _counting
    _counting = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def environment_limit(text: str) -> tuple[int, str] | None:
    """Read the value of BNCORE_NUM_THREADS; None where it is not set."""
    if not text:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"BNCORE_NUM_THREADS: expected an integer >= 1, got {text!r}")
    return min(number, MOST), "BNCORE_NUM_THREADS"


def machine_limit(omp_num_threads: str) -> tuple[int, str]:
    """Return how many threads the cgroup, OMP_NUM_THREADS and `MOST` allow, and which did.

    OMP_NUM_THREADS matters here where OpenMP's runtime, which reads it itself, cannot be asked.
    """
    limits = [(MOST, "most")]
    quota = cgroup_cpus(CGROUP_ROOT, CGROUP_MEMBERSHIP)
    if quota is not None:
        limits.append((quota, "cgroup CPU quota"))
    # The outermost level of a list such as "4,2"; OpenMP ignores what it cannot read.
    first = omp_num_threads.split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        limits.append((int(first), "OMP_NUM_THREADS"))
    return min(limits)


def _cpus() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpus(root: Path, membership: Path) -> int | None:
    """Return how many CPUs the cgroup's quota amounts to, rounded up; None where it sets none.

    A quota of an ancestor holds for its children too, so the least one on the way up counts.

    Parameters
    ----------
    root : Path
        Where the cgroup file systems are mounted: /sys/fs/cgroup.
    membership : Path
        The file that says which groups the process is in, lines of ``id:controllers:path``:
        /proc/self/cgroup.  In a container its paths may be the host's; then the root counts.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not path:
            continue
        if controllers == "":  # version 2
            mounts, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / controllers, root / "cpu"], _quota_v1
        else:
            continue
        for mount in mounts:
            group = mount / path.strip("/")
            for directory in (group, *group.parents):
                quotas.append(read(directory))
                if directory == mount:
                    break
    known = [quota for quota in quotas if quota is not None]
    return max(1, math.ceil(min(known))) if known else None


def _quota_v2(directory: Path) -> float | None:
    """Read cpu.max: "<quota or max> <period>", both in microseconds."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else _cpus_of(int(quota), int(period))
    except (OSError, ValueError):
        return None


def _quota_v1(directory: Path) -> float | None:
    """Read cpu.cfs_quota_us, -1 for no limit, and cpu.cfs_period_us."""
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return _cpus_of(quota, period)


def _cpus_of(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None
