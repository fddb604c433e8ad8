"""The backends: their list, the active one, and the reason if one is missing.

A backend is imported when it is first needed.  Numba is imported only if the user names it, or if
the native module is missing.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from bncore.arguments.float_environment import in_default_environment
from bncore.backends.contract import Backend, FastPath
from bncore.extras import pip_install

# The backends, best first, each with its module.
MODULES = {
    "native": "bncore.backends.native.binding",
    "numba": "bncore.backends.numba.jit",
    "numpy": "bncore.backends.numpy.backend",
}
NAMES = tuple(MODULES)

# pip hides the output of a build; these options show it.
REMEDY = "`BNCORE_REQUIRE_NATIVE=1 pip install -v --force-reinstall --no-deps .`"

# The directory that contains this package: a checkout, or where packages are installed.
ROOT = Path(__file__).resolve().parents[2]

# Python imports the checkout itself if it runs there, although an installed package exists, too.
FROM_CHECKOUT = "you imported the checkout itself, which has no compiled part"
LEAVE_CHECKOUT = "run from another directory, or run `make build`"


# The functions of the three contracts that do computations.
COMPUTING = (
    "moments",
    "normalize",
    "train",
    "grad_sums",
    "grad_input",
    "train_backward",
    "infer_backward",
    "group_norm",
    "group_norm_backward",
    "integer_moments",
    "integer_normalize",
)


class InDefaultEnvironment:
    """A backend in Python, whose functions run in the default floating-point environment.

    The C core sets that environment itself, on each of its threads.  The threads of the Numba
    backend keep the environment in which they were created, so they are created here.
    """

    def __init__(self, module: Backend) -> None:
        self._module = module
        for name in COMPUTING:
            setattr(self, name, in_default_environment(getattr(module, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Active:
    """A loaded backend: its kernels, and its fast path if it has one."""

    __slots__ = ("fast", "kernels", "name")

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.kernels: Any = module if name == "native" else InDefaultEnvironment(module)
        self.fast: FastPath | None = module if hasattr(module, "fast_train") else None
        if name == "native":
            module.share(self)  # every call in every thread uses it


_loaded: dict[str, Active] = {}
_missing: dict[str, Exception] = {}
_default: Active | None = None
_chosen: ContextVar[Active | None] = ContextVar("bncore backend", default=None)
_chosen_once = False  # whether `use_backend` ever was called; until then no thread reads _chosen


def current() -> Active:
    """Return the backend of `use_backend` or of BNCORE_BACKEND, or the best one that works."""
    return (_chosen_once and _chosen.get()) or _default or _choose_default()


def name_in_use() -> str:
    """Return the name of the backend that `current` would return, without its warnings."""
    return (_chosen.get() or _default or _find_default()[0]).name


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
        except Exception as error:  # a broken installation can raise anything
            _missing[name] = error
        else:  # threads that load it at the same time all get the first one's object
            return _loaded.setdefault(name, Active(name, module))
    raise ImportError(f"backend: {name} is not available here: {why_missing(name)}") from _missing[
        name
    ]


def why_missing(name: str) -> str | None:
    """Say why the last attempt to import a backend failed, or return None if it did not."""
    error = _missing.get(name)
    if error is None:
        return None
    if name == "native" and is_absent(error):
        if is_checkout():
            return f"{FROM_CHECKOUT}: {LEAVE_CHECKOUT}"
        return f"the compiled extension was not built (in bncore's checkout, {REMEDY} shows why)"
    if name == "numba" and isinstance(error, ModuleNotFoundError) and error.name == "numba":
        return f"Numba is not installed ({pip_install('numba')} installs it)"
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def is_absent(error: Exception) -> bool:
    """Tell whether the native module was not built; False if it exists but is broken."""
    return isinstance(error, ModuleNotFoundError) and error.name == MODULES["native"]


def is_checkout() -> bool:
    """Tell whether this package lies in a checkout, beside the sources of its compiled part."""
    return (ROOT / "setup.py").is_file() and (ROOT / "src_c").is_dir()


def native_module() -> Any:
    """Return the native module, or None if it is missing."""
    try:
        return load("native").kernels
    except ImportError:
        return None


# The environment variables that the native module reads when it is imported.
NATIVE_SETTINGS = ("BNCORE_ISA", "BNCORE_EXECUTOR")


def _refuse_setting() -> None:
    """Raise one plain error if the native module refused one of its settings."""
    reason = str(_missing["native"])
    if reason.startswith(tuple(f"{name}:" for name in NATIVE_SETTINGS)):
        raise ValueError(reason) from None


def _native_was_asked_for() -> bool:
    """Tell whether the environment sets an option that only the native module has."""
    return any(os.environ.get(name) for name in NATIVE_SETTINGS)


def _choose_default() -> Active:
    """Choose the default backend, and warn if a better one cannot be used."""
    global _default
    _default, warned_of = _find_default()
    for message in warned_of:
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return _default


def _find_default() -> tuple[Active, list[str]]:
    """Find the backend of BNCORE_BACKEND, or the best one that works here, and the warnings."""
    name = os.environ.get("BNCORE_BACKEND", "")
    if name:
        return _named_by_environment(name), []
    messages = []
    for name in NAMES[:-1]:
        try:
            found = load(name)
        except ImportError:
            error = _missing[name]
            if name == "native" and _native_was_asked_for() and not is_absent(error):
                _refuse_setting()
                raise  # another backend does not have the option that the environment sets
            if not isinstance(error, ModuleNotFoundError):
                messages.append(
                    f"bncore: backend {name} is installed but cannot be used: {why_missing(name)}"
                )
        else:
            break
    else:
        found = load(NAMES[-1])
    if "native" in _missing and is_absent(_missing["native"]):  # pip did not show why
        messages.append(_absence(found.name))
    return found, messages


def _named_by_environment(name: str) -> Active:
    """Load the backend that BNCORE_BACKEND names."""
    try:
        return load(name)
    except ValueError:
        raise ValueError(
            f"BNCORE_BACKEND: expected one of {', '.join(NAMES)}, got {name!r}"
        ) from None
    except ImportError as error:
        if name == "native":
            _refuse_setting()
        raise error from None  # its text says why; a second traceback would hide that


def _absence(used: str) -> str:
    """Say that the native module was not built, what is used in its place, and what helps."""
    if is_checkout():
        what, remedy = FROM_CHECKOUT, LEAVE_CHECKOUT
    else:
        what = "the native extension is not installed"
        remedy = f"{REMEDY} in bncore's checkout shows why"
    faster = f"; {pip_install('numba')} installs a faster backend" if used == "numpy" else ""
    return (
        f"bncore: {what}; using {used} ({remedy}{faster}; set BNCORE_BACKEND={used} to silence "
        "this)"
    )


def use_backend(name: str) -> AbstractContextManager[str]:
    """Use one backend inside a ``with`` block.

    All backends give the same bits, so this is for tests, benchmarks and comparison.  If a result
    is NaN, it is NaN with every backend, but its bits may differ.

    Parameters
    ----------
    name : {"native", "numba", "numpy"}
        The backend, which is imported now if necessary.

    Returns
    -------
    context manager
        A manager for one ``with`` statement.  It affects only this thread (this `contextvars`
        context).  Blocks may be nested.

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
    global _chosen_once
    _chosen_once = True
    token = _chosen.set(backend)
    try:
        yield backend.name
    finally:
        _chosen.reset(token)
