"""Forwards that somebody has wrapped: where the bound forward of a module's class is kept.

``module.forward = wrapper(module.forward)`` stores a callable that leads to a bound method of the
class that the module has at that time.  If the class changes, that method remains the old one, so
it is exchanged where it is kept: in closures, defaults, partial functions and attributes.  The
wrapper itself remains the same object.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Module

KEPT = "_bncore_forwards"  # the attribute of a module with what `exchange` has exchanged
COMPILED = "_compiled_call_impl"  # looks the forward up when it is called

Put = Callable[[Any], None]
Key = tuple[int, Any]
Place = tuple[Key, Put, Any]


class Kept(dict[Key, types.MethodType]):
    """The methods that were exchanged, by the place where they were; copies of it are empty."""

    def __reduce__(self) -> Any:
        return Kept, ()


def leads_elsewhere(module: Module, forward: Callable[..., Any]) -> bool:
    """Tell whether a module has a forward of its own that does not lead to its class's."""
    return "forward" in module.__dict__ and not any(True for _ in places(module, forward))


def exchange(module: Module, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Let everything that calls the function `old` for this module call `new`."""
    kept = Kept()
    for key, put, method in list(places(module, old)):
        kept[key] = method
        put(types.MethodType(new, module))
    if kept:
        module.__dict__[KEPT] = kept


def restore(module: Module, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Undo ``exchange(module, new, old)``, with the same methods as before where they are known."""
    kept = module.__dict__.pop(KEPT, {})
    for key, put, _ in list(places(module, old)):
        put(kept.get(key) or types.MethodType(new, module))


def places(module: Module, function: Callable[..., Any]) -> Iterator[Place]:
    """Yield where this function, bound to this module, is kept, and how to exchange it."""
    seen: set[int] = set()
    waiting = [
        place for place in _items(module.__dict__) if callable(place[2]) and place[0][1] != COMPILED
    ]
    while waiting:
        key, put, value = waiting.pop()
        if isinstance(value, types.MethodType) and value.__self__ is module:
            if value.__func__ is function:
                yield key, put, value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_inside(value))


def _inside(value: Any) -> Iterator[Place]:
    """Yield what a callable refers to, with the places where it does."""
    if isinstance(value, types.MethodType):
        yield from _inside(value.__func__)
        yield from _attributes(value.__self__)
    elif isinstance(value, functools.partial):
        for i, part in [(None, value.func), *enumerate(value.args), *value.keywords.items()]:
            yield (id(value), i), functools.partial(_put_part, value, i), part
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif callable(value):
        yield from _attributes(value)


def _of_function(function: types.FunctionType) -> Iterator[Place]:
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # the cell is empty
            continue
        yield (id(cell), None), functools.partial(setattr, cell, "cell_contents"), content
    for i, default in enumerate(function.__defaults__ or ()):
        yield (id(function), i), functools.partial(_put_default, function, i), default
    yield from _items(function.__kwdefaults__ or {})
    yield from _items(function.__dict__)


def _attributes(value: Any) -> Iterator[Place]:
    found = getattr(value, "__dict__", None)
    if isinstance(found, dict) and not isinstance(value, Module):
        yield from _items(found)


def _items(found: dict[str, Any]) -> Iterator[Place]:
    for name, value in list(found.items()):
        yield (id(found), name), functools.partial(found.__setitem__, name), value


def _put_default(function: types.FunctionType, i: int, new: Any) -> None:
    defaults = list(function.__defaults__ or ())
    defaults[i] = new
    function.__defaults__ = tuple(defaults)


def _put_part(partial: Any, i: int | str | None, new: Any) -> None:
    """Put something in the place of a partial function's function (None) or argument."""
    function, arguments, keywords = partial.func, list(partial.args), dict(partial.keywords)
    if i is None:
        function = new
    elif isinstance(i, int):
        arguments[i] = new
    else:
        keywords[i] = new
    partial.__setstate__((function, tuple(arguments), keywords, partial.__dict__))
