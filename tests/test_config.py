"""show_config: what it prints, and the same as a dict."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

import bncore
from bncore import backends, config


def test_it_says_what_is_running(backend, capsys):
    assert bncore.show_config() is None
    printed = capsys.readouterr().out
    facts = bncore.show_config(mode="dicts")
    assert facts["versions"]["bncore"] == bncore.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["backend"] == backend.name
    assert facts["backends"][backend.name] == "available"
    assert facts["threads"]["number"] == bncore.get_num_threads()
    if backend.isa:
        assert facts["native"]["instruction_set"] == backend.isa
        assert backend.isa in facts["native"]["instruction_sets"]
    for fact in (bncore.__version__, np.__version__, backend.name, facts["threads"]["source"]):
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
    with bncore.use_backend("numpy"):
        bncore.show_config()
    printed = capsys.readouterr().out
    assert "native  not available: the compiled extension was not built" in printed
    assert "numba   not available: Numba is not installed" in printed
    assert "numba     not installed" in printed


def test_a_build_without_openmp_says_so(monkeypatch, capsys):
    class Native:
        isa = staticmethod(lambda: "baseline")
        available_isas = staticmethod(lambda: ("baseline",))
        has_openmp = staticmethod(lambda: False)
        omp_max_threads = staticmethod(lambda: 1)

    monkeypatch.setattr(backends, "native_module", lambda: Native)
    bncore.show_config()
    assert "native    baseline of baseline; no OpenMP" in capsys.readouterr().out


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got 'yaml'$"):
        bncore.show_config(mode="yaml")
