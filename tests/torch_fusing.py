"""Modules to fuse, and what the tests of `convert(fuse=True)` ask of them."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bncore.torch

C = 4
X = torch.randn(2, C, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(torch.nn.Module):
    """A residual block with one ReLU for all, as torchvision writes it."""

    def __init__(self, shortcut=None):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(C, C, 3, padding=1), torch.nn.BatchNorm2d(C)
        self.conv2, self.bn2 = torch.nn.Conv2d(C, C, 3, padding=1), torch.nn.BatchNorm2d(C)
        self.relu = torch.nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            identity = self.shortcut(x)
        out += identity
        return self.relu(out)


class Chain(torch.nn.Sequential):
    """A part that ends in a batch norm, which somebody else goes on with."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(C, C, 1), torch.nn.BatchNorm2d(C))


def trained(module):
    for name, values in [*module.named_buffers(), *module.named_parameters()]:
        if values.is_floating_point():
            torch.nn.init.uniform_(values, 0.5 if "var" in name or "weight" in name else -0.5, 1.5)
    return module


def results(module, training, x=X):
    """Output, gradients and state after one call."""
    given = x.clone().requires_grad_()
    module.train(training)
    torch.manual_seed(0)
    y = module(given * 1)
    wanted = [given, *module.parameters()]
    torch.manual_seed(1)
    found = torch.autograd.grad((y * torch.rand_like(y)).sum(), wanted, allow_unused=True)
    gradients = [one for one in found if one is not None]
    return [y, *gradients, *module.state_dict().values()]


def operations(module):
    return [one.operations for one in bncore.torch.report(module).fused]


def fused(module, **keywords):
    return bncore.torch.convert(module, fuse=True, example=X, **keywords)


class Names(TorchDispatchMode):
    """Keeps the names of the elementwise operators that run besides batch norm."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen |= {function.overloadpacket.__name__.rstrip("_")} & {"relu", "leaky_relu", "add"}
        return function(*args, **kwargs or {})


def calls(module):
    module.eval()
    with Names() as names:
        module(X)
    return names.seen
