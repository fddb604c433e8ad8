"""Training that keeps y and not x: gradients, what they cost in digits, and memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional

import bncore.torch
from bncore.torch import InPlaceBatchNorm, inverse

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]

C = 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, C, 6, 6, generator=GENERATOR)
RESIDUAL = torch.randn(4, C, 6, 6, generator=GENERATOR)
DY = torch.randn(4, C, 6, 6, generator=GENERATOR)
ACTIVATIONS = [None, "leaky_relu"]


def layer(weight=1.0, bias=0.0, **keywords):
    made = InPlaceBatchNorm(C, **keywords)
    signs = torch.tensor([1.0, -1.0, 0.5, 1.5])
    with torch.no_grad():
        made.weight.copy_(weight * signs)
        made.bias.copy_(bias * signs.flip(0))
    return made


def results(module, x=X, residual=None, dy=DY):
    """y, then the gradients of x, weight, bias and residual."""
    given = [x.clone().requires_grad_()]
    if residual is not None:
        given.append(residual.clone().requires_grad_())
    y = module(*given)
    x_and_residual = torch.autograd.grad(y, [*given, module.weight, module.bias], dy.to(y.dtype))
    return y, *x_and_residual


def formula(module, x, residual):
    """The same in float64, by PyTorch."""

    class Plain(torch.nn.BatchNorm2d):
        def forward(self, x, residual=None):
            y = super().forward(x)
            y = y if residual is None else y + residual
            return y if module.activation is None else functional.leaky_relu(y, 0.01)

    plain = Plain(C).double()
    plain.load_state_dict(module.state_dict())
    given = [x if x is None else x.double() for x in (x, residual)]
    return results(plain, *given, DY.double())


def keeps_output(module, *given):
    """Whether backward of a call has y and not x."""
    return "KeepsOutput" in module(*given).grad_fn.name()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("residual", [None, RESIDUAL], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation, residual, order, dtype):
    module = layer(bias=0.5, activation=activation).to(dtype)
    x = X.to(dtype).to(memory_format=order)
    residual = residual if residual is None else residual.to(dtype)
    expected = formula(copy.deepcopy(module), x, residual)
    got = results(module, x, residual)
    assert got[1].is_contiguous(memory_format=order)
    size = 64 * torch.finfo(dtype).eps
    for one, exact in zip(got, expected, strict=True):
        assert (one.double() - exact).abs().max() <= size * exact.abs().max()
    assert module.num_batches_tracked == 1
    other = copy.deepcopy(module)
    other.__dict__.pop(inverse.KEEPS_OUTPUT)
    module.reset_running_stats()
    other.reset_running_stats()
    assert torch.equal(module(x), other(x))  # the same bits
    assert torch.equal(module.running_var, other.running_var)


@pytest.mark.parametrize("residual", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 16.0, 100.0])
def test_what_it_costs_in_digits(ratio, residual):
    """The error of xhat is a few roundings of |xhat| + |bias / weight| + |residual / weight|."""
    module = layer(bias=0.5 * ratio)
    added = residual * RESIDUAL if residual else None
    dx, exact = (f(module, X, added)[1].double() for f in (results, formula))
    module.eval()
    xhat = functional.batch_norm(X, None, None, training=True).abs().max()
    weight = 0.5  # the smallest
    terms = xhat + ratio * 1.5 / 0.5 * weight / 0.5 + residual * RESIDUAL.abs().max() / weight
    roundings = float((dx - exact).abs().max() / exact.abs().max() / terms * 2.0**24)
    assert roundings < 16.0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_where_a_weight_is_too_small_x_is_kept(activation):
    for weight, bias, residual, kept in (
        (1.0, 1.0, None, True),
        (1e-3, 0.0, None, True),
        (1e-3, 1.0, None, False),
        (1e-3, 0.0, RESIDUAL, False),
        (0.02, 0.0, RESIDUAL, True),
        (0.0, 0.0, None, False),
        (float("nan"), 0.0, None, False),
    ):
        module = layer(weight, bias, activation=activation)
        given = (X,) if residual is None else (X, residual)
        assert keeps_output(module, *given) == kept, (weight, bias)
    module = layer(0.0, 1.0, activation=activation)
    for got, exact in zip(results(module), formula(module, X, None), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slope", [1e-42, 2.0**-61, 1e-10, 3.0, 2.0**61])
def test_slopes_with_which_y_would_vanish_or_overflow_keep_x(slope):
    module = layer(negative_slope=slope)
    assert keeps_output(module, X) == (2.0**-60 <= slope <= 2.0**60)
    (dx, dweight), wanted = results(module)[1:3], X.clone().requires_grad_()
    plain = torch.nn.BatchNorm2d(C)
    plain.load_state_dict(module.state_dict())
    y = functional.leaky_relu(plain(wanted), slope)
    exact = torch.autograd.grad(y, (wanted, plain.weight), DY)
    for got, want in zip((dx, dweight), exact, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_what_it_cannot_do_keeps_x():
    module = layer()
    assert keeps_output(module, X)
    assert not keeps_output(module.to(torch.bfloat16), X.bfloat16())
    module.float()
    with torch.no_grad():
        assert module(X).grad_fn is None
    assert torch.compile(module, backend="eager", fullgraph=True)(X).shape == X.shape
    y = module(X.clone().requires_grad_())
    y.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = module(X.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(y.square().sum(), module.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_y_is_saved_and_x_is_not():
    module, x = layer(), X.clone().requires_grad_() * 1
    y = module(x, RESIDUAL)
    kept = {one.data_ptr() for one in y.grad_fn.saved_tensors if one is not None}
    assert y.data_ptr() in kept and x.data_ptr() not in kept


def test_the_module():
    module = layer(negative_slope=0.2)
    assert "activation='leaky_relu', negative_slope=0.2" in repr(module)
    assert list(module.state_dict()) == list(torch.nn.BatchNorm2d(C).state_dict())
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert keeps_output(again, X) and torch.equal(again(X), module(X))
    module.eval()
    expected = functional.leaky_relu(
        functional.batch_norm(
            X, module.running_mean, module.running_var, module.weight, module.bias
        )
        + RESIDUAL,
        0.2,
    )
    torch.testing.assert_close(module(X, RESIDUAL), expected)
    torch.testing.assert_close(torch.jit.script(module)(X, RESIDUAL), expected)
    assert bncore.torch.revert(module) is module and type(module) is InPlaceBatchNorm


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"activation": "relu"}, "activation: expected None or 'leaky_relu', got 'relu'"),
        ({"negative_slope": 0.0}, r"negative_slope: expected a positive number, got 0\.0"),
    ],
)
def test_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        InPlaceBatchNorm(C, **keywords)


def test_convert():
    """Batch norms of which leaky ReLU is part keep y, others x; revert undoes it."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(C) for _ in range(2)])
            self.act = torch.nn.LeakyReLU(0.1, inplace=True)

        def forward(self, x):
            y = self.norms[1](self.act(self.norms[0](x)))
            y += x
            return self.act(y)

    model = torch.nn.Sequential(Block(), torch.nn.BatchNorm2d(C), torch.nn.ReLU(inplace=True))
    before = dict(model[0].norms[0].__dict__)
    expected = copy.deepcopy(model)(X)
    bncore.torch.convert(model, fuse=True, example=X, in_place=True)
    torch.testing.assert_close(model(X), expected)
    names, waiting = [], [model(X.clone().requires_grad_()).grad_fn]
    while waiting:
        node = waiting.pop()
        names.append(node.name())
        waiting += [one for one, _ in node.next_functions if one is not None]
    assert sum("KeepsOutput" in name for name in names) >= 2
    assert not any("Leaky" in name for name in names)
    bncore.torch.revert(model)
    assert model[0].norms[0].__dict__ == before


def test_frozen_layers_keep_no_input():
    """In evaluation dx depends on dy alone, where weight is frozen and no activation follows."""
    frozen = bncore.torch.BatchNorm2d(C).eval().requires_grad_(False)
    frozen.running_mean.normal_()
    for module, freed in ((frozen, True), (bncore.torch.BatchNorm2d(C).eval(), False)):
        x = X.clone().requires_grad_()
        inner = x * 1
        y = module(inner)
        with torch.no_grad():
            inner.zero_()  # PyTorch refuses backward if it was kept
        if freed:
            (dx,) = torch.autograd.grad(y, x, DY, create_graph=True)
            plain = torch.nn.BatchNorm2d(C).eval()
            plain.load_state_dict(module.state_dict())
            other = X.clone().requires_grad_()
            (exact,) = torch.autograd.grad(plain(other), other, DY)
            torch.testing.assert_close(dx, exact)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
