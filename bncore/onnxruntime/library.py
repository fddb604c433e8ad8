"""The library of operators, which is compiled against ONNX Runtime's public header."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

from bncore.adapter_compiler import CompileError, load

__all__ = ["get_library_path", "register"]

HEADER = "onnxruntime_c_api.h"
INCLUDE = "BNCORE_ONNXRUNTIME_INCLUDE"
OLDEST = 20  # the oldest interface that header and session may have: ONNX Runtime 1.20
THREADS = "bncore.threads"  # the entry of a session's configuration that ops.cpp reads
HERE = Path(__file__).resolve().parent
EXPORTS = HERE / "exports.map"
# Without contraction a running mean has the same bits as in NumPy, on every processor.
FLAGS = ("-ffp-contract=off", f"-Wl,--version-script={EXPORTS}")


def get_library_path() -> str:
    """Return the path of the library of bncore's operators, and compile it if necessary.

    It exports ``RegisterCustomOps``, which every ONNX Runtime binding accepts, also C and C++.

    Returns
    -------
    str
        An absolute path in the user's cache.  If the cache cannot be used, it is in a folder that
        this process removes when it ends.

    Raises
    ------
    bncore.adapter_compiler.CompileError
        If ONNX Runtime's header is not found (its wheel does not contain it) or is too old, or if
        there is no compiler or it fails.
    ImportError
        If the operators would call another version of bncore's C library that the process has.
    RuntimeError
        If bncore was installed without its C library.

    Examples
    --------
    >>> import bncore.onnxruntime
    >>> path = bncore.onnxruntime.get_library_path()
    """
    folder, version = _header()
    framework = f"ONNX Runtime's interface {version}"
    return str(load(HERE / "ops.cpp", framework, [f"-I{folder}", *FLAGS]).path)


def register(options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
    """Register bncore's operators for the sessions that are made with these options.

    Set ``options.intra_op_num_threads`` before, because the work is divided for that many threads.
    If you set it later, calls are slower, but the results are the same.

    Parameters
    ----------
    options : onnxruntime.SessionOptions
        The options, which are changed.  A second call does nothing.

    Returns
    -------
    onnxruntime.SessionOptions
        `options`.

    Raises
    ------
    TypeError
        If `options` is not a SessionOptions.
    RuntimeError
        If onnxruntime is older than 1.20, or as in `get_library_path`.

    Examples
    --------
    >>> import onnxruntime
    >>> import bncore.onnxruntime
    >>> options = bncore.onnxruntime.register(onnxruntime.SessionOptions())
    """
    if not isinstance(options, onnxruntime.SessionOptions):
        kind = type(options).__name__
        raise TypeError(f"options: expected onnxruntime.SessionOptions, got {kind}")
    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < (1, OLDEST):
        raise RuntimeError(f"expected onnxruntime 1.{OLDEST} or newer, got {version}")
    if not _has_entry(options):
        library = get_library_path()
        threads = options.intra_op_num_threads or len(os.sched_getaffinity(0))
        options.add_session_config_entry(THREADS, str(threads))
        options.register_custom_ops_library(library)
    return options


def _has_entry(options: onnxruntime.SessionOptions) -> bool:
    """Tell whether `register` was called with these options before."""
    try:
        options.get_session_config_entry(THREADS)
    except RuntimeError:
        return False
    return True


def _header() -> tuple[Path, int]:
    """Return the directory of ONNX Runtime's header, and the version of the interface in it."""
    tried = list(_folders())
    for folder in tried:
        file = folder / HEADER
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8")
        found = re.search(r"^#define ORT_API_VERSION (\d+)", text, re.MULTILINE)
        version = int(found[1]) if found else 0
        if version < OLDEST:
            raise CompileError(
                f"{file}: expected the header of ONNX Runtime 1.{OLDEST} or newer, "
                f"got ORT_API_VERSION {version}"
            )
        return folder, version
    raise CompileError(
        f"{HEADER} is needed and onnxruntime's wheel does not hold it; Debian's package "
        f"libonnxruntime-dev and the archives of ONNX Runtime's releases do. "
        f"Set {INCLUDE} to its directory. Looked in {', '.join(map(str, tried))}"
    )


def _folders() -> Iterator[Path]:
    """Yield the folders that may have the header: only the user's if one is set, or the usual."""
    if asked := os.environ.get(INCLUDE):
        yield Path(asked)
        return
    package = Path(onnxruntime.__file__).parent
    yield from (package / "include", package / "capi" / "include")
    for prefix in dict.fromkeys([sys.prefix, sys.base_prefix, "/usr/local", "/usr"]):
        folder = Path(prefix, "include", "onnxruntime")
        yield from (folder, folder / "core" / "session")
    yield from _of_pkg_config()


def _of_pkg_config() -> Iterator[Path]:
    """Yield the include directory of an installed libonnxruntime if pkg-config knows one."""
    command = ["pkg-config", "--variable=includedir", "libonnxruntime"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return
    if folder := done.stdout.strip():
        yield Path(folder)
