"""What results of bncore.torch are made with: the memory of a pool, and PyTorch's threads."""

from __future__ import annotations

import contextlib
import ctypes
import threading

import numpy as np
import pytest
import torch

import bncore
import bncore.torch
import variants
from bncore.torch import compiled, memory

pytestmark = pytest.mark.needs_torch

ADAPTER = compiled.adapter


def test_results_and_inputs_are_the_same_memory():
    if ADAPTER is None:
        bncore.torch.set_buffer_pool(0)  # as it is initially; the pool has memory of NumPy's
    x = torch.randn(2, 4, 3)
    assert memory.array(x).ctypes.data == x.data_ptr()
    assert np.shares_memory(memory.array(x.requires_grad_()), x.detach().numpy())
    for format in (torch.contiguous_format, torch.channels_last):
        large = torch.empty(2, 64, 128, 128).to(memory_format=format)
        new = memory.output(large)
        assert new.stride() == large.stride()
        assert new.untyped_storage().resizable()  # the allocator's own


@pytest.mark.skipif(ADAPTER is None, reason="the compiled part of bncore.torch is missing")
def test_the_pool_keeps_no_more_than_it_may():
    x = torch.randn(2, 64, 64, 64)
    bncore.torch.set_buffer_pool(0)
    try:
        y = bncore.torch.batch_norm(x, None, None, training=True)
        del y
        assert compiled.adapter.pool_state() == (0, 0)
        bncore.torch.set_buffer_pool(3 << 20)
        ys = [bncore.torch.batch_norm(x, None, None, training=True) for _ in range(3)]
        assert ys[0].untyped_storage().resizable()
        ys[0].resize_(2, 2)
        thread = threading.Thread(target=ys.clear)
        thread.start()
        thread.join()
        assert compiled.adapter.pool_state() == (3 << 20, 2 << 20)
        bncore.torch.set_buffer_pool(1 << 20)
        assert compiled.adapter.pool_state() == (1 << 20, 0)
    finally:
        bncore.torch.set_buffer_pool(1 << 28)
    with pytest.raises(ValueError, match="max_bytes: expected"):
        bncore.torch.set_buffer_pool(-1)
    with pytest.raises(TypeError, match="max_bytes: expected"):
        bncore.torch.set_buffer_pool(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_from_the_pool(way, dtype):
    x = torch.randn(2, 64, 64, 64).to(dtype)
    bncore.torch.set_buffer_pool(1 << 24)
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
        bncore.torch.set_buffer_pool(1 << 28 if way == "compiled" else 0)


EXECUTOR = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int32,
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64),
    ctypes.c_void_p,
)


class Executor(ctypes.Structure):
    """`bncore_executor` of bncore.h."""

    _fields_ = (("parallel_for", EXECUTOR), ("context", ctypes.c_void_p))


@contextlib.contextmanager
def watched_threads(seen):
    """Note the number of threads of every parallel loop of the C library and of bncore itself.

    The compiled part would give its loops to PyTorch, so another choice is made for it here.
    """

    def parallel_for(context, tasks, threads, task, arg):
        seen.add(threads)
        for i in range(tasks):
            task(arg, i)

    executor = Executor(EXECUTOR(parallel_for), None)
    setters = [
        ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(bncore.get_address("bncore_executor_set"))
    ]
    if ADAPTER is not None:
        setters.append(ctypes.CDLL(str(compiled.library())).bncore_executor_set)
        ADAPTER.set_executor("own")
    try:
        for setter in setters:
            assert setter(ctypes.byref(executor)) == 0
        yield
    finally:
        for setter in setters:
            setter(None)
        if ADAPTER is not None:
            ADAPTER.set_executor("")


@pytest.mark.skipif("native" in variants.FOUND.missing, reason="the native extension is missing")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_those_of_torch(way, threads):
    x, weight, bias = torch.randn(8, 64, 32, 32), torch.randn(64), torch.randn(64)
    x.requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    y = None
    try:
        for call in (
            lambda _: bncore.torch.batch_norm(x, None, None, weight, bias, True),
            lambda y: y.backward(torch.ones_like(y)),
            lambda _: bncore.torch.batch_norm(x, torch.zeros(64), torch.ones(64)),
        ):
            seen = {1}
            with watched_threads(seen):
                y = call(y)
            assert max(seen) == threads
    finally:
        torch.set_num_threads(before)
