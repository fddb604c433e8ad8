"""How many threads a call may use.

The number is the first of these that is given: ``n_threads=`` of the call, `set_num_threads`, the
environment variable BNCORE_NUM_THREADS.  If none is given, it is the least of OMP_NUM_THREADS, the
number of CPUs that this process may run on, and the CPU quota of its cgroup.  If OpenMP was built
in, its runtime's own number takes the place of OMP_NUM_THREADS, because a program can change it.
`limit`, which threadpoolctl calls, bounds all of these.  A small problem uses fewer threads.  The
results do not depend on any of this.

OpenMP's number is read at every call, whichever executor is in use.  The CPUs are counted again if
the last count is older than `CPUS_AGE`, so that bncore notices when a process is bound to some CPUs
after the import.  Counting at every call would take a third of the time of a small call, and more
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

# More threads than this only cost time, and creating thousands can end the process.
MOST = max(64, os.cpu_count() or 1)

CPUS_AGE = 0.1  # seconds

_set: int | None = None  # the number of set_num_threads
_unlimited: int | None = None  # the number that threadpoolctl last read while it had set no limit
_limit: tuple[int, str] | None = None  # from the environment and the cgroup, read once
_openmp: Callable[[], int] | None = None  # gives OpenMP's own limit, which may change at any time
_least = (1, "")  # that limit, or the number of this process's CPUs if it is smaller
_counted = -math.inf  # when the CPUs were counted
_counting = RLock()  # protects changes of the last four, so that none is lost


def set_num_threads(n: SupportsIndex | None) -> None:
    """Set how many threads a call uses if its ``n_threads`` is None.

    Parameters
    ----------
    n : int or None
        At least 1, and at most 64 or the number of CPUs, whichever is larger; a larger `n` is
        reduced to that.  None restores the default: BNCORE_NUM_THREADS or what the machine allows.
        Both are then read again.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or is below 1.

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
    """Return how many threads a call uses if its ``n_threads`` is None.

    It is the first of these that is given: `set_num_threads`; the environment variable
    BNCORE_NUM_THREADS; the least of OpenMP's own limit (OMP_NUM_THREADS), the number of CPUs that
    the process may run on, and the CPU quota of its cgroup, rounded up.  A value of OMP_NUM_THREADS
    that is not an integer >= 1 is ignored, as OpenMP does.  A limit that was set through
    threadpoolctl bounds the number further.

    With the native backend, two executors always use 1 thread: "serial", and "openmp" in a forked
    child, because OpenMP's threads do not survive a fork.  The library's own executor starts new
    threads in the child.

    Raises
    ------
    ValueError
        If BNCORE_NUM_THREADS determines the number and is not an integer >= 1.
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
    """Return the number of threads in force, and where it comes from."""
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
    """Return the number that the program set, or the default, and where it comes from."""
    if _set is not None:
        return _set, "set_num_threads"
    number, source = _default(0.0)
    if source != "BNCORE_NUM_THREADS" and number == _omp_num_threads():
        openmp = _openmp  # a program may have changed OpenMP's number since the start
        if openmp is None or openmp() == number:
            return number, "OMP_NUM_THREADS"
    return number, source


def before_a_limit() -> int:
    """Return the number of threads in force; threadpoolctl reads it before it sets a limit."""
    global _unlimited
    number = in_force()[0]
    native = native_module()
    if native is not None and native.max_threads() == 0:
        _unlimited = number
    return number


def limit(n: int) -> None:
    """Limit all calls of the native backend to `n` threads; threadpoolctl calls this.

    The limit also bounds ``n_threads=`` of a call.  When a ``with`` block of threadpoolctl ends, it
    sets the number that was in force before.  That number therefore removes the limit, so that
    changes of the machine and of `set_num_threads` take effect again.

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
    """Find the default number of threads and where it comes from, with a recent count of CPUs."""
    if monotonic() - _counted >= cpus_age:
        native = native_module()  # before taking the lock, because importing takes locks, too
        with _counting:
            _count(native)
    openmp, least = _openmp, _least  # read once, because another thread may change them
    if openmp is not None:
        number = openmp()
        if number < least[0]:  # if they are equal, the machine decides, and OpenMP only follows it
            return number, "OpenMP"
    return least


def _count(native: Any) -> None:
    """Read the environment and the cgroup if this was not done yet, and count the CPUs."""
    global _limit, _openmp, _least, _counted
    limit = _limit
    if limit is None:
        asked = native.omp_max_threads if native is not None and native.has_openmp() else None
        by_hand = _omp_num_threads() if asked is None else None
        chosen = environment_limit(os.environ.get("BNCORE_NUM_THREADS", ""))
        _openmp = None if chosen else asked
        _limit = limit = chosen or machine_limit(by_hand)
    if limit[1] == "BNCORE_NUM_THREADS":
        _least, _counted = limit, math.inf
    else:
        _least, _counted = min(limit, (_cpus(), "CPU affinity")), monotonic()


def _after_fork_in_child() -> None:
    """Make a new lock: another thread of the parent may have held the old one during the fork."""
    global _counting
    _counting = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def environment_limit(text: str) -> tuple[int, str] | None:
    """Return the number in BNCORE_NUM_THREADS, or None if it is not set."""
    if not text:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"BNCORE_NUM_THREADS: expected an integer >= 1, got {text!r}")
    return min(number, MOST), "BNCORE_NUM_THREADS"


def machine_limit(omp_num_threads: int | None) -> tuple[int, str]:
    """Return how many threads the cgroup, OMP_NUM_THREADS and `MOST` allow, and which one decided.

    OMP_NUM_THREADS is used here only if OpenMP's runtime, which reads it itself, is not available.
    """
    limits = [(MOST, "most")]
    quota = cgroup_cpus(CGROUP_ROOT, CGROUP_MEMBERSHIP)
    if quota is not None:
        limits.append((quota, "cgroup CPU quota"))
    if omp_num_threads is not None:
        limits.append((omp_num_threads, "OMP_NUM_THREADS"))
    return min(limits)


def _omp_num_threads() -> int | None:
    """Return the number in OMP_NUM_THREADS, or None if it is not set or not an integer >= 1."""
    # Use the outermost level of a list such as "4,2".  Ignore what cannot be read, as OpenMP does.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _cpus() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpus(root: Path, membership: Path) -> int | None:
    """Return the cgroup's quota in CPUs, rounded up, or None if there is no quota.

    The quota of a group also bounds the groups below it, so the smallest on the way up counts.

    Parameters
    ----------
    root : Path
        The directory where the cgroup file systems are mounted: /sys/fs/cgroup.
    membership : Path
        The file that lists the groups of the process, in lines of ``id:controllers:path``:
        /proc/self/cgroup.  In a container its paths may be those of the host; then the function
        uses the root.
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
