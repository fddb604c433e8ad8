"""Raise KeyboardInterrupt at every place where it can occur, one place after another.

A signal's exception may be raised between any two bytecodes of the main thread.  A trace function
that is called before each of them raises it at the first, then at the second, and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bncore
from bncore.statistics import GradSums, Moments

PACKAGE = Path(bncore.__file__).parent


class _Countdown:
    """A trace function that raises at the n-th bytecode of these files."""

    def __init__(self, files: frozenset[str], number: int) -> None:
        self._files, self.left = files, number

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None  # what lies below is one step
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self


def interrupted(files: frozenset[str], number: int, call: Callable[[], Any]) -> bool:
    """Raise at the n-th bytecode of a call; return False if the call has fewer bytecodes."""
    before = sys.gettrace()
    # Python 3.12 has bytecodes traced only if a frame asked for it before the tracing began.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(_Countdown(files, number))
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def every_interrupt(
    start: Callable[[], Any], call: Callable[[Any], Any], *modules: str
) -> Iterator[Any]:
    """For every possible interrupt, call `call` with a new object of `start`, and yield the object.

    `modules` are the files of bncore whose bytecodes count, such as ``layer/state.py``.
    """
    files = frozenset(str(PACKAGE / name) for name in modules)
    number = 1
    while True:
        made = start()
        if not interrupted(files, number, lambda made=made: call(made)):
            assert number > 1, "the call does not run these files"
            return
        yield made
        number += 1


def contents(value: Any) -> Any:
    """Every value in an object, in a form that can be compared with ==."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Moments):
        return (contents(value.count), contents(value.mean), contents(value.m2))
    if isinstance(value, GradSums):
        return (contents(value.sum_dy), contents(value.sum_dy_xhat))
    if isinstance(value, dict):
        return {key: contents(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [contents(one) for one in value]
    if hasattr(value, "__dict__") and not callable(getattr(value, "mro", None)):
        return contents(vars(value))
    return value
