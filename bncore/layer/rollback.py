"""A layer as it was before a call, so that a call that raises changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bncore.layer.settings import PARAMETERS, RUNNING

Method = TypeVar("Method", bound=Callable[..., Any])


Values = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def copies(arrays: Iterable[npt.NDArray[Any] | None]) -> Values:
    """Return the arrays that there are, each with a copy of its values."""
    return [(array, array.copy()) for array in arrays if array is not None]


def write_back(values: Values) -> None:
    """Give arrays the values that they had; nothing has changed those that are read-only."""
    for array, old in values:
        if array.flags.writeable:
            np.copyto(array, old)


class Before:
    """A layer as it was: its attributes, and the values of the arrays that are changed in place."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._attributes = dict(vars(layer))
        self._values = copies(self._attributes[f"_{name}"] for name in (*PARAMETERS, *RUNNING))

    def restore(self) -> None:
        """Undo every change since; a layer that had no arrays has none again."""
        write_back(self._values)
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
