"""bncore.torch under torch.func's transforms and in forward mode, beside PyTorch's batch norm."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import bncore.torch

pytestmark = [
    pytest.mark.needs_torch,
    # PyTorch's own forward mode takes it to work out its formulas.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

C = 3
ACTIVATIONS = {None: lambda v: v, "leaky_relu": lambda v: nn.functional.leaky_relu(v, 0.2)}
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
FUSED = pytest.mark.parametrize("activation", ACTIVATIONS)


def values(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator)


def statistics(training, dtype=torch.float64):
    if training:
        return None, None
    return torch.linspace(-1, 1, C, dtype=dtype), torch.linspace(0.5, 2, C, dtype=dtype)


def own(training, activation):
    """Batch norm of x, weight, bias and residual; any but x may be None."""

    def batch_norm(x, weight=None, bias=None, residual=None):
        return bncore.torch.batch_norm(
            x, *statistics(training, x.dtype), weight, bias, training,
            activation=activation, negative_slope=0.2, residual=residual,
        )  # fmt: skip

    return batch_norm


def theirs(training, activation):
    def batch_norm(x, weight=None, bias=None, residual=None):
        y = nn.functional.batch_norm(x, *statistics(training, x.dtype), weight, bias, training)
        return ACTIVATIONS[activation](y if residual is None else y + residual)

    return batch_norm


def formula(training, activation):
    def batch_norm(x, weight, bias, residual):
        mean, var = statistics(training)
        if training:
            mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
        mean, var, weight, bias = (v[:, None] for v in (mean, var, weight, bias))
        y = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias + residual
        return ACTIVATIONS[activation](y)

    return batch_norm


def arguments(*batch, dtype=torch.float64):
    shapes = [(4, C, 2), (C,), (C,), (4, C, 2)]
    return tuple(values(*batch, *s, seed=i, dtype=dtype) for i, s in enumerate(shapes))


@TRAINING
@FUSED
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_forwards_backwards_and_batched(training, activation, count):
    given = [a.requires_grad_() for a in arguments()[:count]]
    batch_norm = own(training, activation)
    ways = {"check_batched_grad": True, "check_forward_ad": True}
    assert gradcheck(batch_norm, given, **ways, check_batched_forward_grad=True)
    assert gradgradcheck(batch_norm, given, check_fwd_over_rev=True, check_rev_over_rev=True)


@TRAINING
@FUSED
@pytest.mark.parametrize(
    "twice",
    [
        torch.func.hessian,
        lambda f, n: torch.func.jacrev(torch.func.jacfwd(f, n), n),
        lambda f, n: torch.func.jacrev(torch.func.jacrev(f, n), n),
        lambda f, n: torch.func.jacfwd(torch.func.jacfwd(f, n), n),
    ],
    ids=["hessian", "reverse forward", "reverse twice", "forward twice"],
)
def test_second_derivatives_are_those_of_the_formula(twice, training, activation):
    """PyTorch's batch norm is no standard here: in training its second derivatives are wrong."""
    given = arguments()

    def loss(batch_norm):
        return lambda *each: (batch_norm(*each) ** 3).sum()

    got = twice(loss(own(training, activation)), (0, 1, 2, 3))(*given)
    exact = torch.autograd.functional.hessian(loss(formula(training, activation)), given)
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@TRAINING
def test_forward_three_times(training):
    """And in three forward modes around reverse mode, with a mask, in 16 bits."""
    given = arguments()
    directions = tuple(torch.cos(one) for one in given)

    def pushed(f):
        return lambda *given: torch.func.jvp(f, given, directions[: len(given)])[1]

    def thrice(batch_norm):
        loss = torch.func.grad(lambda *given: (batch_norm(*given) ** 3).sum(), (0, 1, 2, 3))
        return pushed(pushed(pushed(batch_norm)))(*given), pushed(pushed(loss))(*given)

    got, want = (thrice(each(training, "leaky_relu")) for each in (own, formula))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    where = values(4, 1, 2, seed=9) > -0.5
    where[0] = True

    def masked(x, fill=None):
        return bncore.torch.batch_norm(
            x, *statistics(training, x.dtype), None, None, training, where=where, fill=fill
        )

    def kept(x):  # the same for a batch that has no other values
        return masked(torch.where(where, x, 0.0), 0.25)

    hole = torch.where(where, given[0], torch.nan)
    got = torch.func.jvp(pushed(lambda x: masked(x, 0.25)), (hole,), directions[:1])
    want = torch.func.jvp(pushed(kept), given[:1], directions[:1])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    x = given[0].bfloat16()
    short = torch.func.jvp(lambda x: torch.func.jvp(masked, (x,), (x,))[1], (x,), (x,))[1]
    assert short.dtype == torch.bfloat16


@TRAINING
def test_a_gradient_between_two_forward_modes_is_refused(training):
    """Its tangent would be wrong without a word; inside of both it is right."""

    def between(x):
        _, pull = torch.func.vjp(own(training, None), x)
        return torch.func.jacfwd(lambda dy: torch.func.jacfwd(lambda z: pull(dy * z)[0])(dy))(x)

    with pytest.raises(NotImplementedError, match="a gradient was computed before"):
        between(values(4, C))


@TRAINING
@FUSED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("in_dims", "out_dim"),
    [
        ((0, 0, 0, 0), 0),
        ((1, None, None, 0), 2),
        ((None, 0, 1, None), -1),
        ((None, None, None, 0), 1),
        ((-1, None, 0, None), 0),
    ],
    ids=str,
)
def test_vmap_is_a_loop(in_dims, out_dim, dtype, training, activation):
    """The same bits, and no warning that examples are computed one by one."""
    examples = 3
    one = arguments(dtype=dtype)
    many = arguments(examples, dtype=dtype)
    given = [
        a if d is None else b.movedim(0, d) for a, b, d in zip(one, many, in_dims, strict=True)
    ]
    batch_norm = own(training, activation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.func.vmap(batch_norm, in_dims, out_dim)(*given)
    for i in range(examples):
        example = (a if d is None else a.select(d, i) for a, d in zip(given, in_dims, strict=True))
        expected = batch_norm(*example)
        torch.testing.assert_close(got.select(out_dim, i), expected, rtol=0, atol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_of_examples_warn_of_nothing(order):
    batch_norm = own(True, "leaky_relu")
    derivative = lambda x: (batch_norm(x) ** 3).sum()  # noqa: E731
    for _ in range(order):
        previous = torch.func.grad(derivative)
        derivative = (lambda f: lambda x: (f(x) ** 2).sum())(previous)
    x, *_ = arguments(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.func.vmap(previous)(x)
    expected = torch.stack([previous(example) for example in x])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@TRAINING
def test_a_tangent_is_not_lost(training, grad):
    x, tangent = values(4, C), values(4, C, seed=1)
    found = []
    for kind in (own, theirs):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            y = kind(training, None)(forward_ad.make_dual(x, tangent))
            found.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tangent_of", ["x", "weight"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_refuse_what_they_would_lose(tangent_of, requires_grad):
    x, weight = values(4, C).requires_grad_(requires_grad), values(C)
    with forward_ad.dual_level():
        if tangent_of == "x":
            x = forward_ad.make_dual(x, values(4, C, seed=1))
        else:
            weight = forward_ad.make_dual(weight, values(C, seed=1))
        with pytest.raises(NotImplementedError, match="forward mode"):
            rest = (*[None] * 4, 1e-5, None, 0.0, "propagate", None)
            torch.ops.bncore.batch_norm_train(x, weight, *rest)


def test_modules_are_functions_of_their_parameters():
    own_layer = bncore.torch.BatchNorm2d(C).double()
    their_layer = copy.deepcopy(own_layer)
    bncore.torch.revert(their_layer)
    x = values(4, C, 2, 2)

    def gradients(layer):
        def loss(parameters):
            buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
            y = torch.func.functional_call(layer, (parameters, buffers), (x,))
            return (y**3).sum(), buffers["running_var"]

        return torch.func.grad(loss, has_aux=True)(dict(layer.named_parameters()))

    torch.testing.assert_close(gradients(own_layer), gradients(their_layer), rtol=1e-9, atol=1e-9)


def stepped(layers, x):
    """Layers as one, each with its own batch: y, and their buffers."""
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0])

    def one(parameters, buffers, x):
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    return torch.func.vmap(one)(parameters, buffers, x), buffers


def test_an_ensemble_of_modules():
    """Several layers train at once, as PyTorch's documentation shows: each as it would alone."""
    layers = [bncore.torch.BatchNorm2d(C, dtype=torch.float64) for _ in range(3)]
    for i, layer in enumerate(layers):
        torch.nn.init.constant_(layer.weight, i + 0.5)
    x = values(3, 4, C, 2, 2)
    y, buffers = stepped(layers, x)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(y[i], layer(x[i]), rtol=0, atol=0)
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer, rtol=0, atol=0)


def test_running_statistics_of_several_examples_are_refused():
    layer = bncore.torch.BatchNorm2d(C, dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"running_mean or running_var.* were not batched"):
        torch.func.vmap(layer)(values(3, 4, C, 2, 2))
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["channels", "strided"])
def test_running_statistics_are_mapped_along_any_axis(layout):
    mean, var = (values(C, 3, seed=i).square() for i in (1, 2))
    if layout == "strided":
        mean, var = (torch.stack([v, v], -1)[..., 0] for v in (mean, var))
    x, *expected = values(3, 4, C), mean.clone(), var.clone()

    def moved(x, mean, var):
        return bncore.torch.batch_norm(x, mean, var, training=True)

    torch.func.vmap(moved, (0, 1, 1))(x, mean, var)
    for i in range(3):
        bncore.torch.batch_norm(x[i], *(v[:, i] for v in expected), training=True)
    torch.testing.assert_close((mean, var), tuple(expected), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["BatchNorm2d", "BatchNormReLU"])
def test_statistics_that_move_before_backward(kind):
    """Backward of a batch in evaluation takes the statistics that it was normalized by."""
    layer = getattr(bncore.torch, kind)(C).double().eval()
    x = values(4, C, 2, 2).requires_grad_()
    expected = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    y = layer(x)
    layer.train()(x.detach() * 3 + 1)
    got = torch.autograd.grad(y.sum(), (x, layer.weight))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
