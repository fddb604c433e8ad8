"""What counts in bncore.torch: bits of the NumPy functions, and exact gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import bncore
import bncore.torch
import tolerances
import weight_cases
from bncore.torch import BatchNorm1d, BatchNormAddReLU

pytestmark = [
    pytest.mark.needs_torch,
    # PyTorch's own forward mode takes it to work out its formulas.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

C = 3
SHAPE = (4, C, 5, 2)
LAST = torch.channels_last
FIRST = torch.contiguous_format


def numpy(tensor):
    return None if tensor is None else tensor.detach().numpy()


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def counts(rng, kind, shape=SHAPE):
    """Arguments for NumPy's functions and for bncore.torch, by the name of a kind."""
    if kind == "omit":
        given = {"nan_policy": "omit"}
    else:
        given = weight_cases.KINDS[kind](rng, shape).given()
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    return given, tensors


KINDS = [*weight_cases.KINDS, "omit"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)
def test_training_gives_the_bits_of_numpy(way, rng, kind, memory_format):
    """Forward, every gradient and the running statistics, with everything fused, and with fill."""
    given, tensors = counts(rng, kind)
    x, dy, residual = (
        random(*SHAPE, seed=i, dtype=torch.float32).to(memory_format=memory_format)
        for i in range(3)
    )
    if kind == "omit":
        x[0, :, 1], x[2, 1, 0] = torch.nan, torch.nan
    weight, bias = random(C, seed=3), random(C, seed=4)
    for fill, activation in ((None, None), (0.5, "leaky_relu")):
        fused = {"activation": activation, "negative_slope": 0.1, "fill": fill}
        arrays = {"residual": numpy(residual), **fused, **given}
        y, moments = bncore.batch_norm_train(*map(numpy, (x, weight, bias)), **arrays)
        dresidual = np.empty_like(y)
        gradients = bncore.batch_norm_train_backward(
            numpy(dy), numpy(x), moments, numpy(weight), bias=numpy(bias), dresidual=dresidual,
            **arrays,
        )  # fmt: skip
        running = np.zeros(C), np.ones(C)
        bncore.update_running_stats(*running, moments, momentum=0.3)

        leaves = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
        mean, var = torch.zeros(C).double(), torch.ones(C).double()
        got = bncore.torch.batch_norm(
            leaves[0], mean, var, *leaves[1:3], True, 0.3, residual=leaves[3], **fused, **tensors
        )
        assert ("BatchNormBackward" in str(got.grad_fn.name())) == (way == "compiled")
        results = [got, *torch.autograd.grad(got, leaves, dy), mean, var]
        assert got.is_contiguous(memory_format=memory_format)
        expected = (y, *gradients, dresidual, *running)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(numpy(a), b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["shared_mask", "both", "omit"])
def test_16_bits_give_the_bits_of_numpy(way, rng, kind, dtype):
    given, tensors = counts(rng, kind)
    x, dy = random(*SHAPE, dtype=dtype), random(*SHAPE, seed=1, dtype=dtype)
    if kind == "omit":
        x[1, 2] = torch.nan
    arrays = [bncore.torch.memory.array(t) for t in (x, dy)]
    y, moments = bncore.batch_norm_train(arrays[0], fill=-1.0, **given)
    expected = bncore.batch_norm_train_backward(arrays[1], arrays[0], moments, fill=-1.0, **given)
    x.requires_grad_()
    weight = torch.ones(C).requires_grad_()
    got = bncore.torch.batch_norm(x, None, None, weight, training=True, fill=-1.0, **tensors)
    dx, dweight = torch.autograd.grad(got, (x, weight), dy)
    assert torch.equal(got, bncore.torch.memory.tensor_of(y))
    assert torch.equal(dx, bncore.torch.memory.tensor_of(expected[0]))
    np.testing.assert_array_equal(numpy(dweight), expected[1])


@pytest.mark.parametrize("kind", ["shared_mask", "full_weights"])
def test_evaluation_gives_the_bits_of_numpy(way, rng, kind):
    given, tensors = counts(rng, kind)
    x, dy = random(*SHAPE), random(*SHAPE, seed=1)
    mean, var, weight = random(C, seed=2), random(C, seed=3).abs(), random(C, seed=4)
    for fill in (None, 7.0):
        arrays = {"fill": fill, **given}
        statistics = numpy(mean), numpy(var)
        y = bncore.batch_norm_infer(numpy(x), *statistics, numpy(weight), **arrays)
        expected = bncore.batch_norm_infer_backward(
            numpy(dy), numpy(x), *statistics, numpy(weight), **arrays
        )
        leaf, factor = x.clone().requires_grad_(), weight.clone().requires_grad_()
        got = bncore.torch.batch_norm(leaf, mean, var, factor, fill=fill, **tensors)
        gradients = torch.autograd.grad(got, (leaf, factor), dy)
        for a, b in zip((got, *gradients), (y, *expected[:2]), strict=True):
            np.testing.assert_array_equal(numpy(a), b)


@pytest.mark.parametrize("trains", ["factor", "nothing"])
def test_evaluation_fills_the_gradient_where_nan_is_omitted(way, rng, trains):
    x, dy, factor = random(*SHAPE), random(*SHAPE, seed=1), random(C, seed=2)
    x[1, 2, 0], x[0, 1] = torch.nan, torch.nan
    given = {"fill": 0.5, "nan_policy": "omit"}
    zeros, ones = torch.zeros(C), torch.ones(C)
    expected = bncore.batch_norm_infer_backward(*map(numpy, (dy, x, zeros, ones, factor)), **given)
    leaf = x.clone().requires_grad_()
    factor.requires_grad_(trains == "factor")
    got = bncore.torch.batch_norm(leaf, zeros, ones, factor, **given)
    dx = torch.autograd.grad(got, leaf, dy)[0]
    np.testing.assert_array_equal(numpy(dx), expected[0])
    assert not dx[torch.isnan(x)].any()


# Gradients


def plain(x, weight, bias, w, *, eps=1e-5, fill=None):
    """The formula in PyTorch's own operations, with the weight of every value."""
    w = w.expand(x.shape)
    axes = [i for i in range(x.dim()) if i != 1]
    number = w.sum(axes, keepdim=True)
    x = torch.where(w == 0, 0.0, x) if fill is not None else x
    mean = (w * x).sum(axes, keepdim=True) / number
    var = (w * (x - mean) ** 2).sum(axes, keepdim=True) / number
    column = (1, -1) + (1,) * (x.dim() - 2)
    y = (x - mean) / torch.sqrt(var + eps) * weight.reshape(column) + bias.reshape(column)
    return y if fill is None else torch.where(w == 0, fill, y)


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("kind", weight_cases.KINDS)
def test_gradients_are_those_of_the_formula(way, rng, kind, fill):
    """PyTorch differentiates the plain formula in float64."""
    w = torch.from_numpy(weight_cases.KINDS[kind](np.random.default_rng(1), SHAPE).w)
    tensors = counts(np.random.default_rng(1), kind)[1]
    layer = bncore.torch.BatchNorm2d(C, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(random(C, seed=1))
        layer.bias.copy_(random(C, seed=2))
    leaves = [random(*SHAPE).requires_grad_(), layer.weight, layer.bias]
    dy = random(*SHAPE, seed=3)
    expected = torch.autograd.grad(plain(*leaves, w, fill=fill), leaves, dy)
    found = torch.autograd.grad(layer(leaves[0], **tensors, fill=fill), leaves, dy)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.WEIGHTED * float(b.abs().max()))


def function(tensors, training, activation, fill):
    statistics = (None, None) if training else (random(C, seed=8), random(C, seed=9).abs())

    def batch_norm(x, weight, bias, residual):
        return bncore.torch.batch_norm(
            x, *statistics, weight, bias, training, activation=activation, negative_slope=0.2,
            residual=residual, fill=fill, **tensors,
        )  # fmt: skip

    return batch_norm


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("kind", "activation", "fill"),
    [("both", None, None), ("shared_mask", "leaky_relu", 0.5), ("full_weights", "relu", None)],
)
def test_gradients_of_gradients_and_tangents(rng, kind, activation, fill, training):
    shape = (4, C, 2)
    batch_norm = function(counts(rng, kind, shape)[1], training, activation, fill)
    arguments = [random(*shape), random(C, seed=1), random(C, seed=2), random(*shape, seed=3)]
    arguments = [one.requires_grad_() for one in arguments]
    assert gradcheck(batch_norm, arguments)
    assert gradgradcheck(batch_norm, arguments)
    assert gradcheck(
        batch_norm, arguments, check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


def test_a_tangent_of_a_gradient(rng):
    """Forward over reverse is reverse over reverse."""
    shape = (4, C, 2)
    batch_norm = function(counts(rng, "both", shape)[1], True, "leaky_relu", 0.5)
    rest = random(C, seed=1), random(C, seed=2), random(*shape, seed=3)

    def loss(x):
        return (batch_norm(x, *rest) ** 3).sum()

    x = random(*shape)
    there = torch.func.jacfwd(torch.func.grad(loss))(x)
    back = torch.func.jacrev(torch.func.grad(loss))(x)
    torch.testing.assert_close(there, back)
    assert float(back.abs().max()) > 1.0


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e38])
def test_garbage_reaches_no_result(way, fill, garbage):
    """Second gradients included, where the loss does not depend on y under the mask."""
    x, weight = random(4, C, 5, dtype=torch.float32), random(C, seed=1, dtype=torch.float32)
    where = (torch.arange(5) < torch.tensor([5, 3, 4, 2])[:, None]).unsqueeze(1)

    def results(x):
        layer = BatchNorm1d(C)
        leaves = x.requires_grad_(), weight.clone().requires_grad_()
        with torch.no_grad():
            layer.weight.copy_(weight)
        y = torch.where(where, layer(leaves[0], where, fill=fill), 0.0)
        first = torch.autograd.grad((y**3).sum(), (leaves[0], layer.weight), create_graph=True)
        second = torch.autograd.grad((first[0] ** 2).sum(), (leaves[0], layer.weight))
        return [y, *first, *second, layer.running_mean, layer.running_var]

    dirty = torch.where(where, x, garbage)
    for clean, found in zip(results(x), results(dirty), strict=True):
        clean, found = (torch.where(where, t, 0.0) if t.dim() == 3 else t for t in (clean, found))
        assert torch.equal(clean, found)
        assert clean.isfinite().all()


def test_ones_are_no_weights(way):
    x, dy = random(*SHAPE, dtype=torch.float32).requires_grad_(), random(*SHAPE, seed=1).float()
    given = [
        {},
        {"where": torch.ones(4, 1, 5, 2, dtype=torch.bool)},
        {"where": torch.tensor(True)},
        {"weights": torch.ones(SHAPE)},
        {"weights": torch.ones(2, dtype=torch.int16)},
        {"nan_policy": "omit", "fill": 3.0},
    ]
    found = []
    for one in given:
        y = bncore.torch.batch_norm(x, None, None, training=True, **one)
        found.append([y, *torch.autograd.grad(y, x, dy)])
    for a, b in zip(itertools.chain(*found[1:]), itertools.cycle(found[0])):
        assert torch.equal(a, b)


# vmap and the compiler


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_vmap(in_dims, per_channel):
    examples, shape = 2, (4, C, 5)
    mask_shape = (4, C if per_channel else 1, 5)
    xs, masks = random(examples, *shape), random(examples, *mask_shape, seed=1) > -0.7

    def gradient(x, where):
        def loss(x):
            y = bncore.torch.batch_norm(x, None, None, training=True, where=where, fill=0.5)
            return (y**3).sum(), y

        return torch.func.grad(loss, has_aux=True)(x)

    dims = [None if dim is None else dim for dim in in_dims]
    given = [
        one[0] if dim is None else one.movedim(0, dim)
        for one, dim in zip((xs, masks), dims, strict=True)
    ]
    found = torch.func.vmap(gradient, in_dims)(*given)
    for i in range(examples):
        pair = [one[0 if dim is None else i] for one, dim in zip((xs, masks), dims, strict=True)]
        for a, b in zip(found, gradient(*pair), strict=True):
            torch.testing.assert_close(a[i], b, rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_the_compiler_keeps_one_graph():
    layer = BatchNormAddReLU(C)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, residual = random(4, C, 5, dtype=torch.float32), random(4, C, 5, seed=1).float()
    weights = random(4, 1, 5, seed=2).abs()
    where = weights > 0.4
    found = []
    for module in (layer, compiled):
        layer.reset_running_stats()
        leaf = x.clone().requires_grad_()
        y = module(leaf, residual, where, weights, fill=0.25)
        y.square().sum().backward()
        found.append([y, leaf.grad, layer.running_mean.clone(), layer.running_var.clone()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"weights: expected finite numbers >= 0, got -"):
        compiled(x, residual, where, -weights, fill=0.25)
