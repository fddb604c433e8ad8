"""Only the process's own user and root can put a file where compiled adapters are loaded from."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bncore import adapter_cache
from strangers import STRANGER, mode, needs_root, umask


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
