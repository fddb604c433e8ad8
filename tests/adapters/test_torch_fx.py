"""PyTorch's tracers and fusers do with converted modules what they do with PyTorch's own."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import bncore.torch

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*reduce_range.*"),
    pytest.mark.filterwarnings("ignore:_aminmax is deprecated"),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.fx.experimental import optimization

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMES = [["conv", "norm", "relu"]]


class Net(torch.nn.Module):
    """A layer with its ReLU; the statistics of `norm` are not those of a new layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()
        self.norm = torch.nn.BatchNorm2d(4)
        self(X)

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))


class Own(torch.nn.BatchNorm2d):
    """Somebody's own class with PyTorch's forward."""


def pair(training):
    plain = Net().train(training)
    return plain, bncore.torch.convert(copy.deepcopy(plain))


def default_mapping(qat):
    name = "get_default_qat_qconfig_mapping" if qat else "get_default_qconfig_mapping"
    return getattr(quantization, name)("x86")


FUSERS = {
    "fuse": (optimization.fuse, False),
    "fuse_fx": (quantize_fx.fuse_fx, False),
    "prepare_fx": (lambda m: quantize_fx.prepare_fx(m, default_mapping(False), (X,)), False),
    "prepare_qat_fx": (lambda m: quantize_fx.prepare_qat_fx(m, default_mapping(True), (X,)), True),
    "fuse_modules": (lambda m: quantization.fuse_modules(m, NAMES), False),
    "fuse_modules_qat": (lambda m: quantization.fuse_modules_qat(m, NAMES), True),
}


@pytest.mark.parametrize("name", FUSERS)
def test_fusers_know_converted_modules(name):
    use, training = FUSERS[name]
    plain, own = map(use, pair(training))
    assert repr(own).replace("bncore.torch.", "") == repr(plain)
    assert not isinstance(getattr(own, "norm", None), torch.nn.BatchNorm2d)  # it was fused
    torch.testing.assert_close(own(X), plain(X))


def test_quantization_in_training_gives_layers_that_can_be_converted():
    fused = quantization.fuse_modules_qat(pair(True)[1], NAMES)
    fused.qconfig = quantization.get_default_qat_qconfig("x86")
    plain = quantization.prepare_qat(fused)
    own = bncore.torch.convert(copy.deepcopy(plain))
    assert [layer.name for layer in bncore.torch.report(own).converted] == ["conv.bn"]
    results = [model(X) for model in (plain, own)]
    torch.testing.assert_close(*results)
    for y in results:
        y.sum().backward()
    torch.testing.assert_close(own.conv.weight.grad, plain.conv.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, Own, bncore.torch.BatchNormReLU])
def test_a_module_is_one_node(kind):
    layer = bncore.torch.convert(kind(3))
    seen = []
    layer.register_forward_hook(lambda module, given, y: seen.append(y) or 2 * y)
    net = torch.nn.Sequential(layer, torch.nn.Flatten())
    traced = torch.fx.symbolic_trace(net)
    assert [node.op for node in traced.graph.nodes][1:3] == ["call_module", "call_module"]
    assert not seen
    torch.testing.assert_close(traced(X), net(X))
    assert len(seen) == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_are_one_node_and_the_original_module_is_as_before(copied):
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    before = dict(net[0].__dict__)
    bncore.torch.convert(net)
    torch.fx.symbolic_trace(torch.nn.Sequential(copied(net[0])))
    assert bncore.torch.revert(net)[0].__dict__.keys() == before.keys()


def test_a_fuser_leaves_alone_what_it_would_leave_alone():
    """Somebody's own class, and a module that is PyTorch's nowhere."""
    for norm in (Own(4), bncore.torch.BatchNormReLU(4)):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm).eval()
        assert len([*optimization.fuse(bncore.torch.convert(net)).graph.nodes]) == 4
        with pytest.raises(AssertionError, match="did not find fuser method"):
            quantization.fuse_modules(net, [["0", "1"]])
