"""The compiled part of bncore.torch: made, left out, missing; its memory after a fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import bncore.torch
from bncore.torch import compiled
from processes import exit_code_of_child, python

pytestmark = pytest.mark.needs_torch


@pytest.mark.skipif(compiled.adapter is None, reason="the compiled part of bncore.torch is missing")
def test_it_is_there_and_takes_the_call():
    x = torch.randn(3, 2, 4, requires_grad=True)
    y = bncore.torch.BatchNorm1d(2)(x)
    assert y.grad_fn.name() == "BatchNormBackward"
    assert compiled.library().is_file()


def test_it_can_be_left_out(monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "0")
    monkeypatch.setattr(compiled, "library", None)  # not looked for
    assert compiled.load() is None


def test_without_the_c_library_nothing_is_said(monkeypatch):
    def missing():
        raise RuntimeError("no such directory")

    monkeypatch.delenv(compiled.SWITCH, raising=False)
    monkeypatch.setattr(bncore, "get_library_dir", missing)
    assert compiled.load() is None


def test_a_compiler_that_fails_is_reported(monkeypatch, tmp_path):
    try:
        bncore.get_library_dir()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    monkeypatch.setenv("BNCORE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(RuntimeWarning, match="slower but still correct .*the C.. compiler false"):
        assert compiled.load() is None


WITHOUT_HOME = """
import os, pwd, warnings
import torch

def getpwuid(uid):
    raise KeyError(uid)  # as where nobody entered the user into /etc/passwd

pwd.getpwuid = getpwuid
for name in ("HOME", "XDG_CACHE_HOME", "BNCORE_CACHE_DIR", "BNCORE_TORCH_COMPILED"):
    os.environ.pop(name, None)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import bncore.torch
for warning in caught:
    if warning.category is RuntimeWarning:
        print(warning.message)
x = torch.randn(4, 3)
y = bncore.torch.batch_norm(x, None, None, training=True)
print(torch.allclose(y, torch.nn.functional.batch_norm(x, None, None, training=True), atol=1e-5))
"""


def test_a_user_without_a_home_directory_can_import_it(tmp_path):
    """As in a container.  The compiler of this test fails, so that it need not be waited for."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exec echo 1.0\nexit 1\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME],
        env=os.environ | {"CXX": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "it cannot use the cache" in said[0]
    assert "home directory" in said[0]
    assert "the compiled part is missing" in done.stdout
    assert said[-1] == "True"


@pytest.mark.skipif(compiled.adapter is None, reason="the compiled part of bncore.torch is missing")
# A fork beside threads is the point here; Python warns of it, and JAX where it was imported.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
def test_memory_for_results_after_a_fork():
    like = torch.empty(1 << 20)
    compiled.adapter.output(like)  # and back at once
    idle = compiled.adapter.pool_state()[1]
    assert idle >= like.nbytes
    child = os.fork()
    if child == 0:
        try:
            first = compiled.adapter.output(like)
            first[0] = first[-1] = 1.0  # not all at once: OpenMP's threads are not in a child
            del first
            os._exit(0 if compiled.adapter.pool_state()[1] == idle else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


EXECUTORS = ("torch", "own", "openmp", "serial")
NEEDS_ADAPTER = pytest.mark.skipif(
    compiled.adapter is None, reason="the compiled part of bncore.torch is missing"
)


def results(name: str) -> list[bytes]:
    """Bytes of output and gradients of a call that is large enough for three threads."""
    compiled.adapter.set_executor(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 16, 48, 48, generator=generator, requires_grad=True)
    layer = bncore.torch.BatchNorm2d(16)
    y = layer(x)
    y.square().sum().backward()
    return [t.detach().numpy().tobytes() for t in (y, x.grad, layer.weight.grad, layer.bias.grad)]


@NEEDS_ADAPTER
def test_every_executor_gives_the_same_bits():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results("serial")
        torch.set_num_threads(3)
        for name in EXECUTORS:
            try:
                assert compiled.adapter.set_executor(name) == name
            except ValueError:  # built without OpenMP
                assert name in ("torch", "openmp")
                continue
            assert results(name) == expected, name
    finally:
        torch.set_num_threads(threads)
        compiled.adapter.set_executor("")


@NEEDS_ADAPTER
def test_another_executor_is_refused():
    with pytest.raises(
        ValueError, match=r"^executor: expected torch, own, openmp or serial, got 'x'"
    ):
        compiled.adapter.set_executor("x")


@NEEDS_ADAPTER
@pytest.mark.parametrize(("asked", "expected"), [("", "torch"), ("own", "own"), ("serial",) * 2])
def test_the_environment_chooses_the_executor(asked, expected):
    script = """
        from bncore.torch import compiled
        print(compiled.adapter.set_executor(""))
    """
    assert python(script, BNCORE_EXECUTOR=asked) == expected


@NEEDS_ADAPTER
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
def test_a_forked_child_computes_on_other_threads_than_pytorchs():
    """PyTorch's threads are not there: its own parallel loops wait for them forever."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        x = torch.randn(8, 16, 48, 48, generator=torch.Generator().manual_seed(0))
        expected = bncore.torch.BatchNorm2d(16)(x).detach().numpy().tobytes()

        def child() -> int:
            y = bncore.torch.BatchNorm2d(16)(x)
            return 0 if y.detach().numpy().tobytes() == expected else 1

        assert exit_code_of_child(child) == 0
    finally:
        torch.set_num_threads(threads)
