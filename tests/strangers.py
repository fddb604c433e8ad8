"""Modes of files, and files of another user."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

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
