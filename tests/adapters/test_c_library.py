"""The C library: from an installed wheel and from CMake's prefix, used as users do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import bncore
from checkout import COMPILER, ENVIRONMENT, ROOT, builds
from embed_example import expected, setup_constant
from installed import (
    CMAKE,
    Wheel,
    exported,
    follow,
    install_by_cmake,
    install_wheel,
    made_once,
    run,
    wheel_in,
)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="names of libraries are Linux's"),
]
needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    for name in ("c++", "nm", "pkg-config", "readelf")
}
EXAMPLES = ROOT / "docs" / "examples"
HEADER = (ROOT / "src_c" / "include" / "bncore.h").read_text()
API = set(re.findall(r"^BNCORE_API .*?(bncore_\w+)\(", HEADER, re.MULTILINE))
PAGE = (ROOT / "docs" / "embedding.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's blocks in a language, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


BY_CONFIG, BY_PKG_CONFIG, OF_PACKAGE, INSTALL, OF_PREFIX, CYTHON = blocks("bash")
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
(ABI,) = re.findall(r"#define BNCORE_ABI_VERSION (\d+)", HEADER)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Wheel:
    if not builds():
        pytest.skip("setuptools or Cython is not installed, or too old to build the package")
    return wheel_in(made_once(tmp_path_factory, "wheel", install_wheel))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    if CMAKE is None:
        pytest.skip("cmake is not installed")

    def install(folder: Path) -> None:
        install_by_cmake(folder, INSTALL)

    return made_once(tmp_path_factory, "cmake", install) / "moved"


# ---- what is exported

# The extension, and the two libraries of either origin.
KINDS = ("SHARED", "STATIC")
SHARED = ["extension", "wheel", "prefix"]


@pytest.fixture
def place(request) -> Path:
    """The directory that has include and lib below it."""
    found = request.getfixturevalue(request.param)
    return found.package if request.param == "wheel" else found


@pytest.fixture
def shared(request) -> Path:
    """A shared object that holds the library."""
    if request.param == "extension":
        (found,) = request.getfixturevalue("wheel").package.glob("backends/native/binding*.so")
        return found
    found = request.getfixturevalue(request.param)
    place = found.package if request.param == "wheel" else found
    return place / "lib" / f"libbncore.so.{ABI}"


both_places = pytest.mark.parametrize("place", ["wheel", "prefix"], indirect=True)
all_shared = pytest.mark.parametrize("shared", SHARED, indirect=True)


@needs["nm"]
@all_shared
def test_the_interface_alone_is_exported(request, shared):
    own = {"PyInit_binding"} if "binding" in shared.name else set()
    assert exported(shared, "-D") == API | own


@needs["nm"]
@both_places
def test_the_archive_has_no_name_of_another_kind(place):
    """Its files need each other's functions, so that these are global there, yet hidden."""
    names = exported(place / "lib" / "libbncore.a")
    assert names > API
    assert all(name.startswith("bncore_") for name in names), names


@needs["readelf"]
@both_places
def test_a_host_can_keep_the_archives_functions_to_itself(place, tmp_path):
    """By an option of the linker; without it a host's library exports the interface as its own."""
    (tmp_path / "host.c").write_text(
        '#include "bncore.h"\nint host(void);\n'
        "int host(void) { return bncore_abi_version() + (int)bncore_train(0, 0, 0, 0, 0, 0, 0); }\n"
    )
    command = ["cc", "-shared", "-fPIC", f"-I{place / 'include'}", tmp_path / "host.c"]
    archive = [place / "lib" / "libbncore.a", "-fopenmp", "-pthread", "-lm"]
    for options in ([], ["-Wl,--exclude-libs,libbncore.a"]):
        run(*command, *archive, *options, "-o", tmp_path / "host.so")
        names = exported(tmp_path / "host.so", "-D")
        assert "host" in names and ("bncore_train" in names) == (not options)
        assert not options or not names & API


@needs["readelf"]
@all_shared
def test_the_libraries_call_their_own_functions(shared):
    """Whatever library a host has loaded before: no call of bncore_* is left to the linker."""
    relocations = run("readelf", "--relocs", "--wide", shared)
    assert re.search(r"JUMP_SLO.* malloc", relocations)
    assert not re.search(r"JUMP_SLO.* bncore_", relocations)


@needs["readelf"]
@both_places
def test_the_shared_library_is_named_after_the_abi(place):
    shared = place / "lib" / f"libbncore.so.{ABI}"
    assert f"SONAME) Library soname: [{shared.name}]" in re.sub(
        r"\s+", " ", run("readelf", "--dynamic", shared)
    ).replace("(SONAME", "SONAME")
    if shared.is_symlink():  # CMake's; a wheel holds no links
        assert shared.resolve().name == f"libbncore.so.{bncore.__version__}"
        assert (place / "lib" / "libbncore.so").resolve() == shared.resolve()


@needs["readelf"]
def test_the_wheel_holds_no_debug_information(wheel):
    """As setup.py builds it: the fixture's compiler is asked for none by no other flag."""
    archive = wheel.package / "lib" / "libbncore.a"
    assert ".debug_info" not in run("readelf", "--sections", "--wide", archive)


def test_cmake_compiles_as_setup_does():
    text = (ROOT / "src_c" / "CMakeLists.txt").read_text()

    def listed(name: str) -> list[str]:
        return re.findall(rf"^set\({name} (.*?)\)", text, re.MULTILINE | re.DOTALL)[0].split()

    assert listed("SOURCES") == setup_constant("SOURCES")
    assert listed("OPTIONAL_FLAGS") == setup_constant("OPTIONAL_FLAGS")
    assert listed("X86_FLAGS") == setup_constant("X86_FLAGS")
    assert listed("S390_FLAGS") == setup_constant("S390_FLAGS")
    assert listed("STRICT_FLAGS") == setup_constant("STRICT_FLAGS")
    assert listed("STORAGE_TYPES") == setup_constant("STORAGE_TYPES")
    said_otherwise = {"-std=c11", "-O3", "-fvisibility=hidden"}  # by properties of the targets
    assert set(listed("FLAGS")) == set(setup_constant("FLAGS")) - said_otherwise
    assert 'set(CMAKE_C_FLAGS_RELEASE "-O3")' in text
    assert "C_STANDARD 11" in text and "C_VISIBILITY_PRESET hidden" in text
    assert "x86-64-v" not in text, "the instruction sets are those of isa.def"


# ---- C and C++


def test_the_page_shows_what_is_built():
    for language, file, count in (
        ("c", "embed_example.c", 2),
        ("cmake", "examples/cmake/CMakeLists.txt", 1),
        ("cpp", "examples/executor.cpp", 1),
    ):
        shown = blocks(language)
        assert len(shown) == count, language
        assert all(block in (ROOT / "docs" / file).read_text() for block in shown), file


def build_and_run(folder: Path, source: Path, *flags: str, compiler: str = "cc") -> str:
    standard = "-std=c++17" if compiler == "c++" else "-std=c11"
    program = folder / "program"
    run(compiler, standard, *STRICT, source, *flags, "-o", program)
    return run(program)


@needs["nm"]
def test_a_c_program_links_to_the_wheel(wheel, tmp_path):
    strict = BY_CONFIG.replace("-std=c11", shlex.join(["-std=c11", *STRICT]))
    assert wheel.follow(strict, tmp_path) == 2 * expected()
    for name, needs_library in (("embed_shared", True), ("embed_static", False)):
        undefined = run("nm", "--dynamic", "--undefined-only", tmp_path / name)
        assert ("bncore_train" in undefined) == needs_library


@needs["c++"]
def test_a_c_plus_plus_host_brings_its_executor(wheel, tmp_path):
    flags = [*wheel.config("--cflags", "--libs"), "-pthread"]
    printed = build_and_run(tmp_path, EXAMPLES / "executor.cpp", *flags, compiler="c++")
    assert printed == "loops: some by the call, more by the process\nsame bits: yes\n"


@needs["pkg-config"]
def test_pkg_config_knows_the_wheel(wheel, tmp_path):
    assert wheel.follow(BY_PKG_CONFIG, tmp_path) == expected()


@needs["pkg-config"]
@both_places
def test_pkg_config_says_what_each_library_needs(place, tmp_path):
    def ask(*options: str) -> list[str]:
        found = place / "lib" / "pkgconfig"
        return shlex.split(run("pkg-config", *options, "bncore", PKG_CONFIG_PATH=str(found)))

    flags = ask("--cflags", "--libs")
    assert build_and_run(tmp_path, ROOT / "docs" / "embed_example.c", *flags) == expected()
    assert "-lm" not in flags and "-lm" in ask("--static", "--libs")
    assert ask("--modversion") == [bncore.__version__]


@pytest.fixture
def cmake_prefix(request) -> str:
    """What a user gives as CMAKE_PREFIX_PATH."""
    if CMAKE is None:
        pytest.skip("cmake is not installed")
    if request.param == "prefix":
        return str(request.getfixturevalue("prefix"))
    (prefix,) = request.getfixturevalue("wheel").config("--prefix")
    return prefix


both_prefixes = pytest.mark.parametrize("cmake_prefix", ["wheel", "prefix"], indirect=True)


@needs["c++"]
@needs["readelf"]
@pytest.mark.parametrize("where", ["wheel", "prefix"])
def test_a_cmake_project_finds_it(request, tmp_path, where):
    if CMAKE is None:
        pytest.skip("cmake is not installed")
    if where == "wheel":
        printed = request.getfixturevalue("wheel").follow(OF_PACKAGE, tmp_path)
    else:
        (tmp_path / "bncore").symlink_to(request.getfixturevalue("prefix"))
        printed = follow(OF_PREFIX, tmp_path)
    assert printed.count(expected()) == 2 and printed.endswith("same bits: yes\n")
    (build,) = tmp_path.glob("of-p*")
    needed = f"Shared library: [libbncore.so.{ABI}]"
    assert needed in run("readelf", "--dynamic", build / "embed_shared")
    assert needed not in run("readelf", "--dynamic", build / "embed_static")


def test_a_cmake_project_may_contain_it(tmp_path):
    """The targets have the same names there, and the project around sets what it likes."""
    if CMAKE is None:
        pytest.skip("cmake is not installed")
    lines = [
        "cmake_minimum_required(VERSION 3.18)",
        "project(around LANGUAGES C)",
        "set(OpenMP_C_FOUND TRUE)\nset(OpenMP_C_FLAGS -fopenmp)",  # of the project around
        f'add_subdirectory("{ROOT / "src_c"}" bncore)',
        "foreach(target bncore::bncore bncore::bncore_static)",
        "  get_target_property(libraries ${target} LINK_LIBRARIES)",
        '  message(STATUS "${target}: ${libraries}")',
        "endforeach()",
    ]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    said = run(CMAKE, "-S", tmp_path, "-B", tmp_path / "b", "-DBNCORE_OPENMP=OFF")
    for target in ("bncore::bncore", "bncore::bncore_static"):
        assert f"-- {target}: -lm;-pthread\n" in said


@both_prefixes
def test_cmake_takes_a_version_of_the_same_series_alone(cmake_prefix, tmp_path):
    """With CMake's own rule SameMinorVersion, which the wheel's file repeats."""
    lines = ["cmake_minimum_required(VERSION 3.18)", "project(versions LANGUAGES NONE)"]
    asked_for = ("", "0.1", "0.2", "0.2.0", "0.2.0 EXACT", "0.2.1", "0.3", "1.2", "0.2.1 EXACT")
    for version in asked_for:
        lines.append(f"find_package(bncore {version} QUIET CONFIG)")
        lines.append(f'message(STATUS "[{version}] ${{bncore_FOUND}} ${{bncore_VERSION}}")')
        lines.append("unset(bncore_DIR CACHE)")
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    said = run(CMAKE, "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={cmake_prefix}")
    found = dict(re.findall(r"-- \[(.*?)\] (\d)", said))
    assert bncore.__version__ == "0.2.0", "the versions above are chosen around this one"
    accepted = {"", "0.2", "0.2.0", "0.2.0 EXACT"}
    assert found == {version: "1" if version in accepted else "0" for version in asked_for}


def test_cmake_refuses_to_build_nothing(tmp_path):
    if CMAKE is None:
        pytest.skip("cmake is not installed")
    done = subprocess.run(
        [CMAKE, "-S", ROOT / "src_c", "-B", tmp_path, *(f"-DBNCORE_{k}=OFF" for k in KINDS)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "expected at least one ON, got both OFF" in done.stderr


# ---- Python's view of it


def test_the_package_says_where_it_is(wheel):
    code = "import bncore; print(bncore.get_include(), bncore.get_library_dir(), sep='\\n')"
    include, lib = map(Path, wheel.python("-c", code).split())
    assert (include / "bncore.h").read_text() == HEADER
    assert include.parent == lib.parent == wheel.package
    assert wheel.config("--version") == [bncore.__version__]
    assert wheel.config("--prefix") == [str(wheel.package)]


def test_a_package_without_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(bncore.c_library, "PACKAGE", tmp_path)
    for function, missing in (
        (bncore.get_include, "include/bncore.h"),
        (bncore.get_library_dir, "lib/libbncore.so"),
    ):
        with pytest.raises(RuntimeError, match=f"without its C library \\({missing} is missing"):
            function()


def test_a_wheel_has_no_archive(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libbncore.so").write_text("INPUT(libbncore.so.2)")
    monkeypatch.setattr(bncore.c_library, "PACKAGE", tmp_path)
    with pytest.raises(RuntimeError, match="from a wheel, which has no archive for --static"):
        bncore.c_library.compiler_flags(["--libs", "--static"])
    assert bncore.c_library.compiler_flags(["--libs"]).endswith("-lbncore")


def test_an_unknown_option_is_refused():
    with pytest.raises(
        ValueError, match="expected --cflags, --libs, --static, --prefix, --version, got '-l'"
    ):
        bncore.c_library.compiler_flags(["-l"])


# ---- Cython


def test_a_cython_package_builds_against_the_wheel(wheel, tmp_path):
    shutil.copytree(EXAMPLES / "cython", tmp_path / "docs" / "examples" / "cython")
    site = tmp_path / "site"
    commands = CYTHON.replace("pip install", f"pip install --quiet --target {site}")
    wheel.follow(commands, tmp_path, SOURCE=str(tmp_path), CFLAGS="-O0")
    (module,) = site.glob(f"standardize*{sysconfig.get_config_var('EXT_SUFFIX')}")
    assert "bncore_" not in run("nm", "--dynamic", "--undefined-only", module)
    code = (
        "import numpy as np, bncore, standardize\n"
        "assert 'site' in bncore.__file__\n"
        "x = np.random.default_rng(0).normal(3.0, 2.0, (500, 7))\n"
        "y, moments = bncore.batch_norm_train(x)\n"
        "mean, m2 = np.empty(7), np.empty(7)\n"
        "standardize.standardize(x, mean, m2)\n"
        "assert (x == y).all() and (mean == moments.mean).all() and (m2 == moments.m2).all()\n"
        "print('same')"
    )
    path = os.pathsep.join([str(site), str(wheel.site)])
    assert run(sys.executable, "-P", "-c", code, PYTHONPATH=path) == "same\n"


def test_cython_declares_the_whole_interface():
    for name in (
        "bncore/__init__.pxd",
        "bncore/backends/native/binding.pxd",
        "bncore/backends/native/c_bncore.pxd",
    ):
        declared = set(re.findall(r"\b(bncore_\w+)\b", (ROOT / name).read_text()))
        assert declared >= API, name
    statuses = set(re.findall(r"BNCORE_(?:OK|ERROR_\w+)", HEADER))
    assert statuses <= set(re.findall(r"\w+", (ROOT / "bncore" / "__init__.pxd").read_text()))
