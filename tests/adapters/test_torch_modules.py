"""Modules in place of `torch.nn.BatchNorm*`: state, messages, fusion, convert, the compiler."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import bncore.torch
from bncore.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAddReLU, BatchNormReLU

pytestmark = pytest.mark.needs_torch

C = 3
PAIRS = [
    (torch.nn.BatchNorm1d, BatchNorm1d, (4, C, 5)),
    (torch.nn.BatchNorm2d, BatchNorm2d, (4, C, 5, 2)),
    (torch.nn.BatchNorm3d, BatchNorm3d, (4, C, 5, 2, 3)),
]
BY_NAME = ["1d", "2d", "3d"]


def called(module, *arguments, **keywords):
    """What a call gives, or the error's type and text."""
    try:
        return module(*arguments, **keywords)
    except Exception as error:
        return type(error), str(error)


# Messages


def functional(x, *, mean=C, var=C, weight=None, bias=None, **keywords):
    """Arguments for `batch_norm`: numbers stand for vectors of that size."""
    vectors = [torch.ones(v) if isinstance(v, int) else v for v in (mean, var, weight, bias)]
    return (x, *vectors), keywords


X = torch.randn(4, C, 5)
ERRORS = {
    "int": functional(X.int(), training=True, mean=None, var=None),
    "complex": functional(X.cfloat(), training=True, mean=None, var=None),
    "no-mean": functional(X, mean=None),
    "no-var": functional(X, var=None),
    "one-of-two": functional(X, var=None, training=True),
    "size-of-mean": functional(X, mean=2),
    "size-of-var": functional(X, var=4, training=True),
    "size-of-weight": functional(X, weight=2),
    "size-of-bias": functional(X, weight=3, bias=2, training=True),
    "one-dimension": functional(X[0, 0]),
    "one-value": functional(X[:1, :, 0], training=True),
    "eps-0": functional(X, training=True, eps=0.0),
    "eps-below-0": functional(X, eps=-1.0),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_function_are_those_of_torch(name):
    arguments, keywords = ERRORS[name]
    before = copy.deepcopy(arguments)
    expected = called(torch.nn.functional.batch_norm, *arguments, **keywords)
    assert isinstance(expected, tuple)
    assert called(bncore.torch.batch_norm, *arguments, **keywords) == expected
    for a, b in zip(arguments, before, strict=True):
        assert a is b or torch.equal(a, b)


def test_eight_bits_are_not_implemented():
    text = "\"batch_norm\" not implemented for 'Float8_e4m3fn'"
    with pytest.raises(NotImplementedError, match=text):
        bncore.torch.batch_norm(X.to(torch.float8_e4m3fn), None, None, training=True)


def test_meta_tensors():
    y = bncore.torch.batch_norm(X.to("meta"), None, None, training=True)
    assert y.is_meta and y.shape == X.shape


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"weight": torch.ones(C).int()},
            "weight: expected scalar type Half, BFloat16, Float or Double but found Int",
        ),
        ({"residual": X[:2]}, r"residual: expected Float of size \(4, 3, 5\), but found Float"),
        ({"residual": X.double()}, "residual: expected Float .* but found Double"),
        ({"weight": torch.ones(C, device="meta")}, "found at least two devices, cpu and meta"),
    ],
)
def test_errors_of_its_own(keywords, message):
    with pytest.raises(RuntimeError, match=message):
        bncore.torch.batch_norm(X, None, None, training=True, **keywords)


@pytest.mark.parametrize(("theirs", "own", "shape"), PAIRS, ids=BY_NAME)
def test_a_wrong_dimension_is_refused_as_torch_does(theirs, own, shape):
    module = own(C)
    before = copy.deepcopy(module.state_dict())
    for size in [(4,), (2,) * 6, shape[:-1] if len(shape) > 3 else (1, 1, 1, 1)]:
        expected = called(theirs(C), torch.ones(size))
        assert called(module, torch.ones(size)) == expected
        assert expected[0] is ValueError
    assert called(module, X.int()[..., *[None] * (len(shape) - 3)])[0] is NotImplementedError
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


# State


@pytest.mark.parametrize(("theirs", "own", "shape"), PAIRS, ids=BY_NAME)
def test_it_is_one_of_torch(theirs, own, shape):
    assert issubclass(own, theirs)
    for keywords in ({}, {"affine": False}, {"track_running_stats": False}, {"bias": False}):
        ours, other = own(C, **keywords), theirs(C, **keywords)
        assert list(ours.state_dict()) == list(other.state_dict())
        assert repr(ours) == f"bncore.torch.{other!r}"


def test_it_is_copied_pickled_and_saved():
    module = BatchNorm2d(C)
    module(torch.randn(2, C, 2, 2))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = BatchNorm2d(C)
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(other) is BatchNorm2d
        torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)


# Fusion


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fused_modules_are_the_separate_ones_to_the_bit(training, memory_format):
    x, residual, dy = torch.randn(3, 4, C, 6, 6)
    x, residual = (t.to(memory_format=memory_format).requires_grad_() for t in (x, residual))
    plain, relu, add = BatchNorm2d(C), BatchNormReLU(C), BatchNormAddReLU(C)
    for module in (plain, relu, add):
        module.train(training)
    for got, expected in (
        (relu(x), torch.relu(plain(x))),
        (add(x, residual), torch.relu(plain(x) + residual)),
    ):
        assert torch.equal(got, expected)
        assert got.is_contiguous(memory_format=memory_format)
        leaves = [x, residual] if got.grad_fn is not None else [x]
        pairs = zip(
            torch.autograd.grad(got, leaves, dy, allow_unused=True),
            torch.autograd.grad(expected, leaves, dy, allow_unused=True),
            strict=True,
        )
        for a, b in pairs:
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    assert relu.num_batches_tracked == add.num_batches_tracked == int(training)
    with pytest.raises(ValueError, match="expected at least 2D input"):
        relu(x[0, 0, 0])


# What wraps a call


def saved_on_cpu(module, x):
    with torch.autograd.graph.save_on_cpu():
        return module(x)


def watched_for_nan(module, x):
    with torch.autograd.detect_anomaly(check_nan=True):
        return module(x)


def recomputed(module, x):
    with set_checkpoint_early_stop(False):  # or how far it gets depends on who saves what when
        return checkpoint(module, x, use_reentrant=False)


WRAPPED = {
    "evaluation": lambda module, x: module.eval()(x),
    "twice": lambda module, x: module(module(x)),
    "no weight": lambda module, x: module.requires_grad_(False)(x),
    "cumulative": lambda module, x: (setattr(module, "momentum", None), module(x))[1],
    "checkpoint": recomputed,
    "functional": lambda module, x: torch.func.functional_call(
        module, {"weight": x[0, :, 0, 0] + 1.0}, (x,)
    ),
    "parametrized": lambda module, x: register_parametrization(
        module, "weight", torch.nn.Softplus()
    )(x),
    "save_on_cpu": saved_on_cpu,
    "anomaly": watched_for_nan,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", WRAPPED)
def test_it_is_used_as_torch_is(name):
    theirs = torch.nn.BatchNorm2d(C, dtype=torch.float64)
    own = bncore.torch.convert(copy.deepcopy(theirs))
    x = torch.randn(4, C, 5, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (theirs, own):
        y = WRAPPED[name](module, x)
        gradient = torch.autograd.grad(y.square().sum(), x)
        results.append((y, *gradient, *module.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a)


# The compiler


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_gives_the_same_bits(training):
    """Graph capture, functionalization and backward; code generation is Inductor's business."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = BatchNorm2d(C), BatchNormAddReLU(C)

        def forward(self, x):
            return self.last(self.first(x), x)

    torch._dynamo.reset()
    plain = Block().train(training)
    traced = copy.deepcopy(plain)
    compiled = torch.compile(traced, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (4, 7):
        x, dy = torch.randn(2, 3, C, size, size)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        results = []
        for block in (plain, compiled):
            block.zero_grad()
            y = block(x)
            leaves = [x, *block.parameters()]
            results.append((y, *torch.autograd.grad(y, leaves, dy)))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
    for a, b in zip(plain.state_dict().values(), traced.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor_gives_what_eager_mode_gives():
    torch._dynamo.reset()
    plain = bncore.torch.convert(
        torch.nn.Sequential(torch.nn.Conv2d(3, C, 3), torch.nn.BatchNorm2d(C), torch.nn.ReLU())
    )
    traced = copy.deepcopy(plain)
    compiled = torch.compile(traced, backend="inductor", fullgraph=True)
    x, dy = torch.randn(2, 3, 10, 10, requires_grad=True), torch.randn(2, C, 8, 8)
    results = []
    for net, call in ((plain, plain), (traced, compiled)):
        y = call(x)
        gradients = torch.autograd.grad(y, [x, *net.parameters()], dy)
        results.append((y, *gradients, *net.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize(
    "module",
    ["convert", "functional", "memory", "modules", "recalibrate", "report", "statistics", "sync"],
)
def test_the_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"bncore.torch.{module}"))
    assert found.attempted and not found.failed


def test_the_page_runs():
    """Its example of several processes needs others: tests/torch_ranks.py is like it."""
    page = Path(__file__).resolve().parents[2] / "docs" / "pytorch.md"
    text = page.read_text(encoding="utf-8")
    first, fusing, norms, in_place, masks, _, second = re.findall(
        r"```python\n(.*?)```", text, re.DOTALL
    )
    names: dict = {}
    exec(first, names)
    exec(masks, names)
    assert not names["y"][~names["where"].expand(names["y"].shape)].any()
    batch_norm = names["model"][1]
    assert type(batch_norm) is torch.nn.BatchNorm2d  # after revert
    assert batch_norm.num_batches_tracked == 1 and batch_norm.weight.grad is not None
    exec(norms, names)
    assert type(batch_norm) is not torch.nn.BatchNorm2d
    exec(in_place, names)
    assert "KeepsOutput" in names["model"](names["torch"].ones(2, 3, 8, 8)).grad_fn.name()
    exec(fusing, names)
    batch_norm = names["model"][1]
    exec(second, names)
    assert [one.name for one in bncore.torch.report(names["model"]).fused] == ["1"]
    assert batch_norm.num_batches_tracked == 3
    assert names["moments"]["1"].count.tolist() == [21 * 14 * 14] * 8


def test_a_synchronized_layer_without_bias():
    theirs, own = torch.nn.SyncBatchNorm, bncore.torch.SyncBatchNorm
    theirs, own = (kind(3, bias=False).eval() for kind in (theirs, own))
    assert list(own.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(own(x), theirs(x))
