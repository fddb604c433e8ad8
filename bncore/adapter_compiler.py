"""Compile an adapter's C++ part against the installed framework, once, into the user's cache.

A wheel cannot hold these parts: each is bound to the version of a framework that need not be
there.  The first import compiles (seconds to half a minute, said on stderr), later ones load.  The
result is kept by the hash of all that it was made from: the source and the headers beside it,
bncore's header, the place of its library, the framework, the machine, the compiler and options.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bncore

CACHE = "BNCORE_CACHE_DIR"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DNDEBUG")
BESIDE = (".h", ".hpp", ".map")  # what else a source may be made of: headers, names for the linker


class CompileError(RuntimeError):
    """The adapter could not be compiled; the message says what was tried and what came of it."""


def cache_folder() -> Path:
    """Return where compiled adapters are kept: $BNCORE_CACHE_DIR, or bncore in the user's cache."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bncore"


def compiled(
    source: Path, framework: str, arguments: Sequence[str], *, suffix: str = ".so"
) -> Path:
    """Return the shared library of one C++ file, compiled now where it was not before.

    It is linked to bncore's C library.  Processes that want the same one at the same time wait
    for the first.

    Parameters
    ----------
    source : Path
        A C++17 file; it finds ``bncore.h``, and headers beside itself.
    framework : str
        Name and version of what it is compiled against, such as ``torch 2.13.0``.
    arguments : sequence of str
        Of the compiler, after the source: include directories, libraries, macros.
    suffix : str, default ".so"
        Of the library's name.

    Returns
    -------
    Path
        Of a library in the cache.

    Raises
    ------
    CompileError
        If there is no C++ compiler, or it fails.
    RuntimeError
        If bncore was installed without its C library.
    OSError
        If the cache cannot be written.
    """
    compiler = _compiler()
    library = Path(bncore.get_library_dir()).resolve()
    command = [
        *compiler,
        *FLAGS,
        f"-I{bncore.get_include()}",
        str(source),
        *arguments,
        f"-L{library}",
        f"-Wl,-rpath,{library}",
        "-lbncore",
    ]
    machine = platform.machine()  # a home may be on several
    version = _version(tuple(compiler))
    key = hashlib.sha256(f"{framework}\0{command}\0{machine}\0{version}".encode())
    beside = sorted(p for p in source.parent.iterdir() if p.suffix in BESIDE)
    for file in (source, *beside, Path(bncore.get_include(), "bncore.h")):
        key.update(hashlib.sha256(file.read_bytes()).digest())
    folder = cache_folder()
    target = folder / f"{source.stem}-{key.hexdigest()[:20]}{suffix}"
    if target.exists():
        return target
    own = folder / f"{source.stem}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.touch()
    except OSError as error:
        error.add_note(f"bncore keeps compiled adapters in {folder}; {CACHE} names another folder")
        raise
    with own.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():  # nobody made it meanwhile
            print(f"bncore: compiling {source.name} for {framework}, once", file=sys.stderr)
            _compile(command, target)
    return target


def _compile(command: list[str], target: Path) -> None:
    """Run the compiler, and put its result in place only when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr[-4000:]
            raise CompileError(f"{target.name}: compiling failed\n{shlex.join(command)}\n{said}")
        made.replace(target)


def _compiler() -> list[str]:
    """Return the C++ compiler: $CXX, or the first of the usual names."""
    if asked := os.environ.get("CXX"):
        return shlex.split(asked)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise CompileError("no C++ compiler was found: c++, g++ or clang++, or what CXX names")


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(
            f"the C++ compiler {shlex.join(compiler)} does not run: {error}"
        ) from error
    return done.stdout
