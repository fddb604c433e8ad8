"""Compile an adapter's C++ part against the installed framework, cache it, and load it.

A wheel cannot contain these parts, because each depends on the version of a framework that may not
be installed.  The first import compiles, which takes seconds to half a minute and prints a line on
stderr; later imports load the result.  The file's name contains a hash of everything that the file
depends on: the source and the headers beside it, bncore's headers, the path of its library, the
framework, the machine, the compiler and its options.

`bncore.adapter_cache` says which folder keeps the files, and which files may be loaded.
"""

from __future__ import annotations

import ctypes
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
from typing import NamedTuple

import bncore
from bncore import adapter_cache

# With --disable-new-dtags the run path takes precedence over LD_LIBRARY_PATH.
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DNDEBUG"),
    "-Wl,--disable-new-dtags",
)
BESIDE = (".h", ".hpp", ".map")  # files that a source includes or that the linker reads
LINKAGE = Path(__file__).with_name("adapter_linkage.cpp")
VALUES = Path(__file__).with_name("adapter_values.h")  # what adapters share
MISMATCH = "bncore_adapter_mismatch"  # the function of every adapter that reports a mismatch


class CompileError(RuntimeError):
    """The adapter could not be compiled; the message contains the command and its output."""


class Adapter(NamedTuple):
    """A compiled adapter that this process has loaded."""

    path: Path
    library: ctypes.CDLL


class _Recipe(NamedTuple):
    source: Path
    framework: str
    command: list[str]  # without the name of the output file
    name: str  # the name of the output file


_Identity = tuple[int, int]  # identifies a file: inode, time of the last change


def load(source: Path, framework: str, arguments: Sequence[str]) -> Adapter:
    """Load the shared library of one C++ file, and compile it first if necessary.

    It is linked to bncore's C library.  If several processes need the same library at the same
    time, they wait for the first one.  A library that cannot be loaded is compiled once more.

    Parameters
    ----------
    source : Path
        A C++17 file.  It can include ``bncore.h``, ``adapter_values.h`` and headers beside itself.
    framework : str
        The name and version of the framework, such as ``torch 2.13.0``.
    arguments : sequence of str
        Further arguments for the compiler: include directories, libraries, macros.

    Returns
    -------
    Adapter
        The loaded library, and its path in the cache or in a folder that this process removes at
        its end.

    Raises
    ------
    CompileError
        If there is no C++ compiler, or it fails.
    ImportError
        If it calls another library than this bncore's.
    RuntimeError
        If bncore was installed without its C library.
    OSError
        If the compiled library cannot be loaded, or there is no folder to compile it in.
    """
    recipe = _recipe(source, framework, arguments)
    path, fresh = _find_or_make(recipe, None)
    identity = _identity(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        if fresh:
            raise
        print(f"bncore: an earlier {path.name} does not load: {error}", file=sys.stderr)
        path, _ = _find_or_make(recipe, identity)
        library = ctypes.CDLL(str(path))
    _require_own_bncore(path, library)
    return Adapter(path, library)


def _require_own_bncore(path: Path, library: ctypes.CDLL) -> None:
    """Raise ImportError if the loader gave the adapter another version of bncore's library."""
    mismatch = getattr(library, MISMATCH)
    mismatch.restype = ctypes.c_char_p
    if said := mismatch():
        raise ImportError(f"{path} calls another library than this package's: {said.decode()}")


def _recipe(source: Path, framework: str, arguments: Sequence[str]) -> _Recipe:
    """Return the command that makes a library, and its name with the hash of its sources."""
    compiler = _compiler()
    library = Path(bncore.get_library_dir()).resolve()
    command = [
        *compiler,
        *FLAGS,
        f"-I{bncore.get_include()}",
        f"-I{VALUES.parent}",
        str(source),
        str(LINKAGE),
        *arguments,
        f"-L{library}",
        f"-Wl,-rpath,{library}",
        "-lbncore",
    ]
    machine = platform.machine()  # machines with different processors may share a home directory
    version = _version(tuple(compiler))
    key = hashlib.sha256(f"{framework}\0{command}\0{machine}\0{version}".encode())
    beside = sorted(p for p in source.parent.iterdir() if p.suffix in BESIDE)
    for file in (source, LINKAGE, VALUES, *beside, Path(bncore.get_include(), "bncore.h")):
        key.update(hashlib.sha256(file.read_bytes()).digest())
    return _Recipe(source, framework, command, f"{source.stem}-{key.hexdigest()[:20]}.so")


def _find_or_make(recipe: _Recipe, broken: _Identity | None) -> tuple[Path, bool]:
    """Return the library's path, and whether it was compiled now.

    The file `broken` is ignored.  If the cache can be read but not written, the function uses the
    private folder of this process.
    """
    try:
        return _find_or_make_in(adapter_cache.usable_folder(), recipe, broken)
    except OSError as error:
        return _find_or_make_in(adapter_cache.private_folder(str(error)), recipe, broken)


def _find_or_make_in(folder: Path, recipe: _Recipe, broken: _Identity | None) -> tuple[Path, bool]:
    target = folder / recipe.name
    if _may_be_loaded(target, broken):
        adapter_cache.note_use(target)
        return target, False
    lock = adapter_cache.open_lock(folder / f"{recipe.source.stem}.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _may_be_loaded(target, broken):  # another process or thread has made it in the meantime
            return target, False
        if target.is_symlink() or (target.exists() and _identity(target) != broken):
            problem = adapter_cache.file_problem(target)
            print(f"bncore: {target} {problem}, so it is replaced", file=sys.stderr)
        print(f"bncore: compiling {recipe.source.name} for {recipe.framework}", file=sys.stderr)
        content = _compile(recipe, folder)
        adapter_cache.write_durably(target, content + adapter_cache.seal(content))
        adapter_cache.remove_old(target, recipe.source.stem)
        return target, True
    finally:
        os.close(lock)  # this releases the lock


def _may_be_loaded(target: Path, broken: _Identity | None) -> bool:
    """Tell whether there is a complete and trusted file other than the one that did not load."""
    return (
        os.path.lexists(target)
        and adapter_cache.file_problem(target) is None
        and _identity(target) != broken
    )


def _identity(file: Path) -> _Identity:
    found = os.lstat(file)
    return found.st_ino, found.st_mtime_ns


def _compile(recipe: _Recipe, folder: Path) -> bytes:
    """Run the compiler in a folder that nobody else can write to; return the library's bytes."""
    with tempfile.TemporaryDirectory(prefix=f".{recipe.source.stem}-", dir=folder) as own:
        os.chmod(own, adapter_cache.PRIVATE)
        made = Path(own, recipe.name)
        command = [*recipe.command, "-o", str(made)]
        environment = os.environ | {"TMPDIR": own}  # the compiler's object files go there, too
        done = subprocess.run(command, capture_output=True, text=True, env=environment, umask=0o077)
        if done.returncode:
            said = done.stderr[-4000:]
            raise CompileError(f"{recipe.name}: compiling failed\n{shlex.join(command)}\n{said}")
        return made.read_bytes()


def _compiler() -> list[str]:
    """Return the C++ compiler: $CXX, or the first of the usual names."""
    if asked := os.environ.get("CXX"):
        return shlex.split(asked)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise CompileError("no C++ compiler was found: expected c++, g++ or clang++, or what CXX names")


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(
            f"the C++ compiler {shlex.join(compiler)} does not run: {error}"
        ) from error
    return done.stdout
