"""A module that is interrupted has moved its statistics and counted the batch, or neither."""

from __future__ import annotations

import pytest
import torch

import bncore.torch
import interrupts
from bncore.torch import compiled

C = 3
X = torch.randn(4, C, 5, generator=torch.Generator().manual_seed(1))
FILES = ("torch/functional.py", "torch/eager.py", "torch/ops.py")


def module(momentum: float | None = 0.1) -> bncore.torch.BatchNorm1d:
    made = bncore.torch.BatchNorm1d(C, momentum=momentum)
    made(X)
    return made


def state(made: torch.nn.Module) -> list[bytes]:
    return [buffer.numpy().tobytes() for buffer in made.buffers()]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("adapter", ["compiled", "python"])
def test_a_module(momentum, adapter, monkeypatch):
    if adapter == "python":
        monkeypatch.setattr(compiled, "adapter", None)
    finished = module(momentum)
    before = state(finished)
    finished(X)
    after = state(finished)
    assert before != after
    seen = set()
    for made in interrupts.every_interrupt(lambda: module(momentum), lambda made: made(X), *FILES):
        assert state(made) in (before, after)
        seen.add(state(made) == before)
    assert True in seen
