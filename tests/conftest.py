"""Fixtures of the whole suite; `variants.py` finds the backends."""

from __future__ import annotations

import importlib.util
import os
import zlib

import numpy as np
import pytest
from hypothesis import settings

import bncore
import untraced
import variants

if "NUMBA_JIT_COVERAGE" in os.environ:  # as make test COVERAGE=1 sets it
    untraced.compile_untraced()

# The suite draws the same examples every day; HYPOTHESIS_PROFILE=search draws more of them, random
# others each time.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.register_profile("random", deadline=None, max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def installed(package: str) -> bool:
    """Whether a package can be imported; the folder of its tests, of the same name, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


# The files whose names begin with these words import a package when they are collected.
IMPORTED = {
    "torch": "torch",
    "jax": "jax",
    "onnxruntime": "onnxruntime",
    "dask": "distributed",
    "xarray": "xarray",
    "mpi": "mpi4py",
    "ray": "ray",
    "sklearn": "sklearn",
}
collect_ignore_glob = [
    pattern
    for name, package in IMPORTED.items()
    if not installed(package)
    for pattern in (f"*/test_{name}_*.py", f"{name}_*.py")  # tests, and what they share
]


@pytest.fixture(params=variants.FOUND.present, ids=str)
def backend(request):
    """Every backend that works here, native once per instruction set, each active in turn."""
    with request.param.active():
        yield request.param


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    for item in items:
        if "backend" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.every_backend)


@pytest.fixture(autouse=True)
def _thread_count_restored():
    yield
    bncore.set_num_threads(None)


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test's name alone, so that a failure repeats by itself."""
    name = request.node.originalname or request.node.name
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture(params=["compiled", "python", "operators"])
def way(request, monkeypatch):
    """The ways that a call of bncore.torch can go; operators are compiled where anything is."""
    from bncore.torch import compiled, eager

    if request.param == "compiled" and compiled.adapter is None:
        pytest.skip("the compiled part of bncore.torch is missing")
    if request.param != "compiled":
        monkeypatch.setattr(compiled, "adapter", None)
    if request.param == "operators":
        monkeypatch.setattr(eager, "possible", lambda *_: False)
    return request.param
