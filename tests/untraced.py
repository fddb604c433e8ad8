"""Compile without a trace function: with that of coverage, Numba takes a third longer.

The lines of the kernels count all the same, since Numba itself reports what it compiles.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

KERNELS = "bncore.backends.numba."


def compile_untraced() -> None:
    """Let Numba stop the trace function of its thread while it compiles a kernel."""
    from numba.core.dispatcher import Dispatcher

    compile_ = Dispatcher.compile

    @wraps(compile_)
    def untraced(self: Any, signature: Any) -> Any:
        before = sys.gettrace()
        if before is None or not str(self.py_func.__module__).startswith(KERNELS):
            return compile_(self, signature)
        sys.settrace(None)
        try:
            return compile_(self, signature)
        finally:
            sys.settrace(before)
            _called()  # coverage takes the next call as its begin, and so sees this one return

    Dispatcher.compile = untraced


def _called() -> None:
    pass
