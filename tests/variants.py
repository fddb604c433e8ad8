"""Which backends work here: NumPy, Numba, and native once per instruction set of this CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import bncore
from bncore.backends.contract import FastPath


@dataclass(frozen=True)
class Variant:
    """A backend, and for native the instruction set it runs with."""

    name: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that make a new process choose this variant."""
        chosen = {"BNCORE_BACKEND": self.name}
        if self.isa:
            chosen["BNCORE_ISA"] = self.isa
        return chosen

    @contextmanager
    def active(self) -> Iterator[None]:
        with bncore.use_backend(self.name):
            if self.isa is None:
                yield
                return
            native = native_module()
            before = native.isa()
            native.set_isa(self.isa)
            try:
                yield
            finally:
                native.set_isa(before)


@dataclass(frozen=True)
class Found:
    """Variants that work, and for each backend that does not, the reason."""

    present: list[Variant]
    missing: dict[str, str]

    def names(self) -> set[str]:
        return {variant.name for variant in self.present}


def native_module() -> ModuleType:
    return importlib.import_module("bncore.backends.native.binding")


def find() -> Found:
    present, missing = [Variant("numpy")], {}
    try:
        importlib.import_module("numba")
        present.append(Variant("numba"))
    except ImportError as error:
        missing["numba"] = str(error)
    try:
        present += [Variant("native", isa) for isa in native_module().available_isas()]
    except ImportError as error:
        missing["native"] = str(error)
    return Found(present, missing)


FOUND = find()


def taking_turns(**values: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by every combination of these values, each on one variant in turn.

    So every value meets every variant, which takes a fraction of the time of all combinations on
    all variants.  It is for results that are held against exact ones: that variants have the same
    bits is what the tests of bits are for.
    """
    lists = {name: list(value) for name, value in values.items()}
    cases, met = [], set()
    for places in product(*(range(len(each)) for each in lists.values())):
        variant = FOUND.present[sum(places) % len(FOUND.present)]
        chosen = [each[k] for each, k in zip(lists.values(), places, strict=True)]
        met.update((name, k, variant) for name, k in zip(lists, places, strict=True))
        words = [variant, *(getattr(one, "__name__", one) for one in chosen)]
        cases.append(pytest.param(variant, *chosen, id="-".join(map(str, words))))
    if len(met) != len(FOUND.present) * sum(map(len, lists.values())):
        raise ValueError(f"there are too few combinations of {', '.join(lists)} for all to meet")
    return pytest.mark.parametrize(["backend", *lists], cases, indirect=["backend"])


def watched(short: Callable, calls: list[bool]) -> Callable:
    """Wrap a fast function so that `calls` records for each call whether it did the work."""

    def call(*arguments):
        result = short(*arguments)
        calls.append(result is not None)
        return result

    return call


FAST = tuple(name for name in dir(FastPath) if name.startswith("fast_"))


def watched_fast_path(fast: FastPath, calls: dict[str, list[bool]]) -> SimpleNamespace:
    """Wrap all fast functions; `calls` records for each, by name, which calls did the work."""
    calls.update((name, []) for name in FAST)
    return SimpleNamespace(**{name: watched(getattr(fast, name), calls[name]) for name in FAST})
