"""A layer as it was before a call, so that a call that raises changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from bncore.layer.settings import PARAMETERS, RUNNING

Method = TypeVar("Method", bound=Callable[..., Any])


class Before:
    """A layer as it was: its attributes, and the values of the arrays that are changed in place."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._attributes = dict(vars(layer))
        arrays = (self._attributes[f"_{name}"] for name in (*PARAMETERS, *RUNNING))
        self._values = [(array, array.copy()) for array in arrays if array is not None]

    def restore(self) -> None:
        """Undo every change since; a layer that had no arrays has none again."""
        for array, values in self._values:
            if array.flags.writeable:  # or nothing has written to it
                np.copyto(array, values)
        vars(self._layer).clear()
        vars(self._layer).update(self._attributes)

    def restore_attributes(self, names: Iterable[str]) -> None:
        """Undo the changes of these attributes in one step, which nothing can interrupt."""
        vars(self._layer).update({name: self._attributes[name] for name in names})


def all_or_nothing(method: Method) -> Method:
    """Let a method of a layer leave the layer as it was when it raises, KeyboardInterrupt too."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        before = Before(self)
        try:
            return method(self, *arguments, **keywords)
        except BaseException:
            before.restore()
            raise

    wrapped: Any = call
    return wrapped  # type: ignore[no-any-return]
