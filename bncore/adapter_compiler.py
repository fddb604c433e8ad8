"""Compile an adapter's C++ part against the installed framework, keep it, and load it.

A wheel cannot hold these parts: each is bound to the version of a framework that need not be
installed.  The first import compiles, which takes seconds to half a minute and prints a line on
stderr; later imports load the result.  The file's name holds the hash of all that it was made
from: the source and the headers beside it, bncore's header, the place of its library, the
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

# The run path is one that LD_LIBRARY_PATH does not come before (--disable-new-dtags).
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DNDEBUG"),
    "-Wl,--disable-new-dtags",
)
BESIDE = (".h", ".hpp", ".map")  # other files that a source includes or gives to the linker
LINKAGE = Path(__file__).with_name("adapter_linkage.cpp")
MISMATCH = "bncore_adapter_mismatch"  # its function


class CompileError(RuntimeError):
    """The adapter could not be compiled; the message holds the command and its output."""


class Adapter(NamedTuple):
    """A compiled adapter in this process."""

    path: Path
    library: ctypes.CDLL


class _Recipe(NamedTuple):
    source: Path
    framework: str
    command: list[str]  # without the name of the result
    name: str  # of the result


_Identity = tuple[int, int]  # of a file: inode, time of the last change


def load(source: Path, framework: str, arguments: Sequence[str]) -> Adapter:
    """Load the shared library of one C++ file, compiled now where that was not done before.

    It is linked to bncore's C library.  Processes that want the same one at the same time wait
    for the first.  A library that cannot be loaded is compiled once more.

    Parameters
    ----------
    source : Path
        A C++17 file; it finds ``bncore.h``, and headers beside itself.
    framework : str
        Name and version of what it is compiled against, such as ``torch 2.13.0``.
    arguments : sequence of str
        Further arguments of the compiler: include directories, libraries, macros.

    Returns
    -------
    Adapter
        Its path, in the cache or in a folder that this process removes at its end, and the loaded
        library.

    Raises
    ------
    CompileError
        If there is no C++ compiler, or it fails.
    ImportError
        If the library that it calls is not this bncore's.
    RuntimeError
        If bncore was installed without its C library.
    OSError
        If what was compiled cannot be loaded, or there is no folder to compile it in.
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
    """Raise ImportError where the loader gave the adapter another version of bncore's library."""
    mismatch = getattr(library, MISMATCH)
    mismatch.restype = ctypes.c_char_p
    if said := mismatch():
        raise ImportError(f"{path} calls another library than this package's: {said.decode()}")


def _recipe(source: Path, framework: str, arguments: Sequence[str]) -> _Recipe:
    """Return how a library is made, and its name, which says what it is made from."""
    compiler = _compiler()
    library = Path(bncore.get_library_dir()).resolve()
    command = [
        *compiler,
        *FLAGS,
        f"-I{bncore.get_include()}",
        str(source),
        str(LINKAGE),
        *arguments,
        f"-L{library}",
        f"-Wl,-rpath,{library}",
        "-lbncore",
    ]
    machine = platform.machine()  # machines of several kinds may share a home directory
    version = _version(tuple(compiler))
    key = hashlib.sha256(f"{framework}\0{command}\0{machine}\0{version}".encode())
    beside = sorted(p for p in source.parent.iterdir() if p.suffix in BESIDE)
    for file in (source, LINKAGE, *beside, Path(bncore.get_include(), "bncore.h")):
        key.update(hashlib.sha256(file.read_bytes()).digest())
    return _Recipe(source, framework, command, f"{source.stem}-{key.hexdigest()[:20]}.so")


def _find_or_make(recipe: _Recipe, broken: _Identity | None) -> tuple[Path, bool]:
    """Return the library's path, and whether it was compiled now.

    A file that is `broken` does not count.  Where the cache can be read but not written, the
    private folder of this process is used.
    """
    try:
        return _find_or_make_in(adapter_cache.usable_folder(), recipe, broken)
    except OSError as error:
        return _find_or_make_in(adapter_cache.private_folder(str(error)), recipe, broken)


def _find_or_make_in(folder: Path, recipe: _Recipe, broken: _Identity | None) -> tuple[Path, bool]:
    target = folder / recipe.name
    if _may_be_loaded(target, broken):
        return target, False
    lock = adapter_cache.open_lock(folder / f"{recipe.source.stem}.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _may_be_loaded(target, broken):  # another process or thread made it meanwhile
            return target, False
        if target.is_symlink() or (target.exists() and _identity(target) != broken):
            problem = adapter_cache.file_problem(target)
            print(f"bncore: {target} {problem}, so it is replaced", file=sys.stderr)
        print(f"bncore: compiling {recipe.source.name} for {recipe.framework}", file=sys.stderr)
        content = _compile(recipe, folder)
        adapter_cache.write_durably(target, content + adapter_cache.seal(content))
        return target, True
    finally:
        os.close(lock)  # which lets go of the lock


def _may_be_loaded(target: Path, broken: _Identity | None) -> bool:
    """Tell whether there is a whole and trusted file, other than the one that did not load."""
    return (
        os.path.lexists(target)
        and adapter_cache.file_problem(target) is None
        and _identity(target) != broken
    )


def _identity(file: Path) -> _Identity:
    found = os.lstat(file)
    return found.st_ino, found.st_mtime_ns


def _compile(recipe: _Recipe, folder: Path) -> bytes:
    """Run the compiler in a folder that nobody else can write; return the library's content."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        os.chmod(own, adapter_cache.PRIVATE)
        made = Path(own, recipe.name)
        command = [*recipe.command, "-o", str(made)]
        environment = os.environ | {"TMPDIR": own}  # for the compiler's object files, too
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
