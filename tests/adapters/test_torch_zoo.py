"""The program that makes the tables of docs/torch-models.md, with two small models."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

import bncore.torch
from checkout import ROOT

pytestmark = pytest.mark.needs_torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_vision  # noqa: F401  (skips the file if a library is missing)

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import torch_ways
        import torch_zoo
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", torch_zoo.QUICK)
def test_outputs_and_gradients_are_as_exact_as_those_of_pytorch(name):
    found = torch_zoo.numbers(name, 64)
    assert not found.left and len(found.found) == 4
    assert found.worst <= torch_zoo.FACTOR


@pytest.mark.filterwarnings("ignore")  # of deprecations in PyTorch
@pytest.mark.parametrize("way", torch_zoo.WAYS)
def test_a_converted_model_goes_the_ways_of_pytorch(way):
    name = torch_zoo.QUICK[0]
    model = bncore.torch.convert(torch_zoo.made(name))
    assert torch_zoo.tried(way, model, torch_zoo.images(64)) == "yes"


def test_other_results_are_noticed():
    class Drifting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.calls = torch.nn.Parameter(torch.ones(())), 0

        def forward(self, x):
            self.calls += 1
            return self.scale * x * self.calls

    x = torch.ones(2, 3)
    assert torch_zoo.tried("EMA", Drifting(), x).startswith("other results (")
    assert torch_zoo.cell(("yes", "other results")) == "**other results** (PyTorch: yes)"
    with pytest.raises(torch_ways.Unlike, match="shape"):
        torch_ways.same(x, x[0])
