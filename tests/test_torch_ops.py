"""The operators of bncore.torch: registration, memory, threads, and the short way past them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bncore
import bncore.torch
from bncore.torch import eager, memory, ops

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


def operator_calls(activation, with_residual):
    x, dy, weight, bias, residual = tensors()
    fused = (residual if with_residual else None, 1e-5, activation, 0.1)
    moments = ops.batch_norm_train(x, weight, bias, *fused)[1]
    stats = torch.zeros(C), torch.ones(C)
    parameters = (weight, bias, *fused)
    return {
        "batch_norm_train": (x, *parameters),
        "batch_norm_train_backward": (dy, x, moments, *parameters, activation is not None),
        "batch_norm_infer": (x, *stats, *parameters),
        "batch_norm_infer_backward": (dy, x, *stats, *parameters, activation is not None),
        "update_running_stats_": (*stats, moments, 90, 0.1),
    }


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("name", ops.SCHEMAS)
@pytest.mark.parametrize(("activation", "residual"), FUSIONS[1:3], ids=BY_FUSION[1:3])
def test_opcheck(name, activation, residual):
    op = getattr(torch.ops.bncore, name).default
    found = torch.library.opcheck(op, operator_calls(activation, residual)[name])
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("activation", "with_residual"), FUSIONS, ids=BY_FUSION)
def test_every_way_gives_the_bits_of_numpy(
    monkeypatch, activation, with_residual, dtype, memory_format
):
    """The short way and the operators are `bncore.batch_norm_train` and its backward."""
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

    for short in (True, False):
        monkeypatch.setattr(eager, "possible", lambda *_, short=short: short)
        mean, var = torch.full((C,), 0.25, dtype=dtype), torch.full((C,), 2.0, dtype=dtype)
        got = bncore.torch.batch_norm(
            x, mean, var, weight, bias, True, 0.3,
            activation=activation, negative_slope=0.1, residual=residual,
        )  # fmt: skip
        leaves = [t for t in (x, weight, bias, residual) if t is not None]
        results = [got, *torch.autograd.grad(got, leaves, dy)]
        assert got.is_contiguous(memory_format=memory_format)
        assert results[1].is_contiguous(memory_format=memory_format)
        for a, b in zip((*results, mean, var), (*expected, *running), strict=True):
            assert np.array_equal(a.detach().numpy(), b)


def test_the_short_way_is_taken_only_where_nobody_watches():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        seen: tuple[str, ...] = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (str(func),)
            return func(*args, **(kwargs or {}))

    x, _, weight, bias, _ = tensors()
    assert eager.possible(x, weight, bias, None)
    assert not eager.possible(x.to("meta"))
    assert not eager.possible(
        torch.nn.Buffer(x.detach()).as_subclass(type("T", (torch.Tensor,), {}))
    )
    assert not eager.possible(x.detach().to_sparse())
    with Watching() as mode:
        bncore.torch.batch_norm(x, None, None, weight, bias, True)
    assert "bncore.batch_norm_train.default" in mode.seen
    seen = []
    torch.func.vmap(lambda t: seen.append(eager.possible(t)) or t)(x.detach())
    assert seen == [False]


def test_results_and_inputs_are_the_same_memory():
    x = torch.randn(2, C, 3)
    assert memory.array(x).ctypes.data == x.data_ptr()
    assert np.shares_memory(memory.array(x.requires_grad_()), x.detach().numpy())
    for format in (torch.contiguous_format, torch.channels_last):
        large = torch.empty(2, 64, 128, 128).to(memory_format=format)
        new = memory.output(large)
        assert new.stride() == large.stride()
        assert new.untyped_storage().resizable()  # the allocator's own


def test_results_from_the_pool():
    x = torch.randn(2, 64, 64, 64)
    bncore.set_buffer_pool(1 << 24)
    try:
        places = set()
        for _ in range(4):
            y = bncore.torch.batch_norm(x, None, None, training=True)
            places.add(y.data_ptr())
            view = y[0, 0, 0]
            kept = view.clone()
            del y
            bncore.torch.batch_norm(x + 1, None, None, training=True)
            assert torch.equal(view, kept)  # a view keeps the block
            del view
        assert len(places) <= 3
    finally:
        bncore.set_buffer_pool(None)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_those_of_torch(monkeypatch, threads):
    seen = []

    def watched(real):
        def call(*args, **kwargs):
            seen.append(kwargs["n_threads"])
            return real(*args, **kwargs)

        return call

    for name in ("batch_norm_train", "batch_norm_train_backward", "batch_norm_infer"):
        monkeypatch.setattr(bncore, name, watched(getattr(bncore, name)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, _, weight, bias, _ = tensors()
        y = bncore.torch.batch_norm(x, None, None, weight, bias, True)
        y.sum().backward()
        bncore.torch.batch_norm(x, torch.zeros(C), torch.ones(C))
    finally:
        torch.set_num_threads(before)
    assert seen == [threads] * 3


def test_a_gradient_in_another_memory_order():
    x, dy, weight, bias, _ = tensors(memory_format=torch.channels_last)
    y = bncore.torch.batch_norm(x, None, None, weight, bias, True)
    last = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    first = torch.autograd.grad(y, x, dy.contiguous(), retain_graph=True)[0]
    assert torch.equal(first, last)
    expanded = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(expanded, torch.autograd.grad(y, x, torch.ones_like(y))[0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[:, :, ::2], id="slice"),
        pytest.param(lambda x: x.permute(2, 1, 3, 0), id="permuted"),
        pytest.param(lambda x: x[:1].expand(4, -1, -1, -1), id="expanded"),
        pytest.param(lambda x: x.flatten()[1 : 1 + 2 * C * 5].reshape(2, C, 5), id="shifted"),
    ],
)
def test_views(change):
    x = change(tensors(torch.float64, requires_grad=False)[0])
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(bncore.torch.batch_norm(x, None, None, training=True), expected)


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
