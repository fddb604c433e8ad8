"""Group, instance and layer norm of bncore.torch beside PyTorch's own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

import bncore
import bncore.torch as bt
import tolerances

pytestmark = pytest.mark.needs_torch


CHANNELS_LAST = torch.channels_last
SHAPES = [(3, 6, 5, 7), (2, 6, 9), (4, 6), (2, 6, 3, 4, 5), (1, 6, 1, 8), (5, 6, 1, 1)]


def close(got, want, dtype=torch.float32):
    """Compare with results in float64, relative to the largest value."""
    step = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
    assert got.shape == want.shape and got.dtype == dtype
    size = max(1.0, float(want.detach().abs().max()))
    assert float((got.detach().double() - want.detach()).abs().max()) <= step[dtype] * size


def make(shape, channels, dtype=torch.float32, affine=True):
    torch.manual_seed(3)
    x = (torch.randn(shape) + 1.0).to(dtype).requires_grad_()
    if not affine:
        return x, None, None
    weight, bias = (torch.randn(channels).to(dtype).requires_grad_() for _ in range(2))
    return x, weight, bias


def compare(own, theirs, given, dtype=torch.float32):
    """Compare y and the gradients with PyTorch's function in float64."""
    exact = [None if g is None else g.detach().double().requires_grad_() for g in given]
    y, want = own(*given), theirs(*exact)
    close(y, want, dtype)
    dy = torch.randn(y.shape).to(dtype)
    inputs = [g for g in given if g is not None]
    got = torch.autograd.grad(y, inputs, dy)
    expected = torch.autograd.grad(want, [g for g in exact if g is not None], dy.double())
    for one, other, input in zip(got, expected, inputs, strict=True):
        close(one, other, input.dtype)
        assert one.shape == input.shape
    return y


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_norm(shape, groups, affine):
    given = make(shape, 6, affine=affine)
    if groups == 6 and np.prod(shape[2:]) == 1:
        return  # one value per group, which the next test compares
    y = compare(
        lambda x, w, b: bt.group_norm(x, groups, w, b, 1e-3),
        lambda x, w, b: functional.group_norm(x, groups, w, b, 1e-3),
        given,
    )
    assert "bncore" in str(y.grad_fn) or "GroupNorm" in y.grad_fn.name()


def test_groups_of_one_value_have_pytorchs_result():
    x, w, b = make((4, 6), 6)
    close(bt.group_norm(x, 6, w, b), functional.group_norm(x.double(), 6, w.double(), b.double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    given = make((3, 6, 5, 7), 6, dtype)
    compare(
        lambda x, w, b: bt.group_norm(x, 3, w, b),
        lambda x, w, b: functional.group_norm(x, 3, w, b),
        given,
        dtype,
    )
    x, w, b = make((7, 33), 33, dtype)
    compare(
        lambda x, w, b: bt.layer_norm(x, (33,), w, b),
        lambda x, w, b: functional.layer_norm(x, (33,), w, b),
        (x, w, b),
        dtype,
    )


def test_float32_parameters_of_16_bit_data():
    x, w, b = make((3, 6, 5), 6)
    half = x.detach().bfloat16().requires_grad_()
    y = compare(
        lambda x, w, b: bt.group_norm(x, 3, w, b),
        lambda x, w, b: functional.group_norm(x, 3, w, b),
        (half, w, b),
        torch.bfloat16,
    )
    assert y.dtype == functional.group_norm(half, 3, w, b).dtype


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize(("shape", "first"), [((7, 33), 1), ((2, 5, 96), 2), ((3, 4, 5, 6), 2)])
def test_layer_norm(shape, first, affine):
    normalized = shape[first:]
    y = compare(
        lambda x, w, b: bt.layer_norm(x, normalized, w, b, 1e-3),
        lambda x, w, b: functional.layer_norm(x, normalized, w, b, 1e-3),
        make(shape, normalized, affine=affine),
    )
    assert y.is_contiguous()


@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (2, 6, 9), (2, 6, 3, 4, 5)], ids=str)
def test_instance_norm(shape):
    compare(
        lambda x, w, b: bt.instance_norm(x, None, None, w, b),
        lambda x, w, b: functional.instance_norm(x, None, None, w, b),
        make(shape, 6),
    )


@pytest.mark.parametrize("kind", ["group", "instance"])
def test_channels_last_stays(kind):
    x, w, b = make((3, 6, 5, 7), 6)
    last = x.detach().contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    call = (
        (lambda x: bt.group_norm(x, 3, w, b))
        if kind == "group"
        else (lambda x: bt.instance_norm(x, None, None, w, b))
    )
    y = call(last)
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    (dx,) = torch.autograd.grad(y.sum() + (y * y).sum(), last)
    assert dx.is_contiguous(memory_format=CHANNELS_LAST)
    z = call(x)
    close(y.detach(), z.detach().double())
    close(dx, torch.autograd.grad(z.sum() + (z * z).sum(), x)[0].double())


def test_the_bits_are_those_of_the_functions():
    x, w, b = make((3, 6, 5, 7), 6)
    y = bt.group_norm(x, 3, w, b)
    want, moments = bncore.group_norm(
        *(t.detach().numpy() for t in (x,)), 3, w.detach().numpy(), b.detach().numpy()
    )
    assert np.array_equal(y.detach().numpy(), want)
    dy = torch.randn(y.shape)
    got = torch.autograd.grad(y, (x, w, b), dy)
    expected = bncore.group_norm_backward(
        dy.numpy(), x.detach().numpy(), moments, 3, w.detach().numpy()
    )
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one.numpy(), other)


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed", "expanded"])
def test_other_memory(layout):
    x = {
        "contiguous": torch.randn(4, 6, 5, 8),
        "sliced": torch.randn(4, 6, 5, 16)[..., ::2],
        "transposed": torch.randn(8, 5, 6, 4).permute(3, 2, 1, 0),
        "expanded": torch.randn(4, 6, 1, 8).expand(4, 6, 5, 8),
    }[layout]
    want = functional.group_norm(x.double(), 2)
    y = bt.group_norm(x, 2)
    close(y, want)
    assert y.stride() == functional.group_norm(x, 2).stride()
    close(bt.layer_norm(x, (5, 8)), functional.layer_norm(x.double(), (5, 8)))


def test_gradients_of_gradients():
    x, w, b = (t.detach().double().requires_grad_() for t in make((2, 4, 3), 4))
    assert torch.autograd.gradcheck(lambda *a: bt.group_norm(a[0], 2, *a[1:], 0.1), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda *a: bt.group_norm(a[0], 2, *a[1:], 0.1), (x, w, b))
    x, w, b = (t.detach().double().requires_grad_() for t in make((3, 4), 4))
    assert torch.autograd.gradgradcheck(
        lambda *a: bt.layer_norm(a[0], (4,), *a[1:], 0.1), (x, w, b)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_transforms_and_modes_take_pytorchs_function_or_the_operator():
    x, w, b = (t.detach() for t in make((3, 6, 5), 6))
    per_example = torch.func.vmap(lambda one: bt.group_norm(one[None], 3, w, b)[0])(x)
    close(per_example, functional.group_norm(x.double(), 3, w.double(), b.double()))
    tangent = torch.func.jvp(lambda x: bt.layer_norm(x, (5,)), (x,), (torch.ones_like(x),))[1]
    assert float(tangent.abs().max()) < 1e-4
    gradient = torch.func.grad(lambda x: (bt.group_norm(x, 2) ** 3).sum())(x)
    leaf = x.clone().requires_grad_()
    (bt.group_norm(leaf, 2) ** 3).sum().backward()
    close(gradient, leaf.grad.double())


def test_compiled():
    x, w, b = make((3, 6, 5, 7), 6)

    def step(x, w, b):
        y = bt.group_norm(x, 3, w, b)
        return bt.layer_norm(y, (7,)).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for one, other in zip(
        torch.autograd.grad(compiled(x, w, b), (x, w, b)),
        torch.autograd.grad(step(x, w, b), (x, w, b)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    explained = torch._dynamo.explain(step)(x, w, b)
    assert "bncore" in str(explained.graphs[0].graph) and explained.graph_break_count == 0


def test_opcheck():
    from bncore.torch import group_ops

    x, w, b = make((3, 6, 5), 6)
    for one in (x, x.detach()[:, :, :1].expand(3, 6, 4)):
        torch.library.opcheck(group_ops.forward_op, (one, 3, w, b, 1e-5))


def test_in_place_and_checkpoints():
    x, w, b = make((3, 6, 5), 6)
    y = torch.relu_(bt.layer_norm(x, (5,)))
    want = torch.relu(functional.layer_norm(x, (5,)))
    close(y.detach(), want.detach().double())
    got = torch.autograd.grad(y.sum(), x)[0]
    close(got, torch.autograd.grad(want.sum(), x)[0].double())
    again = torch.utils.checkpoint.checkpoint(
        lambda x: bt.group_norm(x, 3, w, b), x, use_reentrant=False
    )
    close(
        torch.autograd.grad(again.sum(), w)[0],
        torch.autograd.grad(bt.group_norm(x, 3, w, b).sum(), w)[0].double(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_autocast_gives_pytorchs_dtypes(kind, dtype):
    x = torch.randn(2, 4, 6).to(dtype)
    calls = {
        "group": lambda library: library.group_norm(x, 2),
        "layer": lambda library: library.layer_norm(x, (6,)),
        "instance": lambda library: library.instance_norm(x),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert calls[kind](bt).dtype == calls[kind](functional).dtype


ERRORS = [
    lambda lib: lib.group_norm(torch.ones(2, 4, 3), 3),
    lambda lib: lib.group_norm(torch.ones(1, 4), 4),
    lambda lib: lib.group_norm(torch.ones(2, 4, 3), 2, torch.ones(3)),
    lambda lib: lib.group_norm(torch.ones(2, 4, 3, dtype=torch.int64), 2),
    lambda lib: lib.group_norm(torch.ones(2, 4, 3), 2, torch.ones(4, dtype=torch.float64)),
    lambda lib: lib.layer_norm(torch.ones(2, 4), (3,)),
    lambda lib: lib.layer_norm(torch.ones(2, 4), (4,), torch.ones(3)),
    lambda lib: lib.layer_norm(torch.ones(2, 4), ()),
    lambda lib: lib.instance_norm(torch.ones(2, 4, 1)),
    lambda lib: lib.instance_norm(torch.ones(2, 4, 3), torch.ones(4), None, use_input_stats=False),
]


@pytest.mark.parametrize("call", ERRORS, ids=range(len(ERRORS)))
def test_errors_are_pytorchs(call):
    with pytest.raises(Exception) as want:
        call(functional)
    with pytest.raises(type(want.value)) as got:
        call(bt)
    assert str(got.value) == str(want.value)


LAYERS = [
    (lambda lib: lib.GroupNorm(3, 6), (2, 6, 5)),
    (lambda lib: lib.GroupNorm(3, 6, affine=False), (2, 6, 5, 4)),
    (lambda lib: lib.LayerNorm(5), (2, 6, 5)),
    (lambda lib: lib.LayerNorm((6, 5), bias=False), (2, 6, 5)),
    (lambda lib: lib.InstanceNorm1d(6, affine=True), (2, 6, 5)),
    (lambda lib: lib.InstanceNorm1d(6), (6, 5)),
    (lambda lib: lib.InstanceNorm2d(6), (2, 6, 5, 4)),
    (lambda lib: lib.InstanceNorm3d(6, affine=True), (2, 6, 5, 4, 3)),
    (lambda lib: lib.InstanceNorm2d(6, track_running_stats=True), (2, 6, 5, 4)),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(("build", "shape"), LAYERS, ids=range(len(LAYERS)))
def test_converted_layers_keep_everything(build, shape):
    layer = build(torch.nn)
    model = torch.nn.Sequential(layer)
    for one in layer.parameters():
        torch.nn.init.normal_(one)
    x = torch.randn(shape)
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="converted with norms=True alone"):
        assert bt.convert(model) is model
    assert type(model[0]) is type(layer)
    assert bt.convert(model, norms=True)[0] is layer
    assert type(layer).__module__.startswith("bncore.torch") and "bncore.torch" in repr(layer)
    assert model.state_dict().keys() == before.state_dict().keys()
    for training in (True, False):
        model.train(training), before.train(training)
        close(model(x).detach(), before(x).detach().double())
        for name, one in model.state_dict().items():
            close(
                one, before.state_dict()[name].double(), one.dtype
            ) if one.is_floating_point() else None
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied[0]) is type(layer)
        assert torch.equal(copied(x), model(x))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    assert torch.equal(torch.jit.script(model)(x), bt.revert(copy.deepcopy(model))(x))
    assert type(bt.revert(model)[0]) is type(before[0])


def test_a_subclass_and_its_own_forward():
    class Own(torch.nn.LayerNorm):
        pass

    class Other(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) + 1

    model = torch.nn.ModuleList([Own(4), Other(4)])
    bt.convert(model, norms=True)
    assert isinstance(model[0], bt.LayerNorm) and isinstance(model[0], Own)
    assert type(model[1]) is Other
    assert "has a forward of its own" in str(bt.report(model))
    assert type(bt.revert(model)[0]) is Own


def test_y_is_within_the_bound_of_the_contract():
    x = torch.randn(512, 768) + 100.0
    w, b = torch.randn(768), torch.randn(768)
    wide = x.numpy().astype(np.longdouble)
    center = wide - wide.mean(1, keepdims=True)
    xhat = center / np.sqrt((center**2).mean(1, keepdims=True) + np.longdouble(1e-5))
    want = xhat * w.numpy() + b.numpy()
    size = np.abs(xhat * w.numpy()) + np.abs(b.numpy())
    error = np.abs(bt.layer_norm(x, (768,), w, b).numpy() - want) / np.spacing(
        size.astype(np.float32)
    )
    assert error.max() <= tolerances.FORWARD_ULP
