"""The build: what make records and requires, and what an old compiler cannot build."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import COMPILER, ENVIRONMENT, ROOT, builds, executable

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path):
    """The Makefile over an environment whose Python is a script that does nothing."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bncore" / "backends" / "native").mkdir(parents=True)
    executable(tmp_path / ".venv" / "bin" / "python", "exit 0")
    for stamp in (".base", ".test"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def make(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=checkout,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
    )


def test_numpy_is_the_only_requirement(tmp_path):
    """The metadata of a wheel, as pip asks setuptools for them; no module is compiled."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "lib", "include")
    shutil.copytree(ROOT / "bncore", tmp_path / "bncore", ignore=left_out)
    (tmp_path / "made").mkdir()
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('made')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT | {"BNCORE_SKIP_NATIVE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "made").glob("*.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: (.*)$", file.read_text(), re.M)
    assert [line for line in required if "extra ==" not in line] == ["numpy>=2.0"]
    assert 'numba>=0.60; extra == "numba"' in required


@needs_make
def test_a_build_that_failed_is_tried_again(checkout):
    stale = checkout / "bncore" / "backends" / "native" / "binding.old.so"
    stale.touch()
    for _ in range(2):
        done = make(checkout, "build")
        assert done.returncode == 0
        assert "THE NATIVE EXTENSION WAS NOT BUILT" in done.stdout
        assert not stale.exists()
    executable(checkout / ".venv" / "bin" / "python", "touch bncore/backends/native/binding.new.so")
    assert "NOT BUILT" not in make(checkout, "build").stdout
    assert (checkout / ".venv" / ".native").exists()
    assert "build_ext" not in make(checkout, "build").stdout


@needs_make
@pytest.mark.parametrize(("required", "expected"), [("1", "1"), ("0", None), ("", None)])
def test_the_suite_demands_what_is_required(checkout, required, expected):
    (checkout / ".venv" / ".native").touch()
    printed = make(checkout, "-n", "test", BNCORE_REQUIRE_NATIVE=required).stdout
    assert ("BNCORE_EXPECT_NATIVE=1 " in printed) == (expected == "1"), printed
    assert "BNCORE_EXPECT_NATIVE=" in printed


@needs_make
@pytest.mark.parametrize("how", ["command line", "environment"])
def test_another_interpreter_than_the_environments_is_not_ignored(checkout, how):
    (checkout / ".venv" / ".native").touch()
    executable(checkout / ".venv" / "bin" / "python", "echo cpython-399")

    def build(python: Path | str) -> subprocess.CompletedProcess[str]:
        if how == "environment":
            return make(checkout, "build", PYTHON=str(python))
        return make(checkout, "build", f"PYTHON={python}")

    done = build(sys.executable)
    assert done.returncode != 0
    assert ".venv was made by cpython-399" in done.stderr
    assert "run `make clean` first" in done.stderr
    assert build(executable(checkout / "same", "echo cpython-399")).returncode == 0
    assert build(checkout / "nowhere").returncode != 0
    assert make(checkout, "build").returncode == 0


@needs_make
def test_what_an_earlier_build_left_is_not_installed_without_native(checkout):
    """setuptools packages everything in build/lib, even a module that has been deleted."""
    stale = checkout / "build" / "lib.linux" / "bncore" / "deleted.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    python = checkout / "python"
    install = "mkdir -p .venv-pure/bin && ln -sf ../../fake .venv-pure/bin/python"
    executable(python, install)
    executable(checkout / "fake", 'case " $* " in *test*) ls build > seen;; esac')
    done = make(checkout, ".venv-pure/.test", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    assert (checkout / "seen").read_text() == ""


# ---- setup.py, with a compiler that knows less than this one


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


needs_builder = pytest.mark.skipif(
    not builds(), reason="setuptools or Cython is not installed, or too old to build the package"
)


NAMES_OF_KERNELS = """
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(type, isa) JOIN(JOIN(bncore_kernels, type), isa)
#if BNCORE_STORAGE == 0
const char JOIN(bncore_integers, BNCORE_ISA_NAME)[1];
#define TYPE f32
#elif BNCORE_STORAGE == 1
#define TYPE f64
#elif BNCORE_STORAGE == 2
#define TYPE f16
#elif BNCORE_STORAGE == 3
#define TYPE bf16
#endif
const char NAME(TYPE, BNCORE_ISA_NAME)[1];
"""


def build_native(
    folder: Path, cases: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Build the extension into `folder`, in a hurry.  The compiler looks at its arguments first.

    `cases` are those of a shell's `case`, where `refuse` is a command that fails.  In place of the
    kernels it compiles nothing but their names, with the same flags.
    """
    stub = folder / "kernels.c"
    stub.write_text(NAMES_OF_KERNELS)
    compiler = executable(
        folder / "cc",
        'refuse() { echo "this compiler is too old" >&2; exit 1; }\n'
        f'case " $* " in {cases} esac\n'
        'for given; do shift; [ "$given" != src_c/kernels/kernels.c ] || '
        f'given={stub}; set -- "$@" "$given"; done\n'
        f'exec {COMPILER} "$@" -O0',
    )
    into = (f"--build-lib={folder}/lib", f"--build-temp={folder}/temp")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--force", *into],
        cwd=ROOT,
        env=ENVIRONMENT | {"CC": str(compiler)} | variables,
        capture_output=True,
        text=True,
    )
    return done, list(folder.glob("lib/**/binding*.so"))


@needs_compiler
@needs_builder
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set alone here")
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param('*" -march=x86-64-v3 "*) refuse;;', id="flag"),
        pytest.param('*WITHOUT_avx2*);; *" src_c/dispatch.c "*) refuse;;', id="detection"),
    ],
)
def test_an_instruction_set_that_does_not_compile_is_left_out(tmp_path, cases):
    done, (built,) = build_native(tmp_path, cases, BNCORE_REQUIRE_NATIVE="1")
    assert done.returncode == 0
    assert "bncore: this compiler does not know avx2, which is left out" in done.stderr
    code = (
        "from importlib import machinery, util\n"
        f"loader = machinery.ExtensionFileLoader('binding', {str(built)!r})\n"
        "native = util.module_from_spec(util.spec_from_loader('binding', loader))\n"
        "loader.exec_module(native)\n"
        "print(*native.available_isas())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = run.stdout.split()
    assert "avx2" not in found and found[-1] == "baseline"


@needs_compiler
@needs_builder
def test_an_optional_flag_that_the_compiler_does_not_know_is_left_out(tmp_path):
    flag = "-fno-tree-loop-distribute-patterns"
    done, built = build_native(tmp_path, f'*" {flag} "*) refuse;;', BNCORE_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert f"bncore: this compiler does not know {flag}, which is left out" in done.stderr
    assert "bncore: this compiler does not know avx" not in done.stderr
    assert len(built) == 1


def test_processor_features_have_names_that_every_compiler_knows():
    """Those of GCC 11 and clang 14, which refuse others where they compile dispatch.c."""
    sources = "".join(
        (ROOT / "src_c" / name).read_text() for name in ("kernels/isa.def", "dispatch.c")
    )
    known = {"avx2", "fma", "bmi", "bmi2"} | {f"avx512{x}" for x in ("f", "bw", "cd", "dq", "vl")}
    assert set(re.findall(r'HAS\("(.*?)"\)', sources)) == known


@needs_compiler
@needs_builder
@pytest.mark.parametrize("required", ["0", "1"])
def test_without_the_baseline_there_is_no_extension(tmp_path, required):
    done, built = build_native(
        tmp_path, '*" src_c/kernels/kernels.c "*) refuse;;', BNCORE_REQUIRE_NATIVE=required
    )
    assert not built
    assert (done.returncode == 0) == (required == "0")
    assert ("bncore: the native extension was not built" in done.stderr) == (required == "0")


@needs_builder
def test_a_build_that_failed_installs_no_older_binary(tmp_path):
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("bncore", "src_c"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    compiler = executable(tmp_path / "cc", "exit 1")
    output = tmp_path / "lib" / "bncore" / "backends" / "native"
    output.mkdir(parents=True)
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (output / f"native{suffix}").touch()
    done = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", "lib"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"CC": str(compiler)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the native extension was not built" in done.stderr
    assert (output.parent / "contract.py").exists()
    assert list(output.glob("binding*.so")) == []
