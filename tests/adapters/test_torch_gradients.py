"""Gradients of bncore.torch against finite differences, first and second."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import bncore.torch

pytestmark = pytest.mark.needs_torch

C = 3
SHAPES = [(5, C), (2, C, 2, 2)]


def given(shape, *, residual, requires_grad=True):
    generator = torch.Generator().manual_seed(len(shape))

    def made(*size):
        values = torch.randn(size, dtype=torch.float64, generator=generator)
        return values.requires_grad_(requires_grad)

    return made(*shape), made(C), made(C), made(*shape) if residual else None


def function(training, activation):
    mean, var = torch.linspace(-1, 1, C).double(), torch.linspace(0.5, 2, C).double()
    statistics = (None, None) if training else (mean, var)

    def batch_norm(x, weight, bias, residual):
        return bncore.torch.batch_norm(
            x,
            *statistics,
            weight,
            bias,
            training,
            activation=activation,
            negative_slope=0.2,
            residual=residual,
        )

    return batch_norm


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twice(shape, activation, residual, training):
    arguments = given(shape, residual=residual)
    batch_norm = function(training, activation)
    assert gradcheck(batch_norm, arguments)
    assert gradgradcheck(batch_norm, arguments)


def test_three_times():
    x, weight, bias, _ = given((4, C), residual=False)
    batch_norm = function(True, None)

    def first(x, weight):
        y = batch_norm(x, weight, bias, None)
        return torch.autograd.grad((y**3).sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first, (x, weight))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (1, 3), (0, 2)], ids=str)
def test_only_some_are_wanted(wanted, training):
    """Each gradient is the same whether others are asked for or not."""
    arguments = given((2, C, 2, 2), residual=True, requires_grad=False)
    batch_norm = function(training, "relu")

    def gradients(places):
        leaves = [a.clone().requires_grad_(i in places) for i, a in enumerate(arguments)]
        y = batch_norm(*leaves)
        return torch.autograd.grad(y, [leaves[i] for i in places], torch.ones_like(y))

    everything = gradients((0, 1, 2, 3))
    for place, got in zip(wanted, gradients(wanted), strict=True):
        torch.testing.assert_close(got, everything[place], rtol=0, atol=0)


def test_an_input_changed_before_backward_is_noticed():
    x, weight, bias, _ = given((4, C), residual=False)
    scaled = x * 2
    y = function(True, None)(scaled, weight, bias, None)
    scaled.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
