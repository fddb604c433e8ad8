"""The arrows between modules: who may import whom."""

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

# What each module may import of bncore, beside the standard library and NumPy.
FACE = {
    "bncore.scalars": set(),
    "bncore.placement": set(),
    "bncore.problem": {"bncore.placement", "bncore.scalars"},
    "bncore.pool": {"bncore.placement", "bncore.scalars"},
    "bncore.statistics": {"bncore.problem", "bncore.scalars"},
    "bncore.running": {
        "bncore.placement",
        "bncore.problem",
        "bncore.scalars",
        "bncore.statistics",
        "bncore.backends",
    },
    "bncore.layer_settings": {"bncore.problem", "bncore.scalars"},
    "bncore.layer_state": {
        "bncore.problem",
        "bncore.scalars",
        "bncore.statistics",
        "bncore.layer_settings",
    },
    "bncore.foreign": {"bncore.scalars"},
    "bncore.conventions": {"bncore.foreign", "bncore.layer_state"},
    # The layer computes nothing itself: it stands on the functions, and they know nothing of it.
    "bncore.layer": {
        "bncore.fold",
        "bncore.api",
        "bncore.inference",
        "bncore.parts",
        "bncore.running",
        "bncore.statistics",
        "bncore.placement",
        "bncore.problem",
        "bncore.scalars",
        "bncore.layer_settings",
        "bncore.layer_state",
        "bncore.conventions",
    },
    "bncore.threads": {"bncore.scalars", "bncore.backends"},
    "bncore.config": {"bncore", "bncore.scalars", "bncore.backends", "bncore.threads"},
}
for function_module in ("bncore.api", "bncore.inference", "bncore.parts", "bncore.reductions"):
    FACE[function_module] = {
        "bncore.scalars",
        "bncore.placement",
        "bncore.problem",
        "bncore.pool",
        "bncore.statistics",
        "bncore.backends",
        "bncore.threads",
    }

FACE["bncore.samples"] = {"bncore.scalars", "bncore.placement", "bncore.problem"}
FACE["bncore.fold"] = {"bncore.scalars", "bncore.problem"}
# Kernels on other groupings.
for grouping in ("bncore.groupings", "bncore.layer_norm"):
    FACE[grouping] = FACE["bncore.api"] - {"bncore.pool"} | {"bncore.samples"}
# What is made of the functions alone, with no kernel called.
composed = {"bncore.scalars", "bncore.problem", "bncore.statistics", "bncore.threads"}
composed |= {"bncore.parts", "bncore.placement"}
FACE["bncore.out_of_core"] = composed
FACE["bncore.microbatch"] = composed
FACE["bncore.ghost"] = composed | {"bncore.api"}
FACE["bncore.population"] = {
    "bncore.scalars",
    "bncore.statistics",
    "bncore.layer",
    "bncore.layer_state",
}


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules that a file imports; with `at_import`, only those that importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_import else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            module = node.module or ""
            # `from bncore import problem` imports a module, `from bncore.x import name` may not.
            named = {f"{module}.{alias.name}" for alias in node.names}
            modules = {name for name in named if name in SOURCES}
            found |= modules or {module}
    return found


def of_bncore(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "bncore"}


def test_every_module_is_looked_at():
    assert {"bncore", *FACE, "bncore.backends", "bncore.backends.contract"} <= set(SOURCES)


@pytest.mark.parametrize("module", FACE)
def test_the_face(module):
    used = imports(SOURCES[module])
    assert of_bncore(used) <= FACE[module]


@pytest.mark.parametrize("module", ["bncore.foreign", "bncore.conventions"])
def test_conventions_need_no_other_library(module):
    used = {name.partition(".")[0] for name in imports(SOURCES[module])} - {"bncore"}
    assert used - {"__future__", "collections", "decimal", "typing"} == {"numpy"}


@pytest.mark.parametrize("module", ["bncore.scalars", "bncore.placement", "bncore.problem"])
def test_problem_imports_numpy_alone(module):
    used = {name.partition(".")[0] for name in imports(SOURCES[module])} - {"bncore"}
    assert used - {"__future__", "collections", "math", "numbers", "operator", "typing"} == {
        "numpy"
    }


BACKENDS = [name for name in SOURCES if name.startswith("bncore.backends.")]


@pytest.mark.parametrize("module", BACKENDS)
def test_a_backend_knows_nothing_of_the_face(module):
    used = of_bncore(imports(SOURCES[module]))
    assert all(name.startswith("bncore.backends.") for name in used), used


def test_the_native_module_knows_nothing_of_the_face():
    sources = [path for path in (ROOT / "backends").iterdir() if path.suffix in (".pyx", ".pxi")]
    if not sources:  # an installed package ships the compiled module alone
        pytest.skip("the Cython sources are not here")
    for source in sources:
        lines = [line.split() for line in source.read_text(encoding="utf-8").splitlines()]
        importing = [line for line in lines if {"import", "cimport"} & {*line}]
        assert importing, source
        named = {word for line in importing for word in line if word.startswith("bncore")}
        assert all(f"{word}.".startswith("bncore.backends.") for word in named), source


def test_the_registry_imports_no_backend_and_no_numba():
    used = imports(SOURCES["bncore.backends"])
    assert of_bncore(used) == {"bncore.backends.contract"}
    for module in SOURCES.keys() & {"bncore", *FACE}:
        assert "numba" not in imports(SOURCES[module], at_import=True)


# The adapter for PyTorch: it uses the face, and nobody else knows of it or of torch.
ADAPTER = [name for name in SOURCES if name.startswith("bncore.torch")]
ADAPTER_USES = {
    *(f"bncore.{name}" for name in ("compiling", "pool", "problem", "scalars", "statistics")),
    "bncore",
    *ADAPTER,
}
# That for ONNX Runtime, likewise; onnx is also what the benchmark's peer makes its model with.
ONNXRUNTIME = [name for name in SOURCES if name.startswith("bncore.onnxruntime")]
ONNXRUNTIME_USES = {"bncore.compiling", *ONNXRUNTIME}
PEERS = "bncore.bench.peers"  # each imported when it is asked for


@pytest.mark.parametrize("module", ADAPTER)
def test_the_adapter_uses_the_face(module):
    assert of_bncore(imports(SOURCES[module])) <= ADAPTER_USES


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - {*ADAPTER}))
def test_only_the_adapter_imports_torch(module):
    used = imports(SOURCES[module])
    assert not [name for name in used if name.startswith("bncore.torch")]
    if not module.startswith(PEERS):
        assert "torch" not in {name.partition(".")[0] for name in used}


@pytest.mark.parametrize("module", ONNXRUNTIME)
def test_the_adapter_for_onnx_runtime_compiles_and_no_more(module):
    assert of_bncore(imports(SOURCES[module])) <= ONNXRUNTIME_USES


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - {*ONNXRUNTIME}))
def test_only_its_adapter_imports_onnx_runtime(module):
    used = imports(SOURCES[module])
    assert not [name for name in used if name.startswith("bncore.onnxruntime")]
    if not module.startswith(PEERS):
        assert not {"onnx", "onnxruntime"} & {name.partition(".")[0] for name in used}


# The adapter for JAX, likewise.
JAX_ADAPTER = [name for name in SOURCES if name.startswith("bncore.jax")]
JAX_ADAPTER_USES = {"bncore.scalars", "bncore.problem", "bncore.compiling", *JAX_ADAPTER}


@pytest.mark.parametrize("module", JAX_ADAPTER)
def test_the_adapter_for_jax_uses_the_face(module):
    assert of_bncore(imports(SOURCES[module])) <= JAX_ADAPTER_USES


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - {*JAX_ADAPTER}))
def test_only_its_adapter_imports_jax(module):
    used = imports(SOURCES[module])
    assert not [name for name in used if name.startswith("bncore.jax")]
    if not module.startswith(PEERS):
        assert "jax" not in {name.partition(".")[0] for name in used}


def test_importing_bncore_imports_no_framework():
    code = "import sys, bncore; print(*{'torch', 'jax', 'onnxruntime', 'numba'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# The programs: `python -m bncore` starts them, and the benchmark uses the demo's formula.
PROGRAMS = ("bncore.__main__", "bncore.bench", "bncore.demo", "bncore.study")


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith(PROGRAMS)])
def test_the_library_imports_no_program(module):
    assert not [name for name in imports(SOURCES[module]) if name.startswith(PROGRAMS)]


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("bncore.demo")])
def test_the_demo_knows_nothing_of_the_benchmark_and_the_study(module):
    others = ("bncore.bench", "bncore.study")
    assert not [name for name in imports(SOURCES[module]) if name.startswith(others)]


def test_c_knows_nothing_of_python():
    sources = sorted((ROOT.parent / "src_c").glob("*.[ch]"))
    if not sources:  # an installed package
        pytest.skip("the C sources are not here")
    assert not [path.name for path in sources if "Python.h" in path.read_text(encoding="utf-8")]
