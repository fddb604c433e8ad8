"""A missing framework is named, with the command that installs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bncore import extras

# Adapters with the packages that they need; the tests of Dask, xarray and Ray have their own.
NEEDED = [
    ("torch", "torch"),
    ("jax", "jax"),
    ("onnxruntime", "onnx"),
    ("onnxruntime", "onnxruntime"),
    ("numba", "numba"),
    ("sklearn", "sklearn"),
    ("mpi", "mpi4py"),
]


@pytest.mark.parametrize(("kind", "file", "command"), [
    ("dist-info", "METADATA", "`pip install 'bncore[dask]'`"),
    ("egg-info", "PKG-INFO", "`pip install '.[dask]'` in its checkout"),
])  # fmt: skip
def test_the_command_fits_the_installation(kind, file, command, tmp_path, monkeypatch):
    folder = tmp_path / f"bncore-0.2.0.{kind}"
    folder.mkdir()
    (folder / file).write_text("Metadata-Version: 2.1\nName: bncore\nVersion: 0.2.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.pip_install("dask") == command


def test_a_checkout_alone_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.pip_install("dask") == "`pip install '.[dask]'` in its checkout"


@pytest.mark.parametrize(("adapter", "package"), NEEDED)
def test_an_adapter_without_its_framework_says_how_to_get_it(adapter, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import bncore.{adapter}\nexcept ModuleNotFoundError as error:\n"
        "    print(error.name, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f" bncore.{adapter}: expected " in done.stdout
    assert f", got none: {extras.pip_install(adapter)} installs it" in done.stdout


def test_a_framework_that_is_broken_says_so_itself():
    error = ModuleNotFoundError("No module named 'typing_extensions'", name="typing_extensions")
    assert extras.missing("torch", "PyTorch", {"torch"}, error) is error
