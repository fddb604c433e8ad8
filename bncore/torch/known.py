"""What PyTorch's own tools have to know about bncore's modules, to treat them as PyTorch's.

Tracers of `torch.fx` keep a module as one node if its ``__module__`` begins with "torch.nn": so
each module says there where PyTorch's batch norm is.  Its class does not, as pickle looks there.

Fusers and quantization look modules up by their exact classes.  They get these from two functions,
which PyTorch has for modules whose class was exchanged: after `teach`, these functions return the
class that a module had before `convert`.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch.nn import Module
from torch.nn.utils import parametrize

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what this module itself imports
    from torch.fx.experimental import optimization

MARK = "__module__"
PLACE = "torch.nn.modules.batchnorm"

_taught: list[Callable[..., Any]] = []


def mark(module: Module) -> None:
    """Let tracers keep a module as one node."""
    module.__dict__[MARK] = PLACE


def unmark(module: Module) -> None:
    """Undo `mark`."""
    module.__dict__.pop(MARK, None)


def teach(original: Callable[[type[Module]], type[Module]]) -> None:
    """Let PyTorch's fusers and quantization take a module for one of its original class."""
    if _taught:
        return
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
        _taught.append(new)
