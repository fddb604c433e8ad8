"""The files of the cache of compiled adapters: whole, the user's own, and removed when old."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from bncore import adapter_cache
from strangers import STRANGER, mode, needs_root, umask


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
