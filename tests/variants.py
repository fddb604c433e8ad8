"""Which backends work here: NumPy, Numba, and native once per instruction set of this CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np

import bncore
from bncore.arguments.weights import Weights
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


def takes_weights(variant: Variant) -> bool:
    """Tell whether its functions take weights, which the C core does not do yet."""
    if variant.name != "native":
        return True
    mean, m2, count = np.empty((3, 1))
    weights = Weights(None, False, None, count)
    try:
        native_module().moments(mean, m2, np.ones((1, 1, 2)), 1, False, weights)
    except (NotImplementedError, TypeError):
        return False
    return True


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
