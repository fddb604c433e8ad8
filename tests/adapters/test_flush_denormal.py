"""The adapters give the functions' bits, even if the framework replaces subnormals by zero."""

from __future__ import annotations

import numpy as np
import pytest

SHAPE = (32, 24, 28, 28)


@pytest.fixture
def data(rng):
    """Data and parameters around the least normal float32, most of them below it."""
    scale = float(np.finfo(np.float32).tiny) / 4
    x, dy = (rng.standard_normal((2, *SHAPE)) * scale).astype(np.float32)
    weight, bias = (rng.standard_normal((2, SHAPE[1])) * scale).astype(np.float32)
    return x, dy, weight, bias


@pytest.mark.needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch(data, dtype):
    torch = pytest.importorskip("torch")
    import bncore.torch

    kind = getattr(torch, dtype)
    larger = torch.finfo(kind).smallest_normal / torch.finfo(torch.float32).smallest_normal
    x, dy, weight, bias = ((torch.from_numpy(a).double() * larger).to(kind) for a in data)
    small = dy / 1024  # the gradients of weight and bias are subnormal, too

    def results(n_threads: int) -> list[bytes]:
        bncore.set_num_threads(n_threads)
        given = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        mean, var = torch.zeros(SHAPE[1], dtype=kind), torch.ones(SHAPE[1])
        y = bncore.torch.batch_norm(given[0], mean, var, *given[1:], training=True, eps=1e-30)
        y.backward(small)
        inferred = bncore.torch.batch_norm(x, mean, var, weight, bias)
        tensors = [y.detach(), inferred, mean, var, *(tensor.grad for tensor in given)]
        return [tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors]

    try:
        expected = results(1)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor keeps subnormal numbers")
        for n_threads in (1, 2, 3):
            assert results(n_threads) == expected
        assert float(torch.tensor([1e-39]) * 1.0) == 0.0, "the caller's state is as it was"
    finally:
        torch.set_flush_denormal(False)
        bncore.set_num_threads(None)
    assert results(1) == expected
    bncore.set_num_threads(None)


@pytest.mark.needs_torch
def test_torch_synchronized(data, monkeypatch):
    """The operators of `SyncBatchNorm`, as a group of one process."""
    torch = pytest.importorskip("torch")
    from bncore.torch import sync_ops

    monkeypatch.setattr(sync_ops, "gathered", lambda values, group: [values])
    x, dy, weight, bias = map(torch.from_numpy, data)
    small = dy / 1024  # the gradients of weight and bias are subnormal, too

    def results() -> list[bytes]:
        given = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        counted = None, None, 1e-30, "propagate", None, "the only process"
        y, moments = sync_ops.train_op(*given, *counted)
        y.backward(small)
        tensors = [y.detach(), moments, *(tensor.grad for tensor in given)]
        return [tensor.numpy().tobytes() for tensor in tensors]

    expected = results()
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor keeps subnormal numbers")
        assert results() == expected
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.needs_jax
def test_jax(data):
    jax = pytest.importorskip("jax")
    import bncore.jax

    x, dy, weight, bias = data
    expected, moments = bncore.batch_norm_train(x, weight, bias, eps=1e-30)
    y, _ = bncore.jax.batch_norm_train(x, weight, bias, eps=1e-30)
    assert np.asarray(y).tobytes() == expected.tobytes()
    dy = dy / np.float32(1024)  # the gradients of weight and bias are subnormal, too
    _, pullback = jax.vjp(
        lambda *given: bncore.jax.batch_norm_train(*given, eps=1e-30)[0], x, weight, bias
    )
    gradients = bncore.batch_norm_train_backward(dy, x, moments, weight, eps=1e-30)
    for got, wanted in zip(pullback(dy), gradients, strict=True):
        assert np.asarray(got).tobytes() == wanted.astype(np.float32).tobytes()
    mean, var = moments.mean.astype(np.float32), np.ones(SHAPE[1], np.float32)
    expected = bncore.batch_norm_infer(x, mean, var, weight, bias)
    y = bncore.jax.batch_norm_infer(x, mean, var, weight, bias)
    assert np.asarray(y).tobytes() == expected.tobytes()
