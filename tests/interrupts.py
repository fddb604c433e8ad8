"""Raise KeyboardInterrupt at every place where it can occur, one place after another.

A signal's exception may be raised between any two bytecodes of the main thread.  A trace function
that is called before each of them raises it at the first, then at the second, and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import bncore
from bncore.statistics import GradSums, Moments

PACKAGE = Path(bncore.__file__).parent


class _Countdown:
    """A trace function that raises at the bytecode of these files at which `left` becomes 0."""

    def __init__(self, files: frozenset[str]) -> None:
        self._files, self.left = files, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None  # what lies below is one step
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self


def interrupted(
    files: frozenset[str], number: int, start: Callable[[], Any], call: Callable[[Any], Any]
) -> tuple[Any, bool]:
    """Call with a new object of `start`, and raise at the n-th bytecode.

    Return the object, and whether the call has so many bytecodes.
    """
    countdown = _Countdown(files)
    before = sys.gettrace()
    # Python 3.12 traces bytecodes only if a frame asks for them before the tracing begins, and
    # later ones trace those of a function from its next call on.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(countdown)
    try:
        if sys.version_info >= (3, 13):
            call(start())
        made = start()
        countdown.left = number
        call(made)
    except KeyboardInterrupt:
        return made, True
    finally:
        sys.settrace(before)
    return made, False


def every_interrupt(
    start: Callable[[], Any], call: Callable[[Any], Any], *modules: str
) -> Iterator[Any]:
    """For every possible interrupt, call `call` with a new object of `start`, and yield the object.

    `modules` are the files of bncore whose bytecodes count, such as ``layer/state.py``.
    """
    files = frozenset(str(PACKAGE / name) for name in modules)
    for number in count(1):
        made, was_interrupted = interrupted(files, number, start, call)
        if not was_interrupted:
            assert number > 1, "the call does not run these files"
            return
        yield made


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
