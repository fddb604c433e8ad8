"""What PyTorch's own tools have to know about bncore's modules, to treat them as PyTorch's.

Tracers of `torch.fx` keep a module as one node if its ``__module__`` begins with "torch.nn": so
each module says there where PyTorch's batch norm is.  Its class does not, as pickle looks there.

Fusers and quantization look modules up by their exact classes.  They get these from two functions,
which PyTorch has for modules whose class was exchanged: from the first module of bncore on, these
functions return the class that a module had before `convert`.  One of them is in a module of
PyTorch that takes long to import, so `import bncore.torch` does not do that.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch.nn import Module
from torch.nn.utils import parametrize

Original = Callable[[type[Module]], type[Module]]

MARK = "__module__"
PLACE = "torch.nn.modules.batchnorm"

_later: list[Original] = []  # what `teach` got, until there is a module


def mark(module: Module) -> None:
    """Let tracers keep a module as one node."""
    module.__dict__[MARK] = PLACE
    while _later:
        _exchange(_later.pop())


def unmark(module: Module) -> None:
    """Undo `mark`."""
    module.__dict__.pop(MARK, None)


def teach(original: Original) -> None:
    """Let PyTorch's fusers and quantization take a module for one of its original class."""
    _later.append(original)


def _exchange(original: Original) -> None:
    """Exchange the two functions wherever they have been imported to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what this module itself imports
        optimization = importlib.import_module("torch.fx.experimental.optimization")
    kind_of: Any = parametrize.type_before_parametrizations
    matches: Any = optimization.matches_module_pattern

    @functools.wraps(kind_of)
    def type_before_parametrizations(module: Module) -> type:
        return original(kind_of(module))

    @functools.wraps(matches)
    def matches_module_pattern(
        pattern: Iterable[type], node: Any, modules: dict[str, Module]
    ) -> bool:
        """Compare with the pattern that has the classes of the modules that stand for its own."""
        targets = [str(getattr(one, "target", "")) for one in (*node.args[:1], node)]
        kinds = [type(modules.get(target)) for target in targets]
        meant = [
            kind if original(kind) is expected else expected
            for expected, kind in zip(pattern, kinds, strict=False)
        ]
        return bool(matches(meant, node, modules))

    for old, new in ((kind_of, type_before_parametrizations), (matches, matches_module_pattern)):
        for place in list(sys.modules.values()):
            if isinstance(place, ModuleType) and vars(place).get(new.__name__) is old:
                setattr(place, new.__name__, new)
