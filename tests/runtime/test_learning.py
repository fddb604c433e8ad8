"""How a process learns whether worker threads are worth it: `src_c/learning.c` alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from checkout import COMPILER, ROOT

SOURCES = ROOT / "src_c"
PROGRAM = Path(__file__).with_name("learning_accounts.c")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    made = tmp_path_factory.mktemp("learning") / "accounts"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    sources = [SOURCES / "learning.c", PROGRAM]
    subprocess.run([COMPILER, *flags, f"-I{SOURCES}", *sources, "-o", made], check=True)
    return made


@pytest.mark.parametrize(
    "mode",
    [
        "idle",  # on an idle machine all jobs use workers
        "busy",  # where every job loses, few jobs use workers
        "recovers",  # an idle machine gets its workers back, though the first job has to wake them
        "never pays",  # jobs that lose a little every time use workers as rarely
    ],
)
def test_jobs_use_workers_where_these_pay(program, mode):
    done = subprocess.run([program, mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
