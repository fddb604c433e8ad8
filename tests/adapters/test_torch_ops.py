"""The operators of bncore.torch: registration, memory, threads, and the short way past them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bncore
import bncore.torch
from bncore.torch import compiled, counting, eager, memory, ops

pytestmark = pytest.mark.needs_torch

C = 4
FUSIONS = [(None, False), ("relu", False), ("leaky_relu", True), (None, True)]
BY_FUSION = ["plain", "relu", "leaky_relu-residual", "residual"]


def tensors(dtype=torch.float32, memory_format=torch.contiguous_format, requires_grad=True):
    generator = torch.Generator().manual_seed(0)

    def made(*size):
        return torch.randn(size, dtype=dtype, generator=generator)

    x, dy, residual = (made(3, C, 5, 6).to(memory_format=memory_format) for _ in range(3))
    weight, bias = made(C), made(C)
    for leaf in (x, residual, weight, bias):
        leaf.requires_grad_(requires_grad)
    return x, dy, weight, bias, residual


ADAPTER = compiled.adapter
needs_compiled = pytest.mark.skipif(
    ADAPTER is None, reason="the compiled part of bncore.torch is missing"
)


def operator_calls(activation, with_residual, dtype=torch.float32):
    x, dy, weight, bias, residual = tensors(dtype)
    weight = weight.detach().float().requires_grad_()
    where = torch.arange(3).reshape(3, 1, 1, 1) < 2 if with_residual else None
    fill = 0.5 if with_residual else None
    residual = residual if with_residual else None
    fused = (residual, where, None, 1e-5, activation, 0.1, "propagate", fill)
    moments = ops.batch_norm_train(x, weight, bias, *fused)[1]
    stats = torch.zeros(C), torch.ones(C)
    parameters = (weight, bias, *fused)
    return {
        "batch_norm_train": (x, *parameters),
        "batch_norm_train_backward": (dy, x, moments, *parameters, activation is not None),
        "batch_norm_infer": (x, *stats, *parameters),
        "batch_norm_infer_backward": (dy, x, *stats, *parameters, activation is not None),
        "update_running_stats_": (*stats, moments, 0.1),
    }


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("name", ops.SCHEMAS)
@pytest.mark.parametrize(("activation", "residual"), FUSIONS[1:3], ids=BY_FUSION[1:3])
def test_opcheck(name, activation, residual):
    op = getattr(torch.ops.bncore, name).default
    found = torch.library.opcheck(op, operator_calls(activation, residual)[name])
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("name", ["batch_norm_train", "batch_norm_infer_backward"])
def test_opcheck_of_16_bits(name):
    op = getattr(torch.ops.bncore, name).default
    found = torch.library.opcheck(op, operator_calls("relu", True, torch.bfloat16)[name])
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("activation", "with_residual"), FUSIONS, ids=BY_FUSION)
def test_training_gives_the_bits_of_numpy(way, activation, with_residual, dtype, memory_format):
    """Every way is `bncore.batch_norm_train`, its backward and `bncore.update_running_stats`."""
    x, dy, weight, bias, residual = tensors(dtype, memory_format)
    if not with_residual:
        residual = None
    arrays = {
        name: None if t is None else t.detach().numpy()
        for name, t in {"x": x, "weight": weight, "bias": bias, "residual": residual}.items()
    }
    fused = {"activation": activation, "negative_slope": 0.1, "residual": arrays["residual"]}
    y, moments = bncore.batch_norm_train(arrays["x"], arrays["weight"], arrays["bias"], **fused)
    dresidual = np.empty_like(y)
    gradients = bncore.batch_norm_train_backward(
        dy.numpy(),
        arrays["x"],
        moments,
        arrays["weight"],
        bias=arrays["bias"],
        dresidual=dresidual,
        **fused,
    )
    expected = [y, *gradients, *([dresidual] if with_residual else [])]
    running = np.full(C, 0.25, arrays["x"].dtype), np.full(C, 2.0, arrays["x"].dtype)
    bncore.update_running_stats(*running, moments, momentum=0.3)

    mean, var = torch.full((C,), 0.25, dtype=dtype), torch.full((C,), 2.0, dtype=dtype)
    got = bncore.torch.batch_norm(
        x, mean, var, weight, bias, True, 0.3,
        activation=activation, negative_slope=0.1, residual=residual,
    )  # fmt: skip
    assert ("BatchNormBackward" in str(got.grad_fn.name())) == (way == "compiled")
    leaves = [t for t in (x, weight, bias, residual) if t is not None]
    results = [got, *torch.autograd.grad(got, leaves, dy)]
    assert got.is_contiguous(memory_format=memory_format)
    assert results[1].is_contiguous(memory_format=memory_format)
    for a, b in zip((*results, mean, var), (*expected, *running), strict=True):
        assert np.array_equal(a.detach().numpy(), b)
    assert mean._version == var._version == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_16_bits_give_the_bits_of_numpy(way, training, dtype, memory_format):
    """Parameters and statistics each have another dtype than x."""
    x, dy, weight, bias, residual = tensors(dtype, memory_format, requires_grad=False)
    weight, bias = weight.bfloat16(), bias.double()
    running = torch.full((C,), 0.25, dtype=torch.float16), torch.full((C,), 2.0).bfloat16()
    nx, ndy, nweight, nbias, nresidual, *nrunning = (
        memory.array(t.clone()) for t in (x, dy, weight, bias, residual, *running)
    )
    fused = {"activation": "leaky_relu", "negative_slope": 0.1}
    arrays = {"residual": nresidual, "dresidual": np.empty_like(nx), "bias": nbias, **fused}
    if training:
        y, moments = bncore.batch_norm_train(nx, nweight, nbias, residual=nresidual, **fused)
        gradients = bncore.batch_norm_train_backward(ndy, nx, moments, nweight, **arrays)
        bncore.update_running_stats(*nrunning, moments, momentum=0.3)
    else:
        y = bncore.batch_norm_infer(nx, *nrunning, nweight, nbias, residual=nresidual, **fused)
        gradients = bncore.batch_norm_infer_backward(ndy, nx, *nrunning, nweight, **arrays)
    *gradients, dbias = gradients
    expected = [y, *gradients, arrays["dresidual"], *nrunning]

    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    got = bncore.torch.batch_norm(
        x, *running, weight, bias, training, 0.3, residual=residual, **fused
    )
    dx, dweight, tbias, dresidual = torch.autograd.grad(got, leaves, dy)
    for a, b in zip((got, dx, dweight, dresidual, *running), expected, strict=True):
        b = memory.tensor_of(b)
        assert a.dtype is b.dtype
        assert torch.equal(a.detach().view(torch.int16), b.view(torch.int16))
    # NumPy's functions do not ask for the dtype of the bias, so they give it that of the weight.
    assert tbias.dtype is torch.float64
    assert torch.equal(tbias, memory.tensor_of(dbias).double())
    assert got.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("activation", "with_residual"), FUSIONS, ids=BY_FUSION)
def test_evaluation_gives_the_bits_of_numpy(way, activation, with_residual, dtype):
    x, dy, weight, bias, residual = tensors(dtype, torch.channels_last)
    mean, var = torch.linspace(-1, 1, C, dtype=dtype), torch.linspace(0.5, 2, C, dtype=dtype)
    if not with_residual:
        residual = None
    values = [None if t is None else t.detach().numpy() for t in (x, dy, weight, bias, residual)]
    nx, ndy, nweight, nbias, nresidual = values
    fused = {"activation": activation, "negative_slope": 0.1}
    given = nx, mean.numpy(), var.numpy(), nweight
    y = bncore.batch_norm_infer(*given, nbias, residual=nresidual, **fused)
    dresidual = np.empty_like(y)
    gradients = bncore.batch_norm_infer_backward(
        ndy, *given, bias=nbias, residual=nresidual, dresidual=dresidual, **fused
    )
    got = bncore.torch.batch_norm(x, mean, var, weight, bias, residual=residual, **fused)
    leaves = [t for t in (x, weight, bias, residual) if t is not None]
    results = [got, *torch.autograd.grad(got, leaves, dy)]
    expected = [y, *gradients, *([dresidual] if with_residual else [])]
    for a, b in zip(results, expected, strict=True):
        assert np.array_equal(a.detach().numpy(), b)
    with torch.inference_mode():
        again = bncore.torch.batch_norm(x, mean, var, weight, bias, residual=residual, **fused)
        assert again.is_inference() and torch.equal(again, got)
    assert mean._version == 0


def test_the_short_way_is_taken_only_where_nobody_watches():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        seen: tuple[str, ...] = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (str(func),)
            return func(*args, **(kwargs or {}))

    def taken(x, *others):
        if compiled.adapter is None:
            return eager.possible(x, *others)
        y = compiled.adapter.batch_norm(
            x, None, None, *others, True, 0.1, 1e-5, None, 0.0, None, None, *counting.ALL
        )
        return y is not None

    x, _, weight, bias, _ = tensors()
    assert taken(x, weight, bias)
    assert not taken(x.to("meta"), None, None)
    assert not taken(
        torch.nn.Buffer(x.detach()).as_subclass(type("T", (torch.Tensor,), {})), None, None
    )
    assert not taken(x.detach().to_sparse(), None, None)
    with Watching() as mode:
        bncore.torch.batch_norm(x, None, None, weight, bias, True)
    assert "bncore.batch_norm_train.default" in mode.seen
    seen = []
    torch.func.vmap(lambda t: seen.append(taken(t, None, None)) or t)(x.detach())
    assert seen == [False]


def test_a_gradient_in_another_memory_order():
    x, dy, weight, bias, _ = tensors(memory_format=torch.channels_last)
    y = bncore.torch.batch_norm(x, None, None, weight, bias, True)
    last = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    first = torch.autograd.grad(y, x, dy.contiguous(), retain_graph=True)[0]
    assert torch.equal(first, last)
    expanded = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(expanded, torch.autograd.grad(y, x, torch.ones_like(y))[0])


VIEWS = {
    "slice": lambda x: x[:, :, ::2],
    "permuted": lambda x: x.permute(2, 1, 3, 0),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "shifted": lambda x: x.flatten()[1 : 1 + 2 * C * 5].reshape(2, C, 5),
    "one channel": lambda x: x[:, :1].permute(2, 1, 0, 3),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(way, name):
    x = VIEWS[name](tensors(torch.float64, requires_grad=False)[0])
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    got = bncore.torch.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(got, expected)
    assert got.stride() == torch.empty_like(x).stride()
    assert np.array_equal(got.numpy(), bncore.batch_norm_train(x.clone().numpy())[0])


@needs_compiled
def test_unaligned_memory():
    memory = torch.frombuffer(bytearray(4 * 60 + 2), dtype=torch.uint8)
    values = torch.randn(5, 4, 3)
    memory[2:].copy_(values.flatten().view(torch.uint8))
    x = torch.frombuffer(memory.numpy(), dtype=torch.float32, offset=2).reshape(5, 4, 3)
    assert x.data_ptr() % 4 == 2
    expected = bncore.torch.batch_norm(values, None, None, training=True)
    assert torch.equal(bncore.torch.batch_norm(x, None, None, training=True), expected)


def test_a_view_with_negative_sign():
    z = torch.randn(3, C, dtype=torch.complex128).conj().imag
    assert z.is_neg()
    got = bncore.torch.batch_norm(z, None, None, training=True)
    torch.testing.assert_close(got, bncore.torch.batch_norm(z.clone(), None, None, training=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", [1, 2], ids=["contiguous", "strided"])
def test_running_statistics_of_every_backend(backend, dtype, step):
    """Those of `bncore.update_running_stats` to the bit, and any momentum, as PyTorch has it."""
    moments = bncore.moments(np.linspace(0.0, 7.0, 6 * C).reshape(6, C))
    mean, var = (torch.linspace(0.1, 3.0, C * step, dtype=dtype)[::step] for _ in range(2))
    expected = mean.numpy().copy(), var.numpy().copy()
    bncore.update_running_stats(*expected, moments, momentum=0.3)
    before = mean._version
    ops.move_running_stats(mean, var, moments, 0.3)
    assert np.array_equal(mean.numpy(), expected[0])
    assert np.array_equal(var.numpy(), expected[1])
    assert mean._version > before
    ops.move_running_stats(mean, var, moments, -1.2)
    np.testing.assert_allclose(mean.numpy(), 2.2 * expected[0] - 1.2 * moments.mean, rtol=1e-5)
