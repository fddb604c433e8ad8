"""`convert(fuse=True)` leaves alone what no trace has, and watches what a trace depends on."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import bncore.torch
from torch_fusing import C, X, operations, results, trained

pytestmark = pytest.mark.needs_torch


class Base(torch.nn.Module):
    """Parts for forwards."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(C, C, 1), torch.nn.BatchNorm2d(C)
        self.relu, self.drop = torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.5)
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(C, C, 1)])
        self.function, self.seen, self.settings = torch.tanh, [], object()
        self.register_parameter("scale", None)

    def end(self, x):
        return functional.relu(self.norm(x))


class WithoutGradients(Base):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x)
        return self.end(x)


class Autocast(Base):
    def forward(self, x):
        with torch.autocast("cpu"):
            x = self.conv(x)
        return self.end(x.float())


class Checkpointed(Base):
    def forward(self, x):
        return self.end(checkpoint(self.conv, x, use_reentrant=False))


class SavesElsewhere(Base):
    def forward(self, x):
        with torch.autograd.graph.save_on_cpu():
            x = self.conv(x)
        return self.end(x)


class AsksForGradients(Base):
    def forward(self, x):
        return self.end(2 * x if torch.is_grad_enabled() else x)


class DrawsInPython(Base):
    def forward(self, x):
        return self.end(2 * x if random.random() < 0.5 else x)


class Draws(Base):
    def forward(self, x):
        return self.end(2 * x if torch.rand(1).item() < 0.5 else x)


class AsksForType(Base):
    def forward(self, x):
        return self.end(2 * x if isinstance(x, torch.Tensor) else x)


class AsksWhetherTensor(Base):
    def forward(self, x):
        x = self.conv(x)
        return self.end(2 * x if torch.is_tensor(x) else x)


class Appends(Base):
    def forward(self, x):
        self.seen.append(1)
        return self.end(x) * len(self.seen)


class ReadsObject(Base):
    def forward(self, x):
        return self.end(2 * x if hasattr(self.settings, "twice") else x)


class SetsInside(Base):
    def forward(self, x):
        self.drop.p = 0.1
        return self.end(x)


REASONS = {
    WithoutGradients: "its forward runs a part with other modes of autograd or autocast",
    Autocast: "its forward runs a part with other modes of autograd or autocast",
    Checkpointed: "its forward asks for the type of an argument, and got no example",
    SavesElsewhere: "its forward runs a part with other modes of autograd or autocast",
    AsksForGradients: "its forward asks whether gradients or autocast are on",
    DrawsInPython: "its forward draws random numbers that torch.fx does not see",
    Draws: "its forward draws random numbers that torch.fx does not see",
    AsksForType: "its forward asks for the type of an argument, and got no example",
    AsksWhetherTensor: "its forward asks for the type of a value",
    Appends: "its forward changes attributes",
    ReadsObject: "its forward reads settings, a object that may change unseen",
    SetsInside: "its forward sets p",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_forward_whose_trace_would_be_another_is_left_alone(kind):
    own = kind()
    before = torch.get_rng_state(), random.getstate()
    bncore.torch.convert(own, fuse=True)
    (layer,) = bncore.torch.report(own).unfused
    assert layer.reason == REASONS[kind] and type(own) is kind
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert own.drop.p == 0.5 and own.seen == []


def test_with_an_example_forward_may_ask_for_the_type_of_an_argument():
    own = AsksForType()
    plain = copy.deepcopy(own)
    bncore.torch.convert(own, fuse=True, example=X)
    assert operations(own) == ["relu"]
    torch.testing.assert_close(results(own, True), results(plain, True))


class Concatenating(Base):
    """As a layer of torchvision's DenseNet."""

    def forward(self, given):
        given = [given] if isinstance(given, torch.Tensor) else given
        return self.end(torch.cat(given, 1))


def test_lists_of_tensors():
    own = Concatenating()
    plain = copy.deepcopy(own)
    halves = list(X.chunk(2, 1))
    bncore.torch.convert(own, fuse=True, example=(halves,))
    assert operations(own) == ["relu"]
    for given in (halves, X, tuple(halves)):
        torch.testing.assert_close(own(given), plain(given))


class TakesNone(Base):
    def forward(self, x, mask):
        return self.end(x if mask is None else x * mask)


def test_arguments_that_are_no_tensors():
    own = bncore.torch.convert(TakesNone(), fuse=True, example=(X, X))
    assert operations(own) == ["relu"]
    plain = copy.deepcopy(bncore.torch.revert(copy.deepcopy(own)))
    for mask in (None, X, 2.0):
        torch.testing.assert_close(own(X, mask), plain(X, mask))
    own = bncore.torch.convert(TakesNone(), fuse=True, example=(X, None))
    (layer,) = bncore.torch.report(own).unfused
    assert layer.reason == "the example gives it something else than tensors"


class Reads(Base):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        x = self.function(x) * (2.0 if hasattr(self, "twice") else 1.0)
        if self.scale is not None:
            x = x * self.scale
        x = self.end(x) + (1.0 if self.norm.training else 0.0)
        return functional.dropout(x, self.drop.p, self.training)


def changes():
    """What the graph of `Reads` depends on."""

    def another_layer(block):
        torch.manual_seed(0)
        block.layers.append(torch.nn.Conv2d(C, C, 1))

    def another_function(block):
        block.function = torch.sin

    def a_new_attribute(block):
        block.twice = True

    def a_parameter(block):
        block.scale = torch.nn.Parameter(torch.tensor(3.0))

    def rate_inside(block):
        block.drop.p = 0.1

    def frozen_inside(block):
        block.train = lambda mode=True: block.norm.eval()

    return [
        another_layer, another_function, a_new_attribute, a_parameter, rate_inside, frozen_inside,
    ]  # fmt: skip


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_what_a_forward_has_read_is_watched(change):
    plain = trained(Reads())
    own = copy.deepcopy(plain)
    bncore.torch.convert(own, fuse=True)
    assert operations(own) == ["relu"]
    for training in (True, False):
        torch.testing.assert_close(results(own, training), results(plain, training))
    for block in (own, plain):
        change(block)
    for training in (True, False):
        torch.testing.assert_close(results(own, training), results(plain, training))


class Aliased(Base):
    """A module in between writes into the memory that batch norm has read."""

    def forward(self, x):
        x = x * 1
        view = x.view_as(x)
        y = self.norm(view)
        return y + self.relu(x)


class WritesWithOut(Base):
    def forward(self, x):
        x = x * 1
        view = x.view_as(x)
        y = self.norm(view)
        return y + torch.relu(torch.add(x, x, out=x.detach()))


class AddsItself(Base):
    def forward(self, x):
        y = self.norm(x)
        return functional.relu(y + y)


class Shared(Base):
    """Another part calls the same batch norm, and the order of the two calls matters."""

    def __init__(self):
        super().__init__()
        self.part = torch.nn.Sequential(self.norm)

    def forward(self, x):
        y = self.norm(x)
        return y + self.part(2 * x + 1)


class WrittenResidual(Base):
    """PyTorch keeps no residual for the gradient, so that it may be written to."""

    def forward(self, x):
        other = self.conv(x)
        y = functional.relu(self.norm(x) + other)
        return y + other.mul_(2.0)


@pytest.mark.parametrize("kind", [Aliased, WritesWithOut, AddsItself, Shared, WrittenResidual])
def test_an_addition_that_cannot_be_a_part_of_batch_norm(kind):
    plain = trained(kind())
    own = copy.deepcopy(plain)
    bncore.torch.convert(own, fuse=True)
    assert not [name for name in operations(own) if "add" in name and kind is not Shared]
    for training in (True, False):
        for module in (own, plain):
            module.train(training)
        with torch.no_grad():
            torch.testing.assert_close(own(X), plain(X))
        torch.testing.assert_close(own.state_dict(), plain.state_dict())
    if kind is WrittenResidual:
        torch.testing.assert_close(results(own, True), results(plain, True))


class Parallel(Base):
    """What is added is itself a batch norm with its activation, which is called later."""

    def __init__(self):
        super().__init__()
        self.other = torch.nn.BatchNorm2d(C)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return functional.relu(y + functional.relu(self.other(x)))


def test_a_residual_that_is_fused_itself():
    plain = trained(Parallel())
    own = copy.deepcopy(plain)
    bncore.torch.convert(own, fuse=True)
    assert sorted(operations(own)) == ["add, relu", "relu"]
    for training in (True, False):
        torch.testing.assert_close(results(own, training), results(plain, training))


def test_a_slice_of_a_sequential_that_is_fused():
    model = trained(
        torch.nn.Sequential(torch.nn.Conv2d(C, C, 1), torch.nn.BatchNorm2d(C), torch.nn.ReLU())
    )
    plain = copy.deepcopy(model)
    bncore.torch.convert(model, fuse=True)
    part = model[:2]
    torch.testing.assert_close(results(part, True), results(plain[:2], True))
    assert bncore.torch.report(part).fused == ()
    assert type(bncore.torch.revert(part)) is torch.nn.Sequential
