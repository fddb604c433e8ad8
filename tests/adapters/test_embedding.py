"""The commands of docs/embedding.md build docs/embed_example.c, which computes what Python does."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from checkout import ROOT, blocks_of
from embed_example import expected, setup_constant


def test_the_commands_name_what_setup_builds():
    (commands,) = blocks_of("docs/embedding.md", "sh")
    for name in setup_constant("SOURCES"):
        assert f"src_c/{name}" in commands
    for flag in setup_constant("FLAGS") + setup_constant("OPTIONAL_FLAGS"):
        assert flag in commands or flag == "-fvisibility=hidden"  # for a module alone
    levels = re.findall(
        r'^BNCORE_ISA\((\w+), "(.*?)"',
        (ROOT / "src_c" / "kernels" / "isa.def").read_text(),
        re.MULTILINE,
    )
    assert [name for name, _ in levels] == re.findall(r"BNCORE_ISA_NAME=(\w+)", commands)
    for name, flags in levels:
        assert f"-DBNCORE_ISA_NAME={name} {flags}".rstrip() + " -c" in commands


@pytest.fixture
def commands(tmp_path):
    """The page's commands, in a directory with the sources; not optimized, which is quicker."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    for name in ("src_c", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (text,) = blocks_of("docs/embedding.md", "sh")
    text = text.replace("-O3", "-O0 -Wall -Wextra -Werror")
    for flag in setup_constant("OPTIONAL_FLAGS"):
        tried = subprocess.run(
            ["cc", flag, "-fsyntax-only", "-x", "c", "/dev/null"], capture_output=True
        )
        if tried.returncode != 0:
            text = text.replace(flag, "")
    return text


def run(command: str, folder: Path) -> str:
    done = subprocess.run(["sh", "-e", "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the commands are for x86-64")
def test_the_example_builds_and_runs(commands, tmp_path):
    run(commands, tmp_path)
    assert run("./embed_example", tmp_path) == expected()


def test_the_baseline_is_enough(commands, tmp_path):
    kept = [line for line in commands.splitlines() if "-march" not in line]
    one = "\n".join(kept).replace("avx512.o avx2.o ", "").replace("-fopenmp", "-fopenmp-simd")
    without = "-DBNCORE_WITHOUT_avx512 -DBNCORE_WITHOUT_avx2 -Isrc_c/include"
    run(one.replace("-Isrc_c/include", without), tmp_path)
    assert run("./embed_example", tmp_path) == expected()
