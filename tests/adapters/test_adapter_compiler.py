"""Adapters are compiled once, kept by what they are made from, and fail with the reason."""

from __future__ import annotations

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bncore
import variants
from bncore import adapter_compiler

pytestmark = pytest.mark.skipif(
    "native" not in variants.FOUND.names() or shutil.which("c++") is None,
    reason="needs the C library and a C++ compiler",
)

SOURCE = """
#include <bncore.h>
extern "C" __attribute__((visibility("default"))) int answer(void)
{
    return bncore_abi_version() + ADDED;
}
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(adapter_compiler.CACHE, str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def answer(library: Path) -> int:
    return ctypes.CDLL(str(library)).answer()


def test_a_library_is_compiled_once_and_calls_bncore(source, capfd):
    abi = ctypes.CFUNCTYPE(ctypes.c_int)(bncore.get_address("bncore_abi_version"))()
    library = adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"])
    assert answer(library) == abi
    assert "compiling answer.cpp for frame 1" in capfd.readouterr().err
    made = library.stat().st_mtime_ns
    assert adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"]) == library
    assert library.stat().st_mtime_ns == made
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("changed", ["framework", "arguments", "source", "header"])
def test_another_input_makes_another_library(source, changed):
    header = source.with_name("added.hpp")
    header.write_text("enum { MORE = 0 };\n")
    source.write_text('#include "added.hpp"\n' + SOURCE.replace("ADDED", "ADDED + MORE"))
    first = adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"])
    if changed == "header":
        header.write_text("enum { MORE = 20 };\n")
    if changed == "source":
        source.write_text(SOURCE.replace("ADDED", "10 + ADDED"))
    framework = "frame 2" if changed == "framework" else "frame 1"
    arguments = ["-DADDED=5"] if changed == "arguments" else ["-DADDED=0"]
    second = adapter_compiler.compiled(source, framework, arguments)
    assert second != first
    added = {"framework": 0, "arguments": 5, "source": 10, "header": 20}
    assert answer(second) - answer(first) == added[changed]


def test_another_machine_makes_another_library(source, monkeypatch):
    """A home on a network is that of machines of other kinds, too."""
    first = adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"])
    monkeypatch.setattr(adapter_compiler.platform, "machine", lambda: "another")
    assert adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"]) != first


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_remedy(source, monkeypatch):
    monkeypatch.setenv(adapter_compiler.CACHE, str(source / "below a file"))
    with pytest.raises(OSError, match="below a file") as caught:
        adapter_compiler.compiled(source, "frame 1", ["-DADDED=0"])
    assert "BNCORE_CACHE_DIR names another folder" in caught.value.__notes__[0]


def test_callers_at_the_same_time_compile_once(source, capfd):
    with ThreadPoolExecutor(4) as pool:
        paths = set(
            pool.map(lambda _: adapter_compiler.compiled(source, "f", ["-DADDED=1"]), range(4))
        )
    assert len(paths) == 1
    assert capfd.readouterr().err.count("compiling") == 1


def test_what_the_compiler_says_is_in_the_error_and_nothing_is_kept(source):
    source.write_text("#error no answer today\n")
    with pytest.raises(adapter_compiler.CompileError, match="no answer today"):
        adapter_compiler.compiled(source, "frame 1", [])
    assert list(adapter_compiler.cache_folder().glob("*.so")) == []


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_a_compiler_that_does_not_run_is_an_error(source, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(adapter_compiler.CompileError, match=compiler):
        adapter_compiler.compiled(source, "frame 1", [])


def test_no_compiler_is_an_error_that_says_what_was_looked_for(source, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        adapter_compiler.CompileError, match=r"c\+\+, g\+\+ or clang\+\+, or what CXX names"
    ):
        adapter_compiler.compiled(source, "frame 1", [])


def test_the_cache_is_the_users_unless_another_is_named(monkeypatch):
    monkeypatch.delenv(adapter_compiler.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert adapter_compiler.cache_folder() == Path("/caches/bncore")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert adapter_compiler.cache_folder() == Path("/home/somebody/.cache/bncore")
