"""The floating-point environment in which the package's Python code computes.

A program can change the environment of a thread: ``torch.set_flush_denormal(True)`` replaces
subnormal numbers by zero.  The C core sets the default environment itself.  For NumPy and Numba,
``with default_environment():`` does it, by calling the functions of C's fenv.h through ctypes.
If ctypes does not find them, as on Windows, the caller's environment stays in force.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np

__all__ = ["default_environment", "in_default_environment", "silent_arithmetic"]

P = ParamSpec("P")
R = TypeVar("R")

Environment = ctypes.c_char * 64  # more bytes than any system's fenv_t


def _library() -> Any:
    """Return the C library if it has fegetenv and fesetenv, otherwise None."""
    try:
        library = ctypes.CDLL(None)
        library.fesetenv.argtypes = [ctypes.c_void_p]
        library.fegetenv.argtypes = [ctypes.c_void_p]
    except (AttributeError, OSError, TypeError):
        return None
    return library


def _default(library: Any) -> ctypes.c_void_p | None:
    """Return what FE_DFL_ENV is in C, or None if that is not known.

    On macOS, on BSD, and on Linux for POWER it is the address of a variable.  A C library of Linux
    that has no such variable takes -1.
    """
    for name in ("_FE_DFL_ENV", "__fe_dfl_env"):
        try:
            return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(library, name)))
        except ValueError:
            pass
    return ctypes.c_void_p(-1) if sys.platform == "linux" else None


_LIBRARY = _library()
_DEFAULT = None if _LIBRARY is None else _default(_LIBRARY)
if _DEFAULT is None:
    _LIBRARY = None


class default_environment:
    """Round to nearest and keep subnormal numbers; restore the caller's environment at the end."""

    __slots__ = ("_own",)

    def __enter__(self) -> None:
        if _LIBRARY is not None:
            self._own = Environment()
            _LIBRARY.fegetenv(self._own)
            _LIBRARY.fesetenv(_DEFAULT)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if _LIBRARY is not None:
            _LIBRARY.fesetenv(self._own)


class silent_arithmetic(default_environment):
    """The default environment, and no warning of NumPy's: for arithmetic on values per channel."""

    __slots__ = ("_errstate",)

    def __enter__(self) -> None:
        super().__enter__()
        self._errstate = np.errstate(all="ignore")
        self._errstate.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._errstate.__exit__(kind, error, traceback)
        super().__exit__(kind, error, traceback)


def in_default_environment(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function run in the default environment."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with default_environment():
            return function(*args, **kwargs)

    return guarded
