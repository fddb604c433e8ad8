"""Save the state of a layer before a call, and restore it if the call raises."""

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
    """Return each array that is not None with a copy of its values."""
    return [(array, array.copy()) for array in arrays if array is not None]


def write_back(values: Values) -> None:
    """Give arrays their old values; read-only arrays cannot have changed."""
    for array, old in values:
        if array.flags.writeable:
            np.copyto(array, old)


class Before:
    """The saved state of a layer: its attributes, and copies of the arrays it changes in place."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._attributes = dict(vars(layer))
        self._values = copies(self._attributes[f"_{name}"] for name in (*PARAMETERS, *RUNNING))

    def restore(self) -> None:
        """Undo every change since the state was saved, including the making of arrays."""
        write_back(self._values)
        vars(self._layer).clear()
        vars(self._layer).update(self._attributes)

    def restore_attributes(self, names: Iterable[str]) -> None:
        """Undo the changes of these attributes in one step, which nothing can interrupt."""
        vars(self._layer).update({name: self._attributes[name] for name in names})


def all_or_nothing(method: Method) -> Method:
    """Make a method restore its layer if it raises any exception, also KeyboardInterrupt."""

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
