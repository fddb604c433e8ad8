"""Adapters are compiled once, cached by a hash of their sources, and fail with the reason."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bncore
import variants
from bncore import adapter_cache, adapter_compiler

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

# Another library of bncore's name.
FAKE = """
const char *bncore_version(void) { return "0.0.0"; }
int bncore_abi_version(void) { return 99; }
"""

LOAD = """
import ctypes, sys
from pathlib import Path
from bncore import adapter_compiler

for library in sys.argv[3:]:
    ctypes.CDLL(library)
adapter = adapter_compiler.load(Path(sys.argv[1]), "frame 1", ["-DADDED=0"])
print(adapter.library.answer() - int(sys.argv[2]))
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(adapter_cache.CACHE, str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def load(source: Path, framework: str = "frame 1", arguments=("-DADDED=0",)):
    return adapter_compiler.load(source, framework, arguments)


def answer(adapter: adapter_compiler.Adapter) -> int:
    return int(adapter.library.answer())


def abi() -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(bncore.get_address("bncore_abi_version"))())


def load_elsewhere(source: Path, *libraries: Path, **environment: str):
    """Load the adapter in a new process, after other libraries."""
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(source), str(abi()), *map(str, libraries)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_a_library_is_compiled_once_and_calls_bncore(source, capfd):
    first = load(source)
    assert answer(first) == abi()
    assert "compiling answer.cpp for frame 1" in capfd.readouterr().err
    made = first.path.stat()
    second = load(source)
    assert second.path == first.path
    assert second.path.stat() == made
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("changed", ["framework", "arguments", "source", "header"])
def test_another_input_makes_another_library(source, changed):
    header = source.with_name("added.hpp")
    header.write_text("enum { MORE = 0 };\n")
    source.write_text('#include "added.hpp"\n' + SOURCE.replace("ADDED", "ADDED + MORE"))
    first = load(source)
    if changed == "header":
        header.write_text("enum { MORE = 20 };\n")
    if changed == "source":
        source.write_text(source.read_text().replace("ADDED", "10 + ADDED"))
    framework = "frame 2" if changed == "framework" else "frame 1"
    arguments = ["-DADDED=5"] if changed == "arguments" else ["-DADDED=0"]
    second = load(source, framework, arguments)
    assert second.path != first.path
    added = {"framework": 0, "arguments": 5, "source": 10, "header": 20}
    assert answer(second) - answer(first) == added[changed]


def test_another_machine_makes_another_library(source, monkeypatch):
    """Machines of several kinds may share a home directory."""
    first = load(source)
    monkeypatch.setattr(adapter_compiler.platform, "machine", lambda: "another")
    assert load(source).path != first.path


def test_callers_at_the_same_time_compile_once(source, capfd):
    with ThreadPoolExecutor(4) as pool:
        paths = {adapter.path for adapter in pool.map(lambda _: load(source), range(4))}
    assert len(paths) == 1
    assert capfd.readouterr().err.count("compiling") == 1


def test_compiling_removes_old_files_and_loading_notes_the_use(source):
    path = load(source).path
    old = path.with_name("answer-0.so")
    old.touch()
    for file in (old, path):
        os.utime(file, (0, path.stat().st_mtime if file == path else 0))
    assert load(source).path == path
    assert path.stat().st_atime > 0 and old.exists()
    new = load(source, "frame 2").path
    assert new.exists() and path.exists() and not old.exists()
    assert {p.suffix for p in path.parent.iterdir()} == {".so", ".lock"}


def test_what_the_compiler_says_is_in_the_error_and_nothing_is_kept(source):
    source.write_text("#error no answer today\n")
    with pytest.raises(adapter_compiler.CompileError, match="no answer today"):
        load(source)
    assert [path.suffix for path in adapter_cache.cache_folder().iterdir()] == [".lock"]


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_a_compiler_that_does_not_run_is_an_error(source, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(adapter_compiler.CompileError, match=compiler):
        load(source)


def test_no_compiler_is_an_error_that_says_what_was_looked_for(source, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        adapter_compiler.CompileError, match=r"expected c\+\+, g\+\+ or clang\+\+, or what CXX"
    ):
        load(source)


# What lies in the cache


def test_with_an_open_umask_the_library_is_still_the_users_alone(source):
    before = os.umask(0)
    try:
        adapter = load(source)
    finally:
        os.umask(before)
    for path in (adapter.path.parent, *adapter.path.parent.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_cache_that_cannot_be_used_costs_a_compilation_not_the_call(source, monkeypatch, capfd):
    monkeypatch.setenv(adapter_cache.CACHE, str(source / "below a file"))
    with pytest.warns(RuntimeWarning, match=r"answer\.cpp: expected a folder"):
        adapter = load(source)
    assert answer(adapter) == abi()
    assert adapter.path.parent == adapter_cache._own_folder(os.getpid())


def test_a_cache_that_cannot_be_written_is_read(source, monkeypatch, capfd):
    kept = load(source)

    def read_only(file):
        raise PermissionError("read-only")

    monkeypatch.setattr(adapter_cache, "open_lock", read_only)
    assert load(source).path == kept.path
    with pytest.raises(PermissionError, match="read-only"), pytest.warns(RuntimeWarning):
        load(source, "frame 2")  # neither there nor in the private folder, of which it holds too


@pytest.mark.parametrize("damage", ["empty", "truncated", "no library", "link", "writable"])
def test_a_file_that_cannot_be_used_is_made_anew_once(source, damage, capfd):
    load(source, arguments=["-DADDED=1"])  # so that the process has no handle of the other one
    path = load_elsewhere_path(source)
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if damage == "no library":  # whole, as the seal says, but nothing that can be loaded
        garbage = b"garbage" * 1000
        path.write_bytes(garbage + adapter_cache.seal(garbage))
    if damage == "link":
        path.rename(source.with_name("elsewhere.so"))
        path.symlink_to(source.with_name("elsewhere.so"))
    if damage == "writable":
        path.chmod(0o777)
    capfd.readouterr()
    adapter = load(source)
    assert (adapter.path, answer(adapter)) == (path, abi())
    said = capfd.readouterr().err
    assert said.count("compiling answer.cpp") == 1
    reason = {
        "empty": "is damaged",
        "truncated": "is damaged",
        "no library": "does not load",
        "link": "cannot be opened",
        "writable": "can be written by others",
    }
    assert reason[damage] in said
    load(source)
    assert capfd.readouterr().err == ""


def load_elsewhere_path(source: Path) -> Path:
    """Let another process make the library; return its path."""
    before = {*adapter_cache.cache_folder().glob("*.so")}
    done = load_elsewhere(source)
    assert done.stdout.split() == ["0"], done.stderr
    (made,) = {*adapter_cache.cache_folder().glob("*.so")} - before
    return made


def test_a_library_that_never_loads_is_an_error_and_tried_once_in_a_call(source, capfd):
    source.write_text(
        SOURCE.replace("ADDED", "missing()").replace("<bncore.h>", "<bncore.h>\nint missing();")
    )
    for _ in range(2):
        with pytest.raises(OSError, match="missing"):
            load(source)
        assert capfd.readouterr().err.count("compiling") == 1


# Another user's files


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user, which only root can do")
@pytest.mark.parametrize("planted", ["folder", "file"])
def test_another_users_library_is_never_loaded(source, planted):
    """The name of the file is not secret, because everybody can read what it depends on."""
    evil = source.with_name("evil.cpp")
    evil.write_text(SOURCE)
    path = load_elsewhere_path(source)
    shutil.copyfile(load(evil, arguments=["-DADDED=666"]).path, path)
    path.chmod(0o755)
    if planted == "folder":
        os.chown(path.parent, 54321, 54321)
        with pytest.warns(RuntimeWarning, match="cache belongs to uid 54321"):
            adapter = load(source)
        assert adapter.path != path
    else:
        os.chown(path, 54321, 54321)
        adapter = load(source)
    assert answer(adapter) == abi()


# Another library of bncore's name


@pytest.fixture
def fake(source) -> Path:
    (real,) = Path(bncore.get_library_dir()).glob("libbncore.so.*")
    made = source.with_name("fake") / real.name
    made.parent.mkdir()
    made.with_name("fake.c").write_text(FAKE)
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{real.name}", "-o", str(made)]
    subprocess.run([*command, str(made.with_name("fake.c"))], check=True)
    return made


def test_the_librarys_own_bncore_comes_before_the_library_path(source, fake):
    done = load_elsewhere(source, LD_LIBRARY_PATH=str(fake.parent))
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize("how", ["loaded before", "preloaded"])
def test_an_adapter_that_calls_another_bncore_is_refused(source, fake, how):
    preload = {"LD_PRELOAD": str(fake)} if how == "preloaded" else {}
    done = load_elsewhere(source, *([] if preload else [fake]), **preload)
    said = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    own, version = f"bncore {bncore.__version__} (ABI {abi()})", "bncore 0.0.0 (ABI 99)"
    assert said.startswith("ImportError: ")
    assert f"another library than this package's: expected {own}, got {version} of " in said
    assert said.endswith(fake.name)
    assert done.stderr.count("compiling") == 1  # a new one would call the same
