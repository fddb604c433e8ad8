"""Show what bncore runs on: versions, backends, instruction set, threads."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from bncore import backends
from bncore.arguments import scalars
from bncore.extras import pip_install
from bncore.runtime import threads
from bncore.version import __version__


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print what bncore runs on: versions, path, backends, instruction set, executor, threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print the configuration or return it as a dict, as in `numpy.show_config`.

    Returns
    -------
    dict or None
        The configuration, or None if it was printed.

    Raises
    ------
    ValueError
        If `mode` is anything else.

    Examples
    --------
    >>> import bncore
    >>> sorted(bncore.show_config(mode="dicts"))
    ['backend', 'backends', 'native', 'path', 'threads', 'versions']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {scalars.shown(mode)}")
    config = _config()
    if mode == "dicts":
        return config
    print("\n".join(_wrapped(line) for line in _lines(config)))
    return None


def _config() -> dict[str, Any]:
    number, source = threads.in_force()
    return {
        "versions": {
            "bncore": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": _version("numba"),
            "machine": f"{platform.machine()}, {platform.system()}",
        },
        # The path of this package, because a checkout in the current directory hides an installed
        # one.
        "path": str(Path(__file__).parents[1]),
        "backend": backends.name_in_use(),
        "backends": {name: _state(name) for name in backends.NAMES},
        "native": _native(),
        "threads": {"number": number, "source": source},
    }


def _version(package: str) -> str | None:
    # Import it here, because that takes longer than importing bncore.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _state(name: str) -> str:
    """Say whether a backend can be used; only look for Numba, because importing it is slow."""
    if name == "numba" and "numba" not in sys.modules:
        found = importlib.util.find_spec("numba") is not None
        return "installed" if found else f"not installed ({pip_install('numba')} installs it)"
    try:
        backends.load(name)
    except ImportError:
        settings = backends.NATIVE_SETTINGS if name == "native" else ()
        ignored = [f"{v}={os.environ[v]}" for v in settings if os.environ.get(v)]
        note = "".join(f"; {setting} is ignored" for setting in ignored)
        return f"not available: {backends.why_missing(name)}{note}"
    return "available"


def _native() -> dict[str, Any] | None:
    """Return the properties of the native module; None if it is missing."""
    native = backends.native_module()
    if native is None:
        return None
    return {
        "instruction_set": native.isa(),
        "instruction_sets": list(native.available_isas()),
        "executor": native.executor(),
        "executor_source": _source_of(native),
        "executors": list(native.available_executors()),
        "workers": native.workers(),
        "thread_limit": native.max_threads() or None,
        "openmp": native.has_openmp(),
        "openmp_max_threads": native.omp_max_threads(),
        "forked_child": native.in_forked_child(),
    }


def _lines(config: dict[str, Any]) -> list[str]:
    lines = [
        f"{name:<9} {'not installed' if value is None else value}"
        for name, value in config["versions"].items()
    ]
    lines += [f"path      {config['path']}", f"backend   {config['backend']}"]
    lines += [f"  {name:<7} {state}" for name, state in config["backends"].items()]
    native = config["native"]
    if native is not None:
        lines.append(
            f"native    {native['instruction_set']} of {', '.join(native['instruction_sets'])}; "
            + _parallelism(native)
        )
    lines.append(f"threads   {config['threads']['number']} ({config['threads']['source']})")
    return lines


def _wrapped(line: str) -> str:
    """Break a line between words if it is wider than the terminal, as far as it can be broken."""
    return textwrap.fill(
        line, shutil.get_terminal_size().columns, subsequent_indent=" " * 10,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _source_of(native: Any) -> str:
    """Say what chose the executor: the environment, the default, or a call."""
    name = native.executor()
    if os.environ.get("BNCORE_EXECUTOR") == name:
        return "BNCORE_EXECUTOR"
    return "default" if name == native.available_executors()[0] else "bncore_executor_choose"


def _parallelism(native: dict[str, Any]) -> str:
    """Say how the native module distributes its work."""
    how = f"{native['executor']} executor ({native['executor_source']})"
    if native["executor"] == "own":
        started = native["workers"]
        return f"{how}, {started} {'worker' if started == 1 else 'workers'} started"
    if native["executor"] == "openmp" and native["forked_child"]:
        return f"{how}, but one thread, because this is a forked child"
    if native["executor"] == "openmp":
        most = native["openmp_max_threads"]
        return f"{how}, at most {most} {'thread' if most == 1 else 'threads'}"
    return how
