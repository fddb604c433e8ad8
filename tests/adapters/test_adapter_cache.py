"""Only the process's own user and root can put a file where compiled adapters are loaded from."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bncore import adapter_cache

STRANGER = 54321  # a user and a group that no list names

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="makes files of another user, which only root can do"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@contextlib.contextmanager
def umask(value: int):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The place of the cache, where nothing is yet."""
    place = tmp_path / "above" / "bncore"
    monkeypatch.setenv(adapter_cache.CACHE, str(place))
    return place


def assert_not_used(cache: Path, reason: str) -> Path:
    """The folder is refused with this reason, and a private one is used instead."""
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        used = adapter_cache.usable_folder()
    assert used not in (cache, cache.resolve())
    assert mode(used) == 0o700
    assert os.lstat(used).st_uid == os.geteuid()
    assert str(used) in str(caught[0].message)
    assert "BNCORE_CACHE_DIR names another folder" in str(caught[0].message)
    return used


# The place of the cache


def test_the_cache_is_the_users_unless_another_is_named(monkeypatch):
    monkeypatch.setenv(adapter_cache.CACHE, "/named")
    assert adapter_cache.cache_folder() == Path("/named")
    monkeypatch.delenv(adapter_cache.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert adapter_cache.cache_folder() == Path("/caches/bncore")
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert adapter_cache.cache_folder() == Path("/home/somebody/.cache/bncore")


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o377], ids=oct)
def test_what_is_made_is_the_users_alone_whatever_the_umask(cache, mask):
    with umask(mask):
        assert adapter_cache.usable_folder() == cache.resolve()
    assert mode(cache) == mode(cache.parent) == 0o700


def test_a_folder_that_others_can_only_read_is_used_as_it_is(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o755)
    assert adapter_cache.usable_folder() == cache.resolve()
    assert mode(cache) == 0o755


def test_symbolic_links_are_followed_once(cache, tmp_path):
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    cache.parent.mkdir(mode=0o700)
    cache.symlink_to(own)
    assert adapter_cache.usable_folder() == own.resolve()


# Folders that somebody else could change


@pytest.mark.parametrize("writable", [0o777, 0o772, 0o1777], ids=oct)
def test_a_cache_that_others_can_write_is_not_used(cache, writable):
    cache.mkdir(parents=True)
    cache.chmod(writable)
    assert_not_used(cache, rf"bncore can be written by others \(its mode is {writable:04o}\)")


def test_a_cache_below_a_folder_that_others_can_write_is_not_used(cache):
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o777)
    assert_not_used(cache, "above can be written by others")


def test_a_sticky_folder_may_stand_above_the_cache(cache):
    cache.parent.mkdir()
    cache.parent.chmod(0o1777)
    assert adapter_cache.usable_folder() == cache.resolve()
    assert mode(cache) == 0o700


@needs_root
@pytest.mark.parametrize("whose", ["cache", "folder above"])
@pytest.mark.parametrize("sticky", [False, True], ids=["", "sticky"])
def test_a_folder_of_another_user_is_not_used(cache, whose, sticky):
    cache.mkdir(parents=True, mode=0o700)
    foreign = cache if whose == "cache" else cache.parent
    os.chown(foreign, STRANGER, STRANGER)
    foreign.chmod(0o1700 if sticky else 0o700)
    name = foreign.name
    assert_not_used(cache, rf"{name} belongs to uid {STRANGER}, and this process runs as root")


@needs_root
def test_what_another_user_puts_into_a_sticky_folder_first_is_not_used(cache):
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o1777)
    os.chown(cache, STRANGER, STRANGER)
    assert_not_used(cache, f"belongs to uid {STRANGER}")


@needs_root
def test_a_link_to_a_folder_of_another_user_is_not_used(cache, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, STRANGER, STRANGER)
    cache.parent.mkdir(mode=0o700)
    cache.symlink_to(foreign)
    assert_not_used(cache, f"foreign belongs to uid {STRANGER}")


@needs_root
def test_a_home_directory_that_sudo_kept_is_not_used(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    os.chown(home, STRANGER, STRANGER)
    for name in (adapter_cache.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert_not_used(home / ".cache" / "bncore", f"home belongs to uid {STRANGER}")
    assert list(home.iterdir()) == []


def test_a_cache_that_is_no_folder_is_not_used(cache):
    cache.parent.mkdir(mode=0o700)
    cache.write_text("a file")
    assert_not_used(cache, "bncore: expected a folder")
    assert cache.read_text() == "a file"


def test_a_group_of_the_users_own_may_write(cache, monkeypatch):
    """Where every user has one, folders are often made with the umask 0o002."""
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    gid = os.lstat(cache).st_gid
    user = SimpleNamespace(pw_name="ada", pw_gid=gid)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    group = SimpleNamespace(gr_name="ada", gr_gid=gid, gr_mem=["ada"])
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    assert adapter_cache.usable_folder() == cache.resolve()
    with monkeypatch.context() as access_list:
        access_list.setattr(os, "listxattr", lambda place: [adapter_cache.ACL])
        assert_not_used(cache, "can be written by others")
    group.gr_mem = ["ada", "bob"]
    assert_not_used(cache, "can be written by others")
    group.gr_mem, group.gr_name = [], "users"
    assert_not_used(cache, "can be written by others")


# The private folder

ALONE = """
import os, sys, warnings
from bncore import adapter_cache

warnings.simplefilter("ignore")
os.environ.pop(adapter_cache.CACHE, None)
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("HOME", None)
if os.geteuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
else:
    os.environ["HOME"] = "/dev/null"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    folder = adapter_cache.usable_folder()
print(folder)
print(folder.is_dir(), oct(folder.stat().st_mode & 0o7777), folder.stat().st_uid == os.geteuid())
print(caught[0].message)
"""


def test_without_a_home_directory_a_process_has_a_folder_of_its_own(tmp_path):
    """A container may have a user who is not in /etc/passwd."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, state, said = done.stdout.splitlines()
    assert state == "True 0o700 True"
    assert "it cannot use the cache" in said
    if os.geteuid() == 0:
        assert "home directory" in said
    assert not Path(folder).exists()  # it went with its process


FORK = """
import os, sys, warnings
from bncore import adapter_cache

warnings.simplefilter("ignore")
folder = adapter_cache.private_folder("a test")
child = os.fork()
if child == 0:
    print(adapter_cache.private_folder("a test") != folder)
    sys.exit()
os.waitpid(child, 0)
print(folder.is_dir())
"""


def test_a_forked_child_has_its_own_and_leaves_that_of_its_parent():
    done = subprocess.run([sys.executable, "-u", "-c", FORK], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("of_stranger", [False, pytest.param(True, marks=needs_root)])
def test_a_temporary_folder_that_others_control_is_passed_over(tmp_path, monkeypatch, of_stranger):
    base = tmp_path / "temporary"
    base.mkdir()
    base.chmod(0o700 if of_stranger else 0o777)
    if of_stranger:
        os.chown(base, STRANGER, STRANGER)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    adapter_cache._own_folder.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="a test"):
            folder = adapter_cache.private_folder("a test")
    finally:
        adapter_cache._own_folder.cache_clear()
    assert base not in folder.parents
    folder.rmdir()


def test_without_any_temporary_folder_there_is_an_error(monkeypatch):
    def full(**kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    adapter_cache._own_folder.cache_clear()
    with pytest.raises(PermissionError, match=r"no folder for compiled .*no space left"):
        adapter_cache.private_folder("a test")


# Files


@pytest.fixture
def kept(tmp_path) -> Path:
    file = tmp_path / "kept.so"
    adapter_cache.write_durably(file, b"content" + adapter_cache.seal(b"content"))
    return file


@pytest.mark.parametrize("mask", [0, 0o022, 0o377], ids=oct)
def test_a_kept_file_is_whole_and_the_users_alone(tmp_path, mask):
    file = tmp_path / "kept.so"
    with umask(mask):
        adapter_cache.write_durably(file, b"content" + adapter_cache.seal(b"content"))
    assert mode(file) == 0o700
    assert adapter_cache.file_problem(file) is None
    assert [path.name for path in tmp_path.iterdir()] == ["kept.so"]


def test_a_file_and_its_folder_are_synchronized_around_the_renaming(tmp_path, monkeypatch):
    done = []

    def fsync(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")

    def replace(made, file, replace=os.replace):
        done.append("rename")
        replace(made, file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    adapter_cache.write_durably(tmp_path / "kept.so", b"content")
    assert done == ["file", "rename", "folder"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(kept, monkeypatch):
    def fsync(number):
        raise OSError("no space left")

    before = kept.read_bytes()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no space left"):
        adapter_cache.write_durably(kept, b"new")
    assert kept.read_bytes() == before
    assert [path.name for path in kept.parent.iterdir()] == ["kept.so"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "changed", "longer"])
def test_a_damaged_file_is_noticed(kept, damage):
    content = kept.read_bytes()
    kept.write_bytes(
        {
            "empty": b"",
            "truncated": content[:-1],
            "changed": b"C" + content[1:],
            "longer": content + b"\0",
        }[damage]
    )
    assert adapter_cache.file_problem(kept) == "is damaged"


@pytest.mark.parametrize("writable", [0o777, 0o702, 0o720], ids=oct)
def test_a_file_that_others_can_write_is_not_loaded(kept, writable, monkeypatch):
    monkeypatch.setattr(adapter_cache, "_is_private_group", lambda place, found: False)
    kept.chmod(writable)
    assert f"can be written by others (its mode is {writable:04o})" in str(
        adapter_cache.file_problem(kept)
    )


@needs_root
def test_a_file_of_another_user_is_not_loaded(kept):
    os.chown(kept, STRANGER, STRANGER)
    assert f"belongs to uid {STRANGER}" in str(adapter_cache.file_problem(kept))


def test_what_is_no_regular_file_is_not_loaded(kept, tmp_path):
    link, pipe, folder = (tmp_path / name for name in ("link", "pipe", "folder"))
    link.symlink_to(kept)
    os.mkfifo(pipe)
    folder.mkdir()
    assert "cannot be opened" in str(adapter_cache.file_problem(link))
    assert adapter_cache.file_problem(pipe) == "is not a regular file"
    assert adapter_cache.file_problem(folder) == "is not a regular file"


def aged(file, days, content=b"x"):
    """Make a file of the cache that was used some days ago."""
    file.write_bytes(content)
    then = time.time() - days * 24 * 3600
    os.utime(file, (then, then))
    return file


def test_what_is_no_longer_used_is_removed(tmp_path):
    """By age, by number, and what stopped compilers left; other adapters' files stay."""
    target = aged(tmp_path / "answer-0000.so", 99)
    recent = [aged(tmp_path / f"answer-{i:04}.so", i) for i in range(1, 12)]
    old = aged(tmp_path / "answer-9999.so", adapter_cache.UNUSED_DAYS + 1)
    others = [aged(tmp_path / name, 99) for name in ("other-1.so", "answer.lock", ".other-1")]
    left = tmp_path / ".answer-abc"
    left.mkdir()
    (left / "answer-1.so").touch()
    aged(tmp_path / ".answer-def", 0)
    adapter_cache.remove_old(target, "answer")
    kept = [target, *recent[: adapter_cache.KEPT - 1], *others]
    assert set(tmp_path.iterdir()) == set(kept)
    assert old not in kept


def test_a_file_that_is_used_is_not_old(tmp_path):
    target, used = tmp_path / "answer-0.so", aged(tmp_path / "answer-1.so", 99)
    before = used.stat()
    adapter_cache.note_use(used)
    assert used.stat().st_mtime_ns == before.st_mtime_ns
    adapter_cache.remove_old(target, "answer")
    assert used.exists()
    adapter_cache.note_use(tmp_path / "gone.so")  # nothing happens
    adapter_cache.remove_old(tmp_path / "gone" / "answer-0.so", "answer")


def test_the_lock_file_is_neither_followed_nor_emptied_nor_inherited(tmp_path):
    victim, link, lock = (tmp_path / name for name in ("victim", "link.lock", "own.lock"))
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        adapter_cache.open_lock(link)
    assert victim.read_text() == "precious"
    link.unlink()
    link.symlink_to(tmp_path / "not there")
    with pytest.raises(OSError, match="symbolic links"):
        adapter_cache.open_lock(link)
    assert not (tmp_path / "not there").exists()

    lock.write_text("kept")
    with umask(0):
        numbers = [adapter_cache.open_lock(lock), adapter_cache.open_lock(tmp_path / "new.lock")]
    assert lock.read_text() == "kept"
    assert mode(tmp_path / "new.lock") == 0o600
    assert not any(map(os.get_inheritable, numbers))
    for number in numbers:
        os.close(number)


@needs_root
def test_a_lock_file_of_another_user_is_refused(tmp_path):
    lock = tmp_path / "own.lock"
    lock.touch(mode=0o666)
    os.chown(lock, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match=f"belongs to uid {STRANGER}"):
        adapter_cache.open_lock(lock)
