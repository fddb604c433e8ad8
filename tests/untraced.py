"""Work without a trace function: with that of coverage, Numba takes a third longer.

Plain loops take longer, too.  The lines of the kernels count all the same, since Numba itself
reports what it compiles, if the cache of what it compiled was empty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

KERNELS = "bncore.backends.numba."


def call(function: Callable[..., Any], /, *args: Any) -> Any:
    """Call a function without the trace function of this thread."""
    before = sys.gettrace()
    if before is None:
        return function(*args)
    sys.settrace(None)
    try:
        return function(*args)
    finally:
        sys.settrace(before)
        _called()  # coverage takes the next call as its begin, and so sees this one return


def _called() -> None:
    pass


def compile_untraced() -> None:
    """Let Numba stop the trace function of its thread while it compiles a kernel."""
    from numba.core.dispatcher import Dispatcher

    compile_ = Dispatcher.compile

    @wraps(compile_)
    def untraced(self: Any, signature: Any) -> Any:
        if str(self.py_func.__module__).startswith(KERNELS):
            return call(compile_, self, signature)
        return compile_(self, signature)

    Dispatcher.compile = untraced
