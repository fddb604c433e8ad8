"""show_config prints the configuration, or returns the same as a dict."""

from __future__ import annotations

import importlib.metadata
import typing
from pathlib import Path

import numpy as np
import pytest

import bncore
from bncore import backends
from bncore.extras import pip_install
from bncore.runtime import config
from processes import python
from variants import FOUND


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no line is broken."""
    monkeypatch.setenv("COLUMNS", "500")


def test_a_line_is_broken_between_words_where_the_terminal_ends(monkeypatch, capsys):
    bncore.show_config()
    whole = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "40")
    bncore.show_config()
    broken = capsys.readouterr().out
    assert broken.count("\n") > whole.count("\n") and broken.split() == whole.split()
    assert all(len(line) <= 40 or len(line.split()) <= 2 for line in broken.splitlines())


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
    monkeypatch.setattr(backends, "is_checkout", lambda: False)
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
    assert f"numba   not installed ({pip_install('numba')} installs it)" in printed
    assert "numba     not installed" in printed


class Native:
    """Stands in for the native module."""

    isa = staticmethod(lambda: "baseline")
    available_isas = staticmethod(lambda: ("baseline",))
    available_executors = staticmethod(lambda: ("own", "openmp", "serial"))
    has_openmp = staticmethod(lambda: True)
    max_threads = staticmethod(lambda: 0)

    def __init__(self, executor, workers=0, openmp=1, forked=False):
        self.executor = lambda: executor
        self.workers = lambda: workers
        self.omp_max_threads = lambda: openmp
        self.in_forked_child = lambda: forked


@pytest.mark.parametrize(("native", "asked", "expected"), [
    (Native("own"), "", "own executor (default), 0 workers started"),
    (Native("own", workers=1), "own", "own executor (BNCORE_EXECUTOR), 1 worker started"),
    (Native("openmp"), "openmp", "openmp executor (BNCORE_EXECUTOR), at most 1 thread"),
    (Native("openmp", openmp=3), "", "openmp executor (bncore_executor_choose), at most 3 threads"),
    (Native("openmp", forked=True), "openmp",
     "openmp executor (BNCORE_EXECUTOR), but one thread, because this is a forked child"),
    (Native("serial"), "serial", "serial executor (BNCORE_EXECUTOR)"),
])  # fmt: skip
def test_it_says_how_native_spreads_its_work(monkeypatch, capsys, native, asked, expected):
    monkeypatch.setenv("BNCORE_EXECUTOR", asked)
    monkeypatch.setattr(backends, "native_module", lambda: native)
    bncore.show_config()
    assert f"native    baseline of baseline; {expected}\n" in capsys.readouterr().out


@pytest.mark.skipif("native" not in FOUND.names(), reason="the native extension is absent")
@pytest.mark.parametrize("backend", ["", "native"])
def test_a_bad_executor_is_named(backend):
    script = """
        try:
            import bncore
            bncore.get_num_threads()
            bncore.mean_var([1.0, 2.0])
        except Exception as error:
            print(type(error).__name__, error, sep=": ")
    """
    said = python(script, BNCORE_EXECUTOR="threads", BNCORE_BACKEND=backend)
    assert said.startswith("ValueError: BNCORE_EXECUTOR: expected one of own, ")
    assert said.endswith(", got 'threads'")


@pytest.mark.skipif("native" not in FOUND.names(), reason="the native extension is absent")
def test_the_executor_comes_from_the_environment():
    script = """
        import bncore
        native = bncore.show_config(mode="dicts")["native"]
        print(native["executor"], native["executor_source"], bncore.get_num_threads())
    """
    assert python(script, BNCORE_NUM_THREADS="2") == "own default 2"
    serial = python(script, BNCORE_NUM_THREADS="2", BNCORE_EXECUTOR="serial")
    assert serial == "serial BNCORE_EXECUTOR 1"


def test_type_checkers_know_which_mode_returns_what():
    printed, returned = (typing.get_type_hints(f) for f in typing.get_overloads(bncore.show_config))
    assert printed == {"mode": typing.Literal["stdout"], "return": type(None)}
    assert returned == {"mode": typing.Literal["dicts"], "return": dict[str, typing.Any]}


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got 'yaml'$"):
        bncore.show_config(mode="yaml")
