"""bncore.torch with data of 16 bits, and with parameters whose dtype is not that of the data."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import bncore.torch
import tolerances
from bncore.torch import BatchNorm2d, BatchNormAddReLU, compiled, dtypes, memory, ops

pytestmark = [
    pytest.mark.needs_torch,
    # PyTorch's own forward mode takes it to work out its formulas.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

C = 5
SHAPE = (4, C, 6, 3)
SHORT = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=str
)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def values(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def ulp(size, dtype):
    """The spacing of a dtype at |size|."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(size.abs().double().clamp(min=info.smallest_normal))
    return info.eps * 2.0 ** (exponent - 1).double()


def require_rounded_once(got, exact, scale, gate):
    """Half an ulp of the short dtype, and `gate` ulp of float32 at `scale`."""
    assert got.isfinite().all()
    single = gate * ulp(scale, torch.float32)
    excess = (got.double() - exact).abs() - 0.5 * ulp(exact, got.dtype) - single
    assert float(excess.detach().max()) <= 0.0


# Values


@SHORT
@FORMATS
@TRAINING
def test_results_are_exact_ones_rounded_once(dtype, memory_format, training):
    """Against PyTorch's float64 arithmetic on the values that were stored."""
    offsets = torch.linspace(3, 300, C).view(1, C, 1, 1)  # mean/std from 1 to 100
    leaves = [values(*SHAPE) * 3 + offsets, values(C, seed=1), values(C, seed=2)]
    x, weight, bias = leaves = [t.to(dtype) if t.dim() > 1 else t for t in leaves]
    leaves[0] = x = x.to(memory_format=memory_format)
    dy = values(*SHAPE, seed=3, dtype=dtype)
    statistics = (torch.linspace(4, 301, C), torch.ones(C) * 9)
    results = []
    for function, wide in ((bncore.torch.batch_norm, False), (nn.functional.batch_norm, True)):
        given = [(t.double() if wide else t).clone().requires_grad_() for t in leaves]
        mean, var = (s.double() if wide else s.clone() for s in statistics)
        y = function(given[0], mean, var, given[1], given[2], training)
        dx = torch.autograd.grad(y, given[0], dy.to(y.dtype), retain_graph=True)[0]
        results.append((y, dx, *torch.autograd.grad(y, given[1:], dy.to(y.dtype)), mean, var))
    got, exact = results
    assert [t.dtype for t in got] == [dtype, dtype, *[torch.float32] * 4]
    for t in got[:2]:
        assert t.is_contiguous(memory_format=memory_format)
    size = (1, C, 1, 1)
    y_scale = (exact[0] - bias.view(size)).abs() + bias.view(size).abs()
    require_rounded_once(got[0], exact[0], y_scale, tolerances.FORWARD_ULP)
    invstd = 1.0 / x.double().std((0, 2, 3), keepdim=True) if training else 1.0 / 3.0
    dx_scale = weight.abs().view(size) * invstd * dy.double().abs()
    require_rounded_once(got[1], exact[1], dx_scale, tolerances.GRADIENT_ULP)
    for a, b in zip(got[2:], exact[2:], strict=True):
        torch.testing.assert_close(a, b.float())


@SHORT
def test_the_mask_of_relu_is_that_of_the_value_before_its_rounding(dtype):
    """z that rounds to 0 passes its gradient on where it is positive, and only there."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 8
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).to(dtype)
    layer = bncore.torch.BatchNormReLU(1).eval()
    with torch.no_grad():
        layer.weight.fill_(tiny)
    x.requires_grad_()
    y = layer(x)
    assert (y == 0).all()
    (dbias,) = torch.autograd.grad(y, layer.bias, torch.ones_like(y))
    assert dbias.item() == 2.0


@pytest.mark.parametrize("way", ["compiled", "python"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_statistics_are_rounded_once_from_float64(way, dtype):
    """Not to float32 first, which would round a value just above a halfway case down to even."""
    eps = torch.finfo(dtype).eps
    limit = torch.finfo(dtype).max
    exact = [1 + eps / 2, 1 + eps / 2 + 2**-40, 1 + 3 * eps / 2 - 2**-40, -1 - eps / 2 - 2**-40]
    nearest = [1.0, 1 + eps, 1 + eps, -1 - eps]
    half = torch.finfo(dtype).smallest_normal * eps / 2  # of the smallest subnormal number
    exact += [half, half * (1 + 2**-30), half * (1 - 2**-30), limit, limit * (1 + eps), 1e300]
    nearest += [0.0, 2 * half, 0.0, limit, float("inf"), float("inf")]
    moments = torch.tensor([[2.0] * len(exact), exact, [0.0] * len(exact)], dtype=torch.float64)
    mean, var = (torch.zeros(len(exact), dtype=dtype) for _ in range(2))
    if way == "compiled":
        if compiled.adapter is None:
            pytest.skip("the compiled part of bncore.torch is missing")
        ops.update_op(mean, var, moments, 1.0)
    else:
        ops.update_running_stats_(mean, var, moments, 1.0)
    assert mean.double().tolist() == nearest


# Dtypes


@pytest.mark.parametrize("way", ["operators", "module"])
@pytest.mark.parametrize("weight", [None, *dtypes.ARITHMETIC], ids=str)
@pytest.mark.parametrize("x", dtypes.ARITHMETIC, ids=str)
def test_parameters_may_have_any_dtype(way, x, weight):
    """Their gradients have their dtypes; the values are those of float64 parameters, rounded."""
    tensor = values(*SHAPE, dtype=x)
    parameters = None, None
    if weight is not None:
        parameters = (values(C, seed=i, dtype=weight).requires_grad_() for i in (1, 2))
    gamma, beta = parameters
    statistics = [torch.full((C,), 0.5, dtype=torch.bfloat16), torch.ones(C, dtype=torch.float16)]
    fused = None, None, None, 1e-5, None, 0.0, "propagate", None
    for training in (True, False):
        if way == "module":
            y = bncore.torch.batch_norm(tensor, *statistics, gamma, beta, training)
        elif training:
            y, _ = ops.train_op(tensor, gamma, beta, *fused)
        else:
            y = ops.infer_op(tensor, *statistics, gamma, beta, *fused)
        wide = [None if p is None else p.detach().double() for p in (gamma, beta)]
        expected = bncore.torch.batch_norm(
            tensor, *(s.double() for s in statistics), *wide, training
        )
        assert y.dtype is x
        assert torch.equal(y, expected)
        if weight is None:
            continue
        dweight, dbias = torch.autograd.grad(y, (gamma, beta), torch.ones_like(y))
        assert dweight.dtype is dbias.dtype is weight
        assert (dbias == SHAPE[0] * SHAPE[2] * SHAPE[3]).all()
    assert [s.dtype for s in statistics] == [torch.bfloat16, torch.float16]


@SHORT
def test_gradients_without_a_weight_are_float32(dtype):
    x, dy = values(*SHAPE, dtype=dtype), values(*SHAPE, seed=1, dtype=dtype)
    rest = (*[None] * 5, 1e-5, None, 0.0, "propagate", None)
    moments = ops.batch_norm_train(x, *rest)[1]
    rest = (*rest, False)
    for call in (ops.train_backward_op, ops.batch_norm_train_backward):
        dx, dweight, dbias, _ = call(dy, x, moments, *rest)
        assert [t.dtype for t in (dx, dweight, dbias)] == [dtype, torch.float32, torch.float32]
    meta = [t.to("meta") for t in (dy, x, moments)]
    shapes = ops.train_backward_op(*meta, *rest)
    assert [t.dtype for t in shapes[:3]] == [dtype, torch.float32, torch.float32]


@SHORT
def test_views_and_empty_batches(dtype):
    x = values(4, C, 6, 4, dtype=dtype)
    for view in (x[:, :, ::2], x.permute(2, 1, 3, 0), x[:1].expand(4, -1, -1, -1), x[:, :, 1:]):
        expected = bncore.torch.batch_norm(view.clone(), None, None, training=True)
        assert torch.equal(bncore.torch.batch_norm(view, None, None, training=True), expected)
    layer = BatchNormAddReLU(C, dtype=dtype)
    before = copy.deepcopy(layer.state_dict())
    empty = x[:0].clone().requires_grad_()
    y = layer(empty, x[:0])
    assert y.shape == empty.shape and y.dtype is dtype
    y.sum().backward()
    assert empty.grad.dtype is dtype and (layer.weight.grad == 0).all()
    assert torch.equal(layer.running_mean, before["running_mean"])


def test_memory_of_bfloat16_is_not_copied():
    x = values(2, C, 3, dtype=torch.bfloat16).requires_grad_()
    array = memory.array(x)
    assert array.ctypes.data == x.data_ptr() and array.shape == x.shape
    back = memory.tensor_of(array)
    assert back.data_ptr() == x.data_ptr() and back.dtype is torch.bfloat16


# Gradients of gradients, and transforms


def require_near(got, exact, dtype):
    """Compare with float64, relative to each tensor's largest value."""
    bound = tolerances.CHAINED_ULP * torch.finfo(dtype).eps
    for a, b in zip(got, exact, strict=True):
        a, b = a.detach().double(), b.detach()
        assert float((a - b).abs().max()) <= bound * float(b.abs().max())


def second(batch_norm, x, weight, bias, dy):
    """y, the first gradients, and the gradients of a function of these."""
    y = batch_norm(x, weight, bias)
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    loss = sum((g.double() ** 2).sum() for g in first)
    return (y, *first, *torch.autograd.grad(loss, (x, weight)))


@SHORT
@TRAINING
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_second_gradients_are_those_of_float64(dtype, training, activation):
    statistics = (None, None) if training else (torch.zeros(C), torch.ones(C))

    def batch_norm(x, weight, bias):
        given = statistics if x.dtype is dtype or training else (s.double() for s in statistics)
        return bncore.torch.batch_norm(x, *given, weight, bias, training, activation=activation)

    given = [values(*SHAPE, dtype=dtype), values(C, seed=1), values(C, seed=2)]
    dy = values(*SHAPE, seed=3, dtype=dtype)
    results = []
    for kind in (None, torch.float64):
        leaves = [t.to(kind or t.dtype).requires_grad_() for t in given]
        results.append(second(batch_norm, *leaves, dy.to(kind or dtype)))
    got, exact = results
    assert [t.dtype for t in got] == [dtype, dtype, *[torch.float32] * 2, dtype, torch.float32]
    require_near(got, exact, dtype)


@SHORT
@TRAINING
def test_transforms(dtype, training):
    """`grad`, `vmap` and forward mode: the dtypes of the arguments, the values of autograd."""
    statistics = (None, None) if training else (torch.zeros(C), torch.ones(C))

    def batch_norm(x, weight, bias):
        return bncore.torch.batch_norm(
            x, *statistics, weight, bias, training, activation="leaky_relu"
        )

    x, weight, bias = values(3, *SHAPE, dtype=dtype), values(C, seed=1), values(C, seed=2)

    def loss(*given):
        return batch_norm(*given).float().square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None, None))(x, weight, bias)
    assert [g.dtype for g in gradients] == [dtype, torch.float32]
    for i, example in enumerate(x):
        leaves = [t.clone().requires_grad_() for t in (example, weight)]
        alone = torch.autograd.grad(loss(*leaves, bias), leaves)
        for a, b in zip(gradients, alone, strict=True):
            assert torch.equal(a[i], b)

    tangents = values(*SHAPE, seed=4, dtype=dtype), values(C, seed=5), values(C, seed=6)
    got = torch.func.jvp(batch_norm, (x[0], weight, bias), tangents)[1]
    assert got.dtype is dtype
    wide = [t.double() for t in (x[0], weight, bias)]
    statistics = [None if s is None else s.double() for s in statistics]
    exact = torch.func.jvp(batch_norm, tuple(wide), tuple(t.double() for t in tangents))[1]
    require_near([got], [exact], dtype)


def test_forward_over_reverse():
    """Tangents of backward have the dtypes of its results."""
    x, weight, v = values(*SHAPE, dtype=torch.bfloat16), values(C, seed=1), values(*SHAPE, seed=2)

    def gradient(x, weight):
        loss = lambda *a: (  # noqa: E731
            bncore.torch.batch_norm(a[0], None, None, a[1], None, True, activation="relu")
            .double()
            .square()
            .sum()
        )
        return torch.func.grad(loss, (0, 1))(x, weight)

    tangents = v.bfloat16(), torch.ones(C)
    got = torch.func.jvp(gradient, (x, weight), tangents)[1]
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32]
    exact = torch.func.jvp(
        gradient, (x.double(), weight.double()), tuple(t.double() for t in tangents)
    )[1]
    require_near(got, exact, torch.bfloat16)


# Networks


def network(**keywords):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, C, 3, **keywords), nn.BatchNorm2d(C, **keywords), nn.ReLU(),
        nn.Conv2d(C, C, 3, **keywords), nn.BatchNorm2d(C, **keywords),
    )  # fmt: skip


def step(net, x, dy, autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = net(x)
    y.backward(dy.to(y.dtype))
    gradients = [p.grad for p in net.parameters()]
    return y, gradients, {k: v.clone() for k, v in net.state_dict().items()}


@FORMATS
def test_autocast_is_as_with_torch(memory_format):
    """A layer takes the bfloat16 of a convolution without a cast; its parameters stay float32."""
    plain = network()
    own = bncore.torch.convert(copy.deepcopy(plain))
    seen = []
    own[1].register_forward_hook(lambda _, given, y: seen.append((given[0].dtype, y.dtype)))
    x = values(4, 3, 12, 12).to(memory_format=memory_format)
    dy = values(4, C, 8, 8, seed=1)
    y, gradients, state = step(own, x, dy, True)
    expected_y, expected_gradients, expected_state = step(plain, x, dy, True)
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert y.dtype is expected_y.dtype is torch.bfloat16
    assert {t.dtype for t in own.parameters()} == {g.dtype for g in gradients} == {torch.float32}
    assert state["1.running_mean"].dtype is torch.float32
    exact, exact_gradients, _ = step(network(), x, dy, False)

    def error(got, other):
        got, other = got.detach().double(), other.detach().double()
        return float((got - other).norm() / other.norm())

    least = torch.finfo(torch.bfloat16).eps
    assert error(y, exact) <= max(error(expected_y, exact), least)
    for a, b, c in zip(gradients[4:], expected_gradients[4:], exact_gradients[4:], strict=True):
        assert error(a, c) <= max(tolerances.AUTOCAST * error(b, c), least)
    for name, value in state.items():
        torch.testing.assert_close(value.bfloat16(), expected_state[name].bfloat16())


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_autocast_in_the_compiler_gives_the_bits_of_eager_mode():
    torch._dynamo.reset()
    own = bncore.torch.convert(network())
    traced = copy.deepcopy(own)
    call = torch.compile(traced, backend="aot_eager", fullgraph=True)
    x, dy = values(4, 3, 12, 12), values(4, C, 8, 8, seed=1)
    results = []
    for net, forward in ((own, own), (traced, call)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = forward(x)
        y.backward(dy.to(y.dtype))
        results.append((y, *[p.grad for p in net.parameters()], *net.buffers()))
    for a, b in zip(*results, strict=True):
        assert a.dtype is b.dtype and torch.equal(a, b)


@SHORT
def test_a_model_of_16_bits(dtype):
    """`model.to` makes parameters and running statistics short, as in PyTorch."""
    plain = network().to(dtype)
    own = bncore.torch.convert(copy.deepcopy(plain))
    assert own[1].running_var.dtype is dtype
    x, dy = values(4, 3, 12, 12, dtype=dtype), values(4, C, 8, 8, seed=1)
    y, gradients, state = step(own, x, dy, False)
    expected, expected_gradients, expected_state = step(plain, x, dy, False)
    assert y.dtype is dtype and {g.dtype for g in gradients} == {dtype}
    bound = tolerances.CHAINED_ULP * torch.finfo(dtype).eps
    close = {"rtol": bound, "atol": bound}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(state, expected_state, **close)
    torch.testing.assert_close(gradients[-1], expected_gradients[-1], **close)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x), **close)

    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    loaded = bncore.torch.convert(network().to(dtype)).eval()
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(own), loaded):
        assert torch.equal(other(x), own(x))
    wide = BatchNorm2d(C)
    wide.load_state_dict(own[1].state_dict())
    assert wide.running_mean.dtype is torch.float32
    assert torch.equal(wide.running_mean.to(dtype), own[1].running_mean)
