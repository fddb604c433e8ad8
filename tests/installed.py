"""The package as a wheel, the C library as CMake installs it, and how to run things with them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from checkout import COMPILER, ENVIRONMENT, ROOT, executable

# Also where the interpreter's environment is not the active one.
PATH = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
CMAKE = shutil.which("cmake", path=PATH)


def run(*command: object, cwd: Path | None = None, **variables: str) -> str:
    """Run a command that has to succeed; return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def follow(commands: str, folder: Path, **variables: str) -> str:
    """Run commands of docs/embedding.md in a directory that is the user's home, too."""
    places = {"SOURCE": str(ROOT), "HOME": str(folder), "PATH": PATH}
    return run("sh", "-e", "-c", commands, cwd=folder, **places | variables)


class Wheel(NamedTuple):
    file: Path
    site: Path  # where it is installed

    @property
    def package(self) -> Path:
        return self.site / "bncore"

    def python(self, *arguments: object) -> str:
        return run(sys.executable, "-P", *arguments, PYTHONPATH=str(self.site))

    def config(self, *options: str) -> list[str]:
        return shlex.split(self.python("-m", "bncore", "config", *options))

    def follow(self, commands: str, folder: Path, **variables: str) -> str:
        """Run commands where `python` is one that has the wheel."""
        executable(folder / "bin" / "python", f'exec {sys.executable} "$@"')
        path = os.pathsep.join([str(folder / "bin"), PATH])
        return follow(commands, folder, PATH=path, PYTHONPATH=str(self.site), **variables)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of all test processes fills; the others wait until it has."""
    import fcntl  # not on Windows, where nothing of this is tested

    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}-is-there"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def wheel_in(folder: Path) -> Wheel:
    """What `install_wheel` has put there."""
    (file,) = folder.glob("*.whl")
    return Wheel(file, folder / "site")


def install_wheel(folder: Path) -> None:
    """The wheel of a copy of the checkout, compiled in a hurry and installed on its own."""
    source = folder / "source"
    unwanted = shutil.ignore_patterns("*.so*", "*.a", "__pycache__", "binding.c", "lib")
    for name in ("bncore", "src_c"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    shutil.rmtree(source / "bncore" / "include", ignore_errors=True)  # as built in the checkout
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    compiler = executable(folder / "cc", f'exec {COMPILER} "$@" -O0')
    code = f"from setuptools import build_meta as b; b.build_wheel({str(folder)!r})"
    settings = {"CC": str(compiler), "BNCORE_REQUIRE_NATIVE": "1"}
    run(sys.executable, "-c", code, cwd=source, **settings)
    shutil.unpack_archive(next(folder.glob("*.whl")), folder / "site", "zip")


def install_by_cmake(folder: Path, commands: str) -> None:
    """What the page's commands install, at another place: nothing in it may know the first one."""
    hurry = "-DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG=-O0 -DCMAKE_INSTALL_LIBDIR=lib"
    follow(commands.replace("cmake -S", f"cmake {hurry} -S"), folder)
    (folder / "bncore").rename(folder / "moved")


def exported(library: Path, *options: str) -> set[str]:
    """Names that a library or an archive gives to others."""
    lines = run("nm", "--defined-only", "--extern-only", *options, library).splitlines()
    return {fields[2] for line in lines if len(fields := line.split()) == 3}
