"""show_config: what it prints, and the same as a dict."""

from __future__ import annotations

import importlib.metadata
import typing
from pathlib import Path

import numpy as np
import pytest

import bncore
from bncore import backends
from bncore.runtime import config


def test_it_says_what_is_running(backend, capsys):
    assert bncore.show_config() is None
    printed = capsys.readouterr().out
    facts = bncore.show_config(mode="dicts")
    assert facts["versions"]["bncore"] == bncore.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["path"] == str(Path(bncore.__file__).parent)
    assert facts["backend"] == backend.name
    assert facts["backends"][backend.name] == "available"
    assert facts["threads"]["number"] == bncore.get_num_threads()
    if backend.isa:
        assert facts["native"]["instruction_set"] == backend.isa
        assert backend.isa in facts["native"]["instruction_sets"]
    for fact in (
        bncore.__version__,
        np.__version__,
        facts["path"],
        backend.name,
        facts["threads"]["source"],
    ):
        assert fact in printed
    assert capsys.readouterr().out == ""


def not_installed(package):
    raise importlib.metadata.PackageNotFoundError


def test_it_says_what_is_missing(monkeypatch, capsys):
    absent = ModuleNotFoundError("No module", name=backends.MODULES["native"])
    loaded = {name: active for name, active in backends._loaded.items() if name != "native"}
    monkeypatch.setattr(backends, "_loaded", loaded)
    monkeypatch.setattr(backends, "_missing", {"native": absent})
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(config.sys.modules, "numba", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    monkeypatch.setenv("BNCORE_ISA", "avx2")
    with bncore.use_backend("numpy"):
        bncore.show_config()
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("  native"))
    assert line.startswith("  native  not available: the compiled extension was not built")
    assert "BNCORE_REQUIRE_NATIVE=1 pip install -v --force-reinstall --no-deps ." in line
    assert line.endswith("; BNCORE_ISA=avx2 is ignored")
    assert "numba   not installed (`pip install 'bncore[numba]'` installs it)" in printed
    assert "numba     not installed" in printed


def test_it_says_how_native_spreads_its_work(monkeypatch, capsys):
    class Native:
        isa = staticmethod(lambda: "baseline")
        available_isas = staticmethod(lambda: ("baseline",))
        has_openmp = staticmethod(lambda: False)
        omp_max_threads = staticmethod(lambda: 1)
        in_forked_child = staticmethod(lambda: False)

    monkeypatch.setattr(backends, "native_module", lambda: Native)
    bncore.show_config()
    assert "native    baseline of baseline; no OpenMP" in capsys.readouterr().out
    Native.has_openmp = staticmethod(lambda: True)
    bncore.show_config()
    assert "; OpenMP, at most 1 thread\n" in capsys.readouterr().out
    Native.omp_max_threads = staticmethod(lambda: 3)
    bncore.show_config()
    assert "; OpenMP, at most 3 threads\n" in capsys.readouterr().out
    Native.in_forked_child = staticmethod(lambda: True)
    bncore.show_config()
    assert "; OpenMP, but one thread, since this is a forked child\n" in capsys.readouterr().out


def test_type_checkers_know_which_mode_returns_what():
    printed, returned = (typing.get_type_hints(f) for f in typing.get_overloads(bncore.show_config))
    assert printed == {"mode": typing.Literal["stdout"], "return": type(None)}
    assert returned == {"mode": typing.Literal["dicts"], "return": dict[str, typing.Any]}


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got 'yaml'$"):
        bncore.show_config(mode="yaml")
