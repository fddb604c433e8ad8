"""What `convert(fuse=True)` finds behind a batch norm, and what it leaves as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

import bncore.torch
from torch_fusing import C, Chain, X, fused, operations, results, trained

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]


class Formula(torch.nn.Module):
    """A batch norm, what `formula` makes of it and of the input, and what happens between."""

    def __init__(self, formula, part=None):
        super().__init__()
        self.part = torch.nn.BatchNorm2d(C) if part is None else part
        self.identity, self.dropout = torch.nn.Identity(), torch.nn.Dropout(0.5)
        self.leaky, self.silu = torch.nn.LeakyReLU(0.2), torch.nn.SiLU()
        self.formula = formula

    def forward(self, x):
        return self.formula(self, x)


def subtracted(self, x):
    y = self.part(x)
    x.mul_(2.0)
    return torch.relu(y + x)


def in_place_on_the_other(self, x):
    x = x * 1
    x += self.part(x)
    return torch.relu(x) + x


FORMULAS = {
    "relu": (lambda self, x: torch.relu(self.part(x)), "relu"),
    "method": (lambda self, x: self.part(x).relu_(), "relu"),
    "functional": (lambda self, x: functional.relu(self.part(x), inplace=True), "relu"),
    "leaky": (lambda self, x: self.leaky(self.part(x)), "leaky_relu"),
    "leaky function": (lambda self, x: functional.leaky_relu(self.part(x), 0.3), "leaky_relu"),
    "identity": (lambda self, x: torch.relu(self.identity(self.part(x))), "relu"),
    "add": (lambda self, x: self.part(x) + x, "add"),
    "added": (lambda self, x: torch.relu(x + self.part(x)), "add, relu"),
    "identities": (
        lambda self, x: self.leaky(self.identity(torch.add(self.identity(self.part(x)), x))),
        "add, leaky_relu",
    ),
    "add_": (lambda self, x: self.part(x).add_(x).relu(), "add, relu"),
    "broadcast": (lambda self, x: torch.relu(x[:1] + self.part(x)), "add, relu"),
    "other dtype": (lambda self, x: torch.relu(x.double() + self.part(x)), "add, relu"),
    "nothing": (lambda self, x: self.part(x), None),
    "silu": (lambda self, x: self.silu(self.part(x)), None),
    "dropout": (lambda self, x: torch.relu(self.dropout(self.part(x))), None),
    "alpha": (lambda self, x: torch.add(self.part(x), x, alpha=2), None),
    "used twice": (lambda self, x: (lambda y: torch.relu(y) + y.mean())(self.part(x)), None),
    "called twice": (lambda self, x: torch.relu(self.part(x)) + self.part(x), None),
    "twice itself": (lambda self, x: (lambda y: y + y)(self.part(x)), None),
}


WRITING = [subtracted, in_place_on_the_other]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("part", [torch.nn.BatchNorm2d, Chain])
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name, part, training):
    formula, expected = FORMULAS[name]
    plain = bncore.torch.convert(trained(Formula(formula, part() if part is Chain else part(C))))
    own = copy.deepcopy(plain)
    fused(own)
    assert operations(own) == ([] if expected is None else [expected])
    torch.testing.assert_close(results(own, training), results(plain, training), rtol=0, atol=0)


@pytest.mark.parametrize("formula", WRITING)
def test_formulas_that_write_into_what_batch_norm_reads(formula):
    plain = bncore.torch.convert(trained(Formula(formula))).eval()
    own = bncore.torch.convert(copy.deepcopy(plain), fuse=True)
    assert operations(own) == []
    with torch.no_grad():
        assert torch.equal(own(X.clone()), plain(X.clone()))


def test_the_report_names_the_batch_norm_inside_a_part():
    own = torch.nn.Sequential(Formula(FORMULAS["added"][0], Chain()), Chain())
    fused(own)
    assert bncore.torch.report(own).fused == (("0.part.1", "0", "add, relu"),)
    assert type(own[1]) is Chain and type(own[0].part) is not Chain
    assert "\n  0.part.1: fused with add, relu" in str(bncore.torch.report(own))
