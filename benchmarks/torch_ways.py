"""What people do to a model of PyTorch, each way as a function of a model and a batch of images.

Each raises `Unlike` if the results are not those of the model itself, and else what the tool
raises.  `torch_zoo.py` makes a table of them.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call, vmap
from torch.optim import swa_utils
from torch.utils import checkpoint

import bncore.torch

Way = Callable[[nn.Module, torch.Tensor], None]
WAYS: dict[str, Way] = {}
CLOSE = 1e-3  # of the largest value: small images make noise large


class Unlike(Exception):
    """Results that are not those of the model."""


def way(name: str) -> Callable[[Way], Way]:
    def keep(function: Way) -> Way:
        WAYS[name] = function
        return function

    return keep


def same(got: torch.Tensor, expected: torch.Tensor, close: float = CLOSE) -> None:
    if got.shape != expected.shape:
        raise Unlike(f"shape {tuple(got.shape)}")
    difference = float((got.double() - expected.double()).abs().max() / expected.abs().max())
    if not difference <= close:
        raise Unlike(f"{difference:.1e}")


def evaluated(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = model.eval()(x)
    return y


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the gradients of all parameters of a step in training, as one vector."""
    torch.manual_seed(0)
    model.train().zero_grad()
    model(x).square().mean().backward()
    parameters = [one for one in model.parameters() if one.grad is not None]
    return torch.cat(
        [getattr(p.grad, "full_tensor", lambda p=p: p.grad)().flatten() for p in parameters]
    )


@way("deepcopy")
def deepcopied(model: nn.Module, x: torch.Tensor) -> None:
    same(gradient(copy.deepcopy(model), x), gradient(model, x))


@way("pickle")
def pickled(model: nn.Module, x: torch.Tensor) -> None:
    again = pickle.loads(pickle.dumps(model))
    same(evaluated(again, x), evaluated(model, x))


@way("state dict, both ways")
def exchanged(model: nn.Module, x: torch.Tensor) -> None:
    gradient(model, x)
    other = bncore.torch.revert(copy.deepcopy(model))
    for one in (other, bncore.torch.convert(copy.deepcopy(other))):
        for value in one.state_dict().values():
            value.zero_()
        one.load_state_dict(model.state_dict())
        same(evaluated(one, x), evaluated(model, x))
    model.load_state_dict(other.state_dict())


@way("compile")
def compiled(model: nn.Module, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    expected = gradient(copy.deepcopy(model), x)
    same(gradient(torch.compile(model, backend="aot_eager"), x), expected)


@way("export")
def exported(model: nn.Module, x: torch.Tensor) -> None:
    program = torch.export.export(model.eval(), (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    same(torch.export.load(file).module()(x), evaluated(model, x))


@way("ONNX Runtime")
def in_onnxruntime(model: nn.Module, x: torch.Tensor) -> None:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model.eval(), (x,), path, dynamo=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    same(torch.from_numpy(y), evaluated(model, x))


@way("torch.fx")
def symbolic(model: nn.Module, x: torch.Tensor) -> None:
    same(evaluated(torch.fx.symbolic_trace(model.eval()), x), evaluated(model, x))


@way("torch.jit.trace")
def traced(model: nn.Module, x: torch.Tensor) -> None:
    same(evaluated(torch.jit.trace(model.eval(), x), x), evaluated(model, x))


@way("QAT prepare")
def quantized(model: nn.Module, x: torch.Tensor) -> None:
    """Fake quantization is off, so that results can be compared."""
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

    mapping = quantization.get_default_qat_qconfig_mapping("x86")
    expected = gradient(copy.deepcopy(model), x)
    prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(model).train(), mapping, (x,))
    prepared.apply(quantization.disable_observer).apply(quantization.disable_fake_quant)
    got = gradient(prepared, x)
    same(got.norm(), expected.norm(), 0.05)  # it folds batch norm into weights, in another order


class Alone:
    """A process group of this process alone."""

    def __enter__(self) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        self.folder = tempfile.TemporaryDirectory()
        method = f"file://{self.folder.name}/rendezvous"
        dist.init_process_group("gloo", init_method=method, rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        dist.destroy_process_group()
        self.folder.cleanup()


@way("DDP, gloo")
def distributed(model: nn.Module, x: torch.Tensor) -> None:
    expected = gradient(copy.deepcopy(model), x)
    with Alone():
        same(gradient(nn.parallel.DistributedDataParallel(model), x), expected)


@way("FSDP2")
def sharded(model: nn.Module, x: torch.Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    expected = gradient(copy.deepcopy(model), x)
    with Alone():
        mesh = init_device_mesh("cpu", (1,))
        for part in model.children():
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh)
        same(gradient(fully_shard(model, mesh=mesh), x), expected)


@way("checkpointing")
def recomputed(model: nn.Module, x: torch.Tensor) -> None:
    expected = gradient(copy.deepcopy(model), x)
    inner = model.forward
    model.forward = lambda x: checkpoint.checkpoint(inner, x, use_reentrant=False)  # type: ignore
    same(gradient(model, x), expected)


@way("functional_call, vmap")
def mapped(model: nn.Module, x: torch.Tensor) -> None:
    """Gradients per example, in evaluation, of models that draw no numbers there."""
    model.eval()
    parameters = dict(model.named_parameters())

    def loss(given: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = functional_call(model, given, (one.unsqueeze(0),))
        return y.square().mean()

    each = vmap(torch.func.grad(loss), (None, 0))(parameters, x[:2])
    model.zero_grad()
    model(x[:2]).square().mean(1).sum().backward()
    for name, value in parameters.items():
        if value.grad is not None and value.grad.abs().max() > 1e-4:
            same(each[name].sum(0), value.grad, 1e-2)


@way("EMA")
def averaged(model: nn.Module, x: torch.Tensor) -> None:
    average = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    gradient(model, x)
    average.update_parameters(model)
    same(evaluated(average.module, x), evaluated(model, x))


@way("SWA, update_bn")
def averaged_again(model: nn.Module, x: torch.Tensor) -> None:
    average = swa_utils.AveragedModel(model)
    average.update_parameters(model)
    expected = copy.deepcopy(model)
    for one in (expected, average):
        torch.manual_seed(0)
        swa_utils.update_bn([x], one)
    same(evaluated(average, x), evaluated(expected, x))


@way("autocast")
def autocast(model: nn.Module, x: torch.Tensor) -> None:
    """In bfloat16; the results differ by what 8 bits round, in every layer."""
    with torch.autocast("cpu", torch.bfloat16):
        y = evaluated(model, x)
    if y.dtype is not torch.bfloat16:
        raise Unlike(str(y.dtype))
    same(y, evaluated(model, x), 0.3)


@way("channels last")
def channels_last(model: nn.Module, x: torch.Tensor) -> None:
    expected = gradient(copy.deepcopy(model), x)
    order = torch.channels_last
    got = gradient(model.to(memory_format=order), x.to(memory_format=order))
    same(got.norm(), expected.norm(), 0.05)
