"""The folders of the package have an order, and no module imports from a later folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bncore

ROOT = Path(bncore.__file__).parent
SOURCES = {
    ".".join(("bncore", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

# Each room with the folders and modules in it.  A module imports from its own room and from those
# before it, no others.
ROOMS = {
    "version": ("version", "extras"),
    "arguments": ("arguments",),
    "statistics": ("statistics",),
    "backends": ("backends",),
    "runtime": ("runtime",),
    "C library": ("c_structs", "c_library"),
    "functions": ("functions",),
    "layer": ("layer",),
    "data": ("data",),
    "face": ("",),  # bncore itself: the public names
    "adapters": (
        "adapter_cache",
        "adapter_compiler",
        "torch",
        "jax",
        "onnxruntime",
        "numba",
        "sklearn",
        "dask",
        "mpi",
        "ray",
        "xarray",
    ),
    "programs": ("programs", "__main__"),
}
ORDER = list(ROOMS)

# What importing a room may need beside the standard library and NumPy.
FRAMEWORKS = {
    "bncore.backends.numba.jit": {"numba"},  # the specification beside it needs NumPy alone
    "bncore.numba": {"numba", "llvmlite"},
    "bncore.torch": {"torch"},
    "bncore.jax": {"jax"},
    "bncore.onnxruntime": {"onnx", "onnxruntime"},
    "bncore.sklearn": {"sklearn", "scipy"},  # scikit-learn needs SciPy
    "bncore.dask": {"dask"},
    "bncore.mpi": {"mpi4py"},
    "bncore.ray": {"ray"},
    "bncore.xarray": {"xarray"},
}


def room_of(module: str) -> str:
    """Return the folder that a module is in; there must be exactly one."""
    first = module.split(".")[1] if "." in module else ""
    rooms = [room for room, names in ROOMS.items() if first in names]
    assert len(rooms) == 1, f"{module}: expected in one room of {ORDER}, found in {rooms}"
    return rooms[0]


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Return the modules that a file imports; with `at_import`, those that importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            module = node.module or ""
            # `from bncore.arguments import layout` imports a module; other names are in one.
            for name in (f"{module}.{alias.name}" for alias in node.names):
                found.add(name if name in SOURCES else module)
    return found


def of_bncore(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "bncore"}


def packages(names: set[str]) -> set[str]:
    """Return the packages that are neither bncore, nor NumPy, nor of the standard library."""
    used = {name.partition(".")[0] for name in names}
    return used - {"bncore", "numpy"} - sys.stdlib_module_names


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_from_its_own_room_and_those_before_it(module):
    allowed = ORDER[: ORDER.index(room_of(module)) + 1]
    for used in of_bncore(imports(SOURCES[module])):
        assert room_of(used) in allowed, f"{module} imports {used}"


def test_no_imports_run_in_a_circle():
    waiting = {module: of_bncore(imports(path, at_import=True)) for module, path in SOURCES.items()}
    while waiting:
        free = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these modules import each other in a circle: {sorted(waiting)}"
        for module in free:
            del waiting[module]


@pytest.mark.parametrize("module", [m for m in SOURCES if room_of(m) != "programs"])
def test_the_library_needs_numpy_alone(module):
    (allowed,) = [
        names for start, names in FRAMEWORKS.items() if f"{module}.".startswith(f"{start}.")
    ] or [set()]
    assert packages(imports(SOURCES[module], at_import=True)) <= allowed


ADAPTERS = ["torch", "jax", "onnxruntime", "numba", "sklearn", "dask", "xarray", "mpi", "ray"]
KNOWN_TO = {"bncore.dask": "bncore.xarray"}  # whose arrays may hold Dask's


@pytest.mark.parametrize("framework", ADAPTERS)
def test_an_adapter_is_known_to_nobody_but_itself(framework):
    own = f"bncore.{framework}"
    for module, path in SOURCES.items():
        if not f"{module}.".startswith((f"{own}.", f"{KNOWN_TO.get(own, own)}.")):
            used = of_bncore(imports(path))
            assert not [name for name in used if f"{name}.".startswith(f"{own}.")], module


def test_the_registry_of_backends_imports_none_of_them():
    used = of_bncore(imports(SOURCES["bncore.backends"]))
    assert used == {
        "bncore.arguments.float_environment",
        "bncore.backends.contract",
        "bncore.extras",
    }


def test_the_cython_sources_import_nothing_outside_the_backends():
    sources = [
        path for path in (ROOT / "backends").rglob("*.p*") if path.suffix in (".pyx", ".pxi")
    ]
    if not sources:  # an installed package has the compiled module alone
        pytest.skip("the Cython sources are not here")
    for source in sources:
        lines = [line.split() for line in source.read_text(encoding="utf-8").splitlines()]
        importing = [line for line in lines if line and line[0] in ("from", "import", "cimport")]
        named = {word for line in importing for word in line if f"{word}.".startswith("bncore.")}
        assert all(f"{word}.".startswith("bncore.backends.") for word in named), source


def test_c_knows_nothing_of_python():
    sources = sorted((ROOT.parent / "src_c").rglob("*.[ch]"))
    if not sources:  # an installed package
        pytest.skip("the C sources are not here")
    assert not [path.name for path in sources if "Python.h" in path.read_text(encoding="utf-8")]


def test_the_demo_knows_nothing_of_the_benchmark_and_the_study():
    others = ("bncore.programs.bench", "bncore.programs.study")
    for module, path in SOURCES.items():
        if module.startswith("bncore.programs.demo"):
            assert not [name for name in imports(path) if name.startswith(others)], module


def test_importing_bncore_imports_no_framework():
    known = {name for names in FRAMEWORKS.values() for name in names}
    code = f"import sys, bncore; print(*{known} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
