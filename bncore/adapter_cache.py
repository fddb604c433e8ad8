"""The folder of compiled adapters, and the checks that nobody else could change its files.

A compiled adapter runs with all rights of the process that loads it, so only the process's own user
and root may be able to put a file there.  `usable_folder` checks the folder and every folder above
it, up to the root.  If somebody else owns one of them or can write to it, it warns and returns a
private folder of this process, which is removed when the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import grp
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
import time
import warnings
from pathlib import Path

CACHE = "BNCORE_CACHE_DIR"
PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ACL = "system.posix_acl_access"
ROOT = 0  # root can change every file anyway, so its files are trusted

# How many files of one adapter are kept, and for how long without a use: projects with other
# versions of a framework may share the cache.
KEPT = 8
UNUSED_DAYS = 30
DAY_NS = 24 * 3600 * 10**9

# A compiled adapter ends with this mark and the SHA-256 of all bytes before it.  A loader of ELF
# files ignores everything after the last section.
MARK = b"bncore adapter\n"
SEAL_SIZE = len(MARK) + hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Return the folder of compiled adapters: $BNCORE_CACHE_DIR, or bncore in the user's cache.

    Raises
    ------
    RuntimeError
        If neither the environment nor the system's list of users names a home directory.
    """
    if folder := os.environ.get(CACHE):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says to ignore a relative path
        base = str(Path.home() / ".cache")
    return Path(base) / "bncore"


def usable_folder() -> Path:
    """Return the folder of compiled adapters, and make it if it is missing.

    Where it cannot be used, for whatever reason, this is a private folder of this process, and a
    `RuntimeWarning` says why.

    Returns
    -------
    Path
        Absolute, without symbolic links.

    Raises
    ------
    OSError
        If no private folder can be made either.
    """
    try:
        return prepared(cache_folder())
    except (OSError, RuntimeError) as error:
        return private_folder(str(error))


def prepared(folder: Path) -> Path:
    """Check a folder, make it if it is missing, and return its path without symbolic links.

    Raises
    ------
    PermissionError
        If somebody other than this process's user and root could change its files.
    OSError
        If it cannot be made or is not a folder.
    """
    folder = Path(os.path.realpath(folder))
    for place in (*reversed(folder.parents), folder):
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            _make(place)
            found = os.lstat(place)
        _require_trusted(place, found, last=place == folder)
    return folder


def private_folder(reason: str) -> Path:
    """Return a private folder of this process, and warn that compiled adapters are not kept."""
    made = _own_folder(os.getpid())
    warnings.warn(
        f"bncore does not keep its compiled adapters, because it cannot use the cache: {reason}. "
        f"This process compiles them in {made}, which is removed when it ends. "
        f"{CACHE} names another folder, which only its owner may write",
        RuntimeWarning,
        stacklevel=2,
    )
    return made


@functools.cache
def _own_folder(process: int) -> Path:
    """Make the private folder of a process; a forked child makes its own."""
    refused = []
    for base in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        try:
            base = os.path.realpath(base)
            for place in (*reversed(Path(base).parents), Path(base)):
                _require_trusted(place, os.lstat(place), last=False)
            made = tempfile.mkdtemp(prefix="bncore-", dir=base)
            os.chmod(made, PRIVATE)  # because mkdtemp obeys the umask
        except OSError as error:
            refused.append(str(error))
            continue
        atexit.register(_remove, made, process)
        return Path(made)
    raise PermissionError(f"no folder for compiled adapters can be made: {'; '.join(refused)}")


def _remove(folder: str, process: int) -> None:
    """Remove the private folder when its process ends, but not when a forked child ends."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _make(place: Path) -> None:
    """Make a folder that nobody else can write or read, whatever the umask is."""
    try:
        os.mkdir(place, PRIVATE)
    except FileExistsError:  # another process was faster; the check tells whose it is
        return
    os.chmod(place, PRIVATE)  # a umask such as 0o277 takes away the user's own rights


def _require_trusted(place: Path, found: os.stat_result, *, last: bool) -> None:
    """Raise PermissionError if another user could replace a folder by something else.

    In a folder with the sticky bit, such as /tmp, everybody can make entries, but only their
    owners can remove or rename them.  Such a folder may be above the cache, but may not be the
    cache itself.
    """
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{place}: expected a folder")
    if problem := ownership_problem(place, found, sticky_counts=not last):
        raise PermissionError(f"{place} {problem}")


def ownership_problem(
    place: Path, found: os.stat_result, *, sticky_counts: bool = False
) -> str | None:
    """Say how others than this process's user and root control a file or folder; None if none do.

    Parameters
    ----------
    place : Path
        Of the file or folder.
    found : os.stat_result
        What lstat or fstat says of it.
    sticky_counts : bool, default False
        Whether others may write where the sticky bit is set.
    """
    if found.st_uid not in (ROOT, os.geteuid()):
        return f"belongs to {_user(found.st_uid)}, and this process runs as {_user(os.geteuid())}"
    written_by_others = found.st_mode & OTHERS_WRITE
    if not written_by_others or (sticky_counts and found.st_mode & stat.S_ISVTX):
        return None
    if written_by_others == stat.S_IWGRP and _is_private_group(place, found):
        return None
    return f"can be written by others (its mode is {stat.S_IMODE(found.st_mode):04o})"


def _is_private_group(place: Path, found: os.stat_result) -> bool:
    """Tell whether a group is this user's own: it has the same name and no other member.

    On systems with such groups the usual umask is 0o002.  With an access control list the group's
    permission bit may stand for somebody else, so the answer is then no.
    """
    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(found.st_gid)
        with_list = hasattr(os, "listxattr") and ACL in os.listxattr(place)
    except (KeyError, OSError):
        return False
    own = group.gr_gid == user.pw_gid and group.gr_name == user.pw_name
    return own and not {*group.gr_mem} - {user.pw_name} and not with_list


def _user(uid: int) -> str:
    """Return the name and number of a user for a message."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def file_problem(file: Path) -> str | None:
    """Say why a file in the cache must not be loaded; return None if it may be loaded.

    It must be a regular file (not a symbolic link) that belongs to this process's user or root and
    that nobody else can write to, and it must be complete.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not block
    try:
        number = os.open(file, flags)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if problem := ownership_problem(file, found):
            return problem
        with open(number, "rb", closefd=False) as opened:
            content = opened.read()
    finally:
        os.close(number)
    return None if is_sealed(content) else "is damaged"


def seal(content: bytes) -> bytes:
    """Return the seal to append to a file's content, by which `is_sealed` knows it is complete."""
    return MARK + hashlib.sha256(content).digest()


def is_sealed(content: bytes) -> bool:
    """Tell whether a file ends with the seal of all bytes before it."""
    return len(content) > SEAL_SIZE and content[-SEAL_SIZE:] == seal(content[:-SEAL_SIZE])


def write_durably(file: Path, content: bytes) -> None:
    """Write a file atomically: write it under another name, synchronize it, and rename it.

    If the process or the machine stops in between, the old file or the new one is there, never a
    part of it.
    """
    number, made = tempfile.mkstemp(prefix=f".{file.stem}-", dir=file.parent)
    try:
        with open(number, "wb") as opened:
            os.fchmod(number, PRIVATE)
            opened.write(content)
            opened.flush()
            os.fsync(number)
        os.replace(made, file)
    except BaseException:
        os.unlink(made)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def note_use(file: Path) -> None:
    """Note in a file's time of access that it is used now, for `remove_old`."""
    try:
        found = os.lstat(file)
        now = time.time_ns()
        if now - found.st_atime_ns > DAY_NS:
            os.utime(file, ns=(now, found.st_mtime_ns), follow_symlinks=False)
    except OSError:  # it is root's, or gone
        pass


def remove_old(target: Path, stem: str) -> None:
    """Remove what earlier versions of an adapter have left beside a file of the cache.

    These are its files that nobody has used for `UNUSED_DAYS`, and those beyond the `KEPT` that
    were used last.  What compilers left that were stopped goes, too, so the caller must have the
    adapter's lock.  A process that has loaded a file keeps it.  Errors are ignored.
    """
    with contextlib.suppress(OSError):
        for left in target.parent.glob(f".{stem}-*"):
            _remove_any(left)
        others = [file for file in target.parent.glob(f"{stem}-*.so") if file != target]
        used = {file: os.lstat(file).st_atime_ns for file in others}
        used |= {file: max(used[file], os.lstat(file).st_mtime_ns) for file in others}
        oldest = time.time_ns() - UNUSED_DAYS * DAY_NS
        for i, file in enumerate(sorted(others, key=used.__getitem__, reverse=True)):
            if i >= KEPT - 1 or used[file] < oldest:
                _remove_any(file)


def _remove_any(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def open_lock(file: Path) -> int:
    """Open a lock file for `fcntl.flock`; make it if it is missing, and never write to it.

    A symbolic link is not followed, because otherwise its target could be made or emptied.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    number = os.open(file, flags, 0o600)
    found = os.fstat(number)
    if problem := ownership_problem(file, found):
        os.close(number)
        raise PermissionError(f"{file} {problem}")
    return number
