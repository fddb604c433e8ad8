"""The C library in the package: its location, the flags to compile against it, its functions.

docs/embedding.md shows how to use it from C, C++, CMake, Cython, ctypes and SciPy.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from bncore import backends
from bncore.c_structs import PARALLEL_FOR, TASK, Executor, Fusion, Problem, Weights
from bncore.version import __version__

__all__ = [
    "PARALLEL_FOR",
    "TASK",
    "Executor",
    "Fusion",
    "Problem",
    "Weights",
    "compiler_flags",
    "get_address",
    "get_capsules",
    "get_include",
    "get_library_dir",
    "get_statuses",
]

PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """Return the directory of ``bncore.h``, for a compiler's ``-I``.

    Returns
    -------
    str
        An absolute path.

    Raises
    ------
    RuntimeError
        If the package was installed without its C part.

    Examples
    --------
    >>> import bncore
    >>> include_dirs = [bncore.get_include()]  # doctest: +SKIP
    """
    return str(_existing("include", "bncore.h"))


def get_library_dir() -> str:
    """Return the directory of the C library for a linker's ``-L``.

    It contains the shared library and, unless bncore came from a wheel, the archive.  It also
    contains ``pkgconfig/bncore.pc`` and ``cmake/bncore/bncoreConfig.cmake``.

    Returns
    -------
    str
        An absolute path.

    Raises
    ------
    RuntimeError
        If the package was installed without its C part.

    Examples
    --------
    >>> import bncore
    >>> library_dirs = [bncore.get_library_dir()]  # doctest: +SKIP
    """
    return str(_existing("lib", "libbncore.so"))


def get_capsules() -> dict[str, Any]:
    """Return the C functions as capsules, by their names in ``bncore.h``.

    Returns
    -------
    dict of str to PyCapsule
        A capsule's own name is the function's C type, in the form that Cython writes and
        `scipy.LowLevelCallable` reads.

    Raises
    ------
    ImportError
        If the native extension cannot be imported here; the message says why.

    Examples
    --------
    >>> import bncore
    >>> capsule = bncore.get_capsules()["bncore_train"]  # doctest: +SKIP
    """
    return dict(_native().capsules())


def get_address(name: str) -> int:
    """Return the address of a C function in this process, for ctypes and other callers.

    Parameters
    ----------
    name : str
        The function's name in ``bncore.h``.

    Returns
    -------
    int
        The address of the function that bncore itself calls, so the library is not loaded twice.

    Raises
    ------
    ImportError
        If the native extension cannot be imported here; the message says why.
    ValueError
        If there is no such function.

    Examples
    --------
    >>> import ctypes
    >>> import bncore
    >>> version = ctypes.CFUNCTYPE(ctypes.c_char_p)(
    ...     bncore.get_address("bncore_version"))  # doctest: +SKIP
    """
    native = _native()
    capsules = native.capsules()
    if name not in capsules:
        raise ValueError(f"name: expected one of {', '.join(sorted(capsules))}, got {name!r}")
    return int(native.address(capsules[name]))


def get_statuses() -> dict[str, tuple[int, str]]:
    """Return the number and the meaning of every ``bncore_status``, by its name in ``bncore.h``.

    Returns
    -------
    dict of str to (int, str)
        For example ``{"BNCORE_OK": (0, "ok"), ...}``.

    Raises
    ------
    ImportError
        If the native extension cannot be imported here; the message says why.

    Examples
    --------
    >>> from bncore import c_library
    >>> c_library.get_statuses()["BNCORE_OK"]  # doctest: +SKIP
    (0, 'ok')
    """
    return dict(_native().statuses())


def compiler_flags(arguments: list[str]) -> str:
    """Return what ``python -m bncore config`` prints for a compiler.

    Parameters
    ----------
    arguments : list of str
        Any number of ``--cflags``, ``--libs`` (shared) or ``--libs --static``, ``--prefix`` (for
        ``CMAKE_PREFIX_PATH``) and ``--version``.

    Returns
    -------
    str
        One line, quoted for a shell.

    Raises
    ------
    ValueError
        If an argument is anything else.
    RuntimeError
        If the package was installed without its C part, or without the archive for ``--static``, as
        wheels are.
    """
    known = ("--cflags", "--libs", "--static", "--prefix", "--version")
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"config: expected {', '.join(known)}, got {argument!r}")
    flags: list[str] = []
    if "--version" in arguments:
        flags.append(__version__)
    if "--prefix" in arguments:
        flags.append(str(Path(get_library_dir()).parent))
    if "--cflags" in arguments:
        flags.append(f"-I{get_include()}")
    if "--static" in arguments:
        archive = Path(get_library_dir(), "libbncore.a")
        if not archive.exists():
            raise RuntimeError(
                "bncore was installed from a wheel, which has no archive for --static: leave "
                "--static out, or run `pip install .` in a checkout, which builds it"
            )
        flags += [str(archive), *_private_libraries()]
    elif "--libs" in arguments:
        folder = get_library_dir()
        flags += [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lbncore"]
    return shlex.join(flags)


def _private_libraries() -> list[str]:
    """Return the libraries that the static library needs, which the build recorded."""
    text = Path(get_library_dir(), "pkgconfig", "bncore.pc").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Libs.private:"))
    return line.partition(":")[2].split()


def _existing(folder: str, file: str) -> Path:
    path = PACKAGE / folder
    if not (path / file).exists():
        raise RuntimeError(
            f"bncore in {PACKAGE} was installed without its C library "
            f"({folder}/{file} is missing): {backends.REMEDY} shows why"
        )
    return path


def _native() -> Any:
    backends.load("native")
    return backends.native_module()
