"""Let threadpoolctl see and limit bncore's threads.

threadpoolctl finds the thread pools of a process by the file names of its shared libraries.  A
library that it does not know must register a controller.  threadpoolctl may not be installed, and
bncore should not import it on its own.  So if threadpoolctl has been imported, `watch` registers
the controller immediately; otherwise it does so right after somebody imports threadpoolctl.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from bncore.backends import native_module
from bncore.runtime import threads

NAME = "threadpoolctl"
# The file name of the compiled extension; the symbol distinguishes it from other such files.
PREFIX = "binding."
SYMBOL = "bncore_version"


def controller(threadpoolctl: Any) -> type[Any]:
    """Make the class that threadpoolctl calls for the library that holds bncore's threads."""

    class BncoreController(threadpoolctl.LibController):  # type: ignore[misc]
        """Lists the threads of bncore's functions, and limits them."""

        user_api = "bncore"
        internal_api = "bncore"
        filename_prefixes = (PREFIX,)
        check_symbols = (SYMBOL,)

        def set_additional_attributes(self) -> None:
            native = native_module()
            self.executor = None if native is None else native.executor()

        def get_num_threads(self) -> int:
            return threads.before_a_limit()

        def set_num_threads(self, num_threads: int) -> None:
            threads.limit(num_threads)

        def get_version(self) -> str | None:
            version = getattr(self.dynlib, SYMBOL, None)
            if version is None:  # a file of another library; this runs before the symbol check
                return None
            version.restype = ctypes.c_char_p
            return bytes(version()).decode()

    return BncoreController


class _AfterImport(MetaPathFinder):
    """A finder that registers the controller once the other finders have loaded threadpoolctl."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For threadpoolctl alone, return what the finders after this one find."""
        if fullname != NAME:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._hook(spec)
                return spec
        return None

    def _hook(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register(module)

        loader.exec_module = exec_module


def watch() -> None:
    """Register the controller now, or as soon as threadpoolctl has been imported."""
    module = sys.modules.get(NAME)
    if module is None:
        sys.meta_path.insert(0, _AfterImport())
    else:
        _register(module)


def _register(threadpoolctl: Any) -> None:
    if hasattr(threadpoolctl, "register"):  # versions before 3.2 do not have it
        threadpoolctl.register(controller(threadpoolctl))
