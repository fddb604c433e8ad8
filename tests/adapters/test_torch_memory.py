"""Tensors that share, swap or resize their memory, and models that are sharded (FSDP)."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bncore.torch
import torch_shards
from bncore.torch import compiled, memory

pytestmark = pytest.mark.needs_torch

C = 3
KINDS = [
    lambda: torch.nn.BatchNorm2d(C),
    lambda: bncore.torch.convert(torch.nn.BatchNorm2d(C)),
    lambda: bncore.torch.BatchNormReLU(C),
]


def step(module, shape=(4, C, 5, 5)):
    x = torch.randn(shape, device="cpu").to(module.weight.dtype).requires_grad_()
    y = module(x)
    y.sum().backward()
    return x, y


def tensors(module):
    gradients = (p.grad for p in module.parameters() if p.grad is not None)
    return [*module.parameters(), *gradients, module.running_mean, module.running_var]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", KINDS)
def test_everything_can_be_resized(way, make, dtype):
    """FSDP frees memory by resizing it to 0, and fills it again."""
    module = make().to(dtype)
    x, y = step(module)
    for tensor in (*tensors(module), x, x.grad, y):
        storage = tensor.untyped_storage()
        assert storage.resizable()
    values = module.weight.detach().clone()
    size = module.weight.untyped_storage().nbytes()
    module.weight.untyped_storage().resize_(0)
    module.weight.untyped_storage().resize_(size)
    module.weight.data.copy_(values)
    assert step(module)[1].shape == y.shape


@pytest.mark.parametrize("make", KINDS)
def test_parameters_can_be_swapped(way, make):
    module = make()
    step(module)
    gc.collect()
    torch.utils.swap_tensors(module.weight, torch.nn.Parameter(torch.full((C,), 5.0)))
    torch.utils.swap_tensors(module.running_mean, torch.full((C,), 7.0))
    assert module.weight[0] == 5 and module.running_mean[0] == 7
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
        assert step(module)[1].dtype is torch.float64
        module.load_state_dict(make().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert step(module)[1].dtype is torch.float64


@pytest.mark.parametrize("make", KINDS)
def test_memory_can_be_shared(way, make):
    module = make()
    before = step(module)[1].detach().clone().share_memory_()
    module.share_memory()
    for tensor in tensors(module):
        tensor.share_memory_()
        assert tensor.is_shared()
    y = step(module, (16, C, 128, 128))[1].detach()  # more than 1 MiB: of the pool, if there is one
    expected = y.clone()
    y.share_memory_()
    assert y.is_shared() and torch.equal(y, expected)
    assert before.is_shared()
    assert module.running_mean.is_shared() and module.num_batches_tracked == 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_default_device_has_no_effect(way, training):
    """Everything that bncore makes is on the device of what it is given."""
    weight = torch.ones(C, requires_grad=True)
    x = torch.randn(4, C, 2, requires_grad=True)
    given = x, torch.zeros(C), torch.ones(C), weight
    statistics = torch.zeros(C), torch.ones(C)

    def gradients():
        y = bncore.torch.batch_norm(x, *statistics, weight)
        return torch.autograd.grad(y.sum(), (x, weight))

    expected = gradients()
    torch.set_default_device("meta")
    try:
        y = bncore.torch.batch_norm(*given, training=training)
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(first[1].sum(), x)
        module = bncore.torch.BatchNorm2d(C)
    finally:
        torch.set_default_device(None)
    assert {t.device.type for t in (y, *first, *second, *given)} == {"cpu"}
    assert module.weight.is_meta
    torch.testing.assert_close(gradients(), expected)


def test_arrays_are_views():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = torch.arange(12.0).to(dtype).reshape(3, 4).t()
        found = memory.array(tensor)
        assert found.shape == (4, 3) and found.strides == tuple(dtype.itemsize * s for s in (1, 4))
        assert found.ctypes.data == tensor.data_ptr() and found.flags.writeable
        assert torch.equal(memory.tensor_of(found), tensor)
        assert memory.array(torch.empty(0, 3, dtype=dtype)).shape == (0, 3)
    array = memory.array(torch.ones(1000))
    gc.collect()
    assert np.all(array == 1)  # it keeps the tensor
    for tensor in (
        torch._efficientzerotensor(3),
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.cfloat).conj().imag,
    ):
        with pytest.raises(TypeError, match="expected a dense tensor on the CPU, got"):
            memory.array(tensor)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch has no processes")
@pytest.mark.parametrize("with_compiled", ["1", "0"])
def test_sharded_models_train_as_those_of_torch(tmp_path, with_compiled):
    """FSDP 1 and 2, plain and synchronized, converted before and after they are sharded."""
    done = subprocess.run(
        [sys.executable, torch_shards.__file__, str(tmp_path)],
        capture_output=True,
        cwd=Path(torch_shards.__file__).parent.parent,
        env=os.environ | {compiled.SWITCH: with_compiled},
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
