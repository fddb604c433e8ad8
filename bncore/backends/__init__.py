"""The backends: which there are, which one is active, and why one is missing.

A backend is imported when it is first asked for; Numba in particular only if it is named, or if
the native module is missing.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, cast

from bncore.backends.contract import Backend

# Best first; each with the module that holds it.
MODULES = {
    "native": "bncore.backends.native.binding",
    "numba": "bncore.backends.numba.jit",
    "numpy": "bncore.backends.numpy.reference",
}
NAMES = tuple(MODULES)

# pip hides what a build says, so a reinstallation has to be told to show it.
REMEDY = "`BNCORE_REQUIRE_NATIVE=1 pip install -v --force-reinstall --no-deps .`"

# A small-call path: None says that the arguments are not canonical.
Fast = Callable[..., Any] | None


class Active:
    """A loaded backend, with the small-call paths that it may have."""

    __slots__ = (
        "fast_grad_input",
        "fast_grad_sums",
        "fast_infer",
        "fast_infer_backward",
        "fast_mean_var",
        "fast_moments",
        "fast_normalize",
        "fast_running",
        "fast_train",
        "fast_train_backward",
        "kernels",
        "name",
    )

    def __init__(self, name: str, kernels: Backend) -> None:
        self.name = name
        self.kernels = kernels
        self.fast_train: Fast = getattr(kernels, "fast_train", None)
        self.fast_train_backward: Fast = getattr(kernels, "fast_train_backward", None)
        self.fast_infer: Fast = getattr(kernels, "fast_infer", None)
        self.fast_infer_backward: Fast = getattr(kernels, "fast_infer_backward", None)
        self.fast_moments: Fast = getattr(kernels, "fast_moments", None)
        self.fast_normalize: Fast = getattr(kernels, "fast_normalize", None)
        self.fast_grad_sums: Fast = getattr(kernels, "fast_grad_sums", None)
        self.fast_grad_input: Fast = getattr(kernels, "fast_grad_input", None)
        self.fast_mean_var: Fast = getattr(kernels, "fast_mean_var", None)
        self.fast_running: Fast = getattr(kernels, "fast_running", None)


_loaded: dict[str, Active] = {}
_missing: dict[str, Exception] = {}
_default: Active | None = None
_chosen: ContextVar[Active | None] = ContextVar("bncore backend", default=None)


def current() -> Active:
    """Return the active backend: of `use_backend`, of BNCORE_BACKEND, or the best that works."""
    return _chosen.get() or _default or _choose_default()


def load(name: str) -> Active:
    """Import a backend by name, once.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    ImportError
        If it cannot be imported here; the message says why.
    """
    if not isinstance(name, str) or name not in MODULES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    if name in _loaded:
        return _loaded[name]
    if name not in _missing:
        try:
            module = importlib.import_module(MODULES[name])
        except Exception as error:  # a broken installation raises anything
            _missing[name] = error
        else:  # threads that load it at the same time all get the first one's object
            return _loaded.setdefault(name, Active(name, cast(Backend, module)))
    raise ImportError(f"backend: {name} is not available here: {why_missing(name)}") from _missing[
        name
    ]


def why_missing(name: str) -> str | None:
    """Tell why the last attempt to import a backend failed; None where it did not."""
    error = _missing.get(name)
    if error is None:
        return None
    if name == "native" and is_absent(error):
        return f"the compiled extension was not built (in bncore's checkout, {REMEDY} shows why)"
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def is_absent(error: Exception) -> bool:
    """Tell whether the native module is just not there, rather than broken."""
    return isinstance(error, ModuleNotFoundError) and error.name == MODULES["native"]


def native_module() -> Any:
    """Return the native module, or None where it is missing."""
    try:
        return load("native").kernels
    except ImportError:
        return None


def _refuse_isa() -> None:
    """Raise one plain error where the native module refused BNCORE_ISA."""
    reason = str(_missing["native"])
    if reason.startswith("BNCORE_ISA:"):
        raise ValueError(reason) from None


def _choose_default() -> Active:
    """Take the backend of BNCORE_BACKEND, else the best that can be imported."""
    global _default
    name = os.environ.get("BNCORE_BACKEND", "")
    if name:
        try:
            _default = load(name)
        except ValueError:
            raise ValueError(
                f"BNCORE_BACKEND: expected one of {', '.join(NAMES)}, got {name!r}"
            ) from None
        except ImportError:
            if name == "native":
                _refuse_isa()
            raise
        return _default
    for name in NAMES[:-1]:
        try:
            _default = load(name)
        except ImportError:
            error = _missing[name]
            if name == "native" and os.environ.get("BNCORE_ISA") and not is_absent(error):
                _refuse_isa()
                raise  # an instruction set was asked for: another backend is no answer
            if not isinstance(error, ModuleNotFoundError):
                warnings.warn(
                    f"bncore: backend {name} is installed but cannot be used: {why_missing(name)}",
                    RuntimeWarning,
                    stacklevel=4,
                )
        else:
            break
    else:
        _default = load(NAMES[-1])
    if "native" in _missing and is_absent(_missing["native"]):  # pip did not show it
        warnings.warn(
            f"bncore: the native extension is not installed; using {_default.name} ({REMEDY} in "
            f"bncore's checkout shows why; set BNCORE_BACKEND={_default.name} to silence this)",
            RuntimeWarning,
            stacklevel=4,
        )
    return _default


def use_backend(name: str) -> AbstractContextManager[str]:
    """Use one backend inside a ``with`` block.

    All backends give the same bits, so this is for tests, benchmarks and comparison.  Where a
    result is NaN, all are NaN; its bits are not promised.

    Parameters
    ----------
    name : {"native", "numba", "numpy"}
        Imported now, if it was not yet.

    Returns
    -------
    context manager
        For one ``with`` statement.  It counts for this thread (this `contextvars` context) alone;
        blocks may be nested.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    ImportError
        If it is not available here; the message says why.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.array([[1.0, 2.0], [3.0, 6.0]])
    >>> with bncore.use_backend("numpy"):
    ...     bncore.moments(x).mean
    array([2., 4.])
    """
    return _using(load(name))


@contextmanager
def _using(backend: Active) -> Iterator[str]:
    token = _chosen.set(backend)
    try:
        yield backend.name
    finally:
        _chosen.reset(token)
