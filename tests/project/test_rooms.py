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
    "bncore.arguments.scalars": set(),
    "bncore.arguments.layout": set(),
    "bncore.arguments.problem": {"bncore.arguments.layout", "bncore.arguments.scalars"},
    "bncore.runtime.buffer_pool": {"bncore.arguments.layout", "bncore.arguments.scalars"},
    "bncore.statistics": {"bncore.arguments.problem", "bncore.arguments.scalars"},
    "bncore.functions.running_stats": {
        "bncore.arguments.layout",
        "bncore.arguments.problem",
        "bncore.arguments.scalars",
        "bncore.statistics",
        "bncore.backends",
    },
    "bncore.layer.settings": {"bncore.arguments.problem", "bncore.arguments.scalars"},
    "bncore.layer.state": {
        "bncore.arguments.problem",
        "bncore.arguments.scalars",
        "bncore.statistics",
        "bncore.layer.settings",
    },
    "bncore.layer.formats": {"bncore.arguments.scalars"},
    "bncore.layer.interchange": {"bncore.layer.formats", "bncore.layer.state"},
    # The layer computes nothing itself: it stands on the functions, and they know nothing of it.
    "bncore.layer.batch_norm": {
        "bncore.functions.fold",
        "bncore.functions.train",
        "bncore.functions.infer",
        "bncore.functions.steps",
        "bncore.functions.running_stats",
        "bncore.statistics",
        "bncore.arguments.layout",
        "bncore.arguments.problem",
        "bncore.arguments.scalars",
        "bncore.layer.settings",
        "bncore.layer.state",
        "bncore.layer.interchange",
    },
    "bncore.runtime.threads": {"bncore.arguments.scalars", "bncore.backends"},
    "bncore.runtime.config": {
        "bncore",
        "bncore.arguments.scalars",
        "bncore.backends",
        "bncore.runtime.threads",
    },
}
for function_module in (
    "bncore.functions.train",
    "bncore.functions.infer",
    "bncore.functions.steps",
    "bncore.functions.mean_var",
):
    FACE[function_module] = {
        "bncore.arguments.scalars",
        "bncore.arguments.layout",
        "bncore.arguments.problem",
        "bncore.runtime.buffer_pool",
        "bncore.statistics",
        "bncore.backends",
        "bncore.runtime.threads",
    }

FACE["bncore.functions.sample_groups"] = {
    "bncore.arguments.scalars",
    "bncore.arguments.layout",
    "bncore.arguments.problem",
}
FACE["bncore.functions.fold"] = {"bncore.arguments.scalars", "bncore.arguments.problem"}
# Kernels on other groupings.
for grouping in ("bncore.functions.group_norm", "bncore.functions.layer_norm"):
    FACE[grouping] = FACE["bncore.functions.train"] - {"bncore.runtime.buffer_pool"} | {
        "bncore.functions.sample_groups"
    }
# What is made of the functions alone, with no kernel called.
composed = {
    "bncore.arguments.scalars",
    "bncore.arguments.problem",
    "bncore.statistics",
    "bncore.runtime.threads",
}
composed |= {"bncore.functions.steps", "bncore.arguments.layout"}
FACE["bncore.data.streaming"] = composed
FACE["bncore.data.micro_batches"] = composed
FACE["bncore.functions.ghost"] = composed | {"bncore.functions.train"}
FACE["bncore.data.recalibrate"] = {
    "bncore.arguments.scalars",
    "bncore.statistics",
    "bncore.layer.batch_norm",
    "bncore.layer.state",
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


@pytest.mark.parametrize("module", ["bncore.layer.formats", "bncore.layer.interchange"])
def test_conventions_need_no_other_library(module):
    used = {name.partition(".")[0] for name in imports(SOURCES[module])} - {"bncore"}
    assert used - {"__future__", "collections", "decimal", "typing"} == {"numpy"}


@pytest.mark.parametrize(
    "module", ["bncore.arguments.scalars", "bncore.arguments.layout", "bncore.arguments.problem"]
)
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
    sources = [path for path in (ROOT / "backends" / "native").iterdir() if path.suffix in (".pyx", ".pxi")]
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
    "bncore.adapter_compiler",
    "bncore.arguments.problem",
    "bncore.arguments.scalars",
    "bncore.runtime.buffer_pool",
    "bncore.statistics",
    "bncore",
    *ADAPTER,
}
# That for ONNX Runtime, likewise; onnx is also what the benchmark's peer makes its model with.
ONNXRUNTIME = [name for name in SOURCES if name.startswith("bncore.onnxruntime")]
ONNXRUNTIME_USES = {"bncore.adapter_compiler", *ONNXRUNTIME}
PEERS = "bncore.programs.bench.peers"  # each imported when it is asked for


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
JAX_ADAPTER_USES = {
    "bncore.arguments.scalars",
    "bncore.arguments.problem",
    "bncore.adapter_compiler",
    *JAX_ADAPTER,
}


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
PROGRAMS = (
    "bncore.__main__",
    "bncore.programs.bench",
    "bncore.programs.demo",
    "bncore.programs.study",
)


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith(PROGRAMS)])
def test_the_library_imports_no_program(module):
    assert not [name for name in imports(SOURCES[module]) if name.startswith(PROGRAMS)]


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if name.startswith("bncore.programs.demo")]
)
def test_the_demo_knows_nothing_of_the_benchmark_and_the_study(module):
    others = ("bncore.programs.bench", "bncore.programs.study")
    assert not [name for name in imports(SOURCES[module]) if name.startswith(others)]


def test_c_knows_nothing_of_python():
    sources = sorted((ROOT.parent / "src_c").glob("*.[ch]"))
    if not sources:  # an installed package
        pytest.skip("the C sources are not here")
    assert not [path.name for path in sources if "Python.h" in path.read_text(encoding="utf-8")]
