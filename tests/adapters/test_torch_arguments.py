"""Tensors of every kind in every argument: PyTorch's result, or an error of PyTorch's type.

What bncore takes beside that are other combinations of dtypes (test_torch_dtypes.py).
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bncore.torch
from bncore.torch import compiled, ops

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:.*quantiz"),
]

C = 3
ADAPTER = compiled.adapter


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Unhandled(torch.Tensor):
    """A subclass that knows no function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


def values():
    return {
        "x": torch.arange(24.0).reshape(4, C, 2).sin() * 2,
        "running_mean": torch.full((C,), 0.5),
        "running_var": torch.full((C,), 2.0),
        "weight": torch.full((C,), 1.5),
        "bias": torch.full((C,), 0.25),
    }


def negated(t):
    new = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert new.is_neg()
    return new


def of_inference(t):
    with torch.inference_mode():
        return t.clone()


KINDS = {
    "requires grad": lambda t: t.requires_grad_(),
    "has a gradient": lambda t: t.requires_grad_() * 1,
    "negated": negated,
    "zero": lambda t: torch._efficientzerotensor(t.shape),
    "complex": lambda t: t.cfloat(),
    "conjugate": lambda t: t.cfloat().conj(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.reshape(t.shape[0], -1).to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "subclass": lambda t: t.as_subclass(Plain),
    "unhandled": lambda t: t.as_subclass(Unhandled),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "functional": lambda t: torch._to_functional_tensor(t),
    "fake": lambda t: FakeTensorMode().from_tensor(t),
    "of inference": of_inference,
    "int": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "eight bits": lambda t: t.to(torch.float8_e4m3fn),
    "one dimension more": lambda t: t[None],
    "no dimension": lambda t: t.sum(),
    "four": lambda t: torch.ones(4),
    "empty": lambda t: torch.ones(0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "array": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "float": lambda t: 1.0,
    "text": lambda t: "a",
    "none": lambda t: None,
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "buffer": lambda t: torch.nn.Buffer(t),
}


def dense(value):
    if not isinstance(value, torch.Tensor) or value.is_meta or value.is_nested:
        return value
    if value.layout is not torch.strided or value.is_mkldnn:
        return value.to_dense()
    with torch._C.DisableTorchFunctionSubclass():
        return value.detach().as_subclass(torch.Tensor).clone()


def outcome(function, kind, name, training):
    """The result's type, the result, and the statistics afterwards; or the type of the error."""
    given = values()
    given[name] = KINDS[kind](given[name])
    try:
        y = function(*given.values(), training)
    except Exception as error:
        return type(error), str(error)
    statistics = [] if kind == "functional" else [given["running_mean"], given["running_var"]]
    return type(y), y.layout, y.requires_grad, [dense(t) for t in (y, *statistics)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", values())
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor(way, kind, name, training):
    expected = outcome(torch.nn.functional.batch_norm, kind, name, training)
    found = outcome(bncore.torch.batch_norm, kind, name, training)
    assert found[0] is expected[0], (found, expected)
    if len(expected) == 2:  # an error
        return
    assert found[1:3] == expected[1:3]
    for at, (a, b) in enumerate(zip(found[3], expected[3], strict=True)):
        if kind == "negated" and training and at and name.startswith("running"):
            continue  # PyTorch forgets to write into these, as the next test shows
        if isinstance(b, torch.Tensor) and not b.is_meta and kind != "fake":
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("names", ["running_mean", "running_var", "running_mean running_var"])
def test_negated_statistics_are_updated(way, names):
    """PyTorch leaves them as they are; both in one call have no fallback in PyTorch."""
    given, plain = values(), values()
    for name in names.split():
        given[name] = negated(given[name])
    y = bncore.torch.batch_norm(*given.values(), True)
    assert torch.equal(y, bncore.torch.batch_norm(*plain.values(), True))
    for name in ("running_mean", "running_var"):
        assert torch.equal(given[name], plain[name])
        assert not torch.equal(given[name], values()[name])


def test_statistics_that_require_grad_without_gradients(way):
    """PyTorch refuses them only while it records gradients."""
    with torch.no_grad():
        for training in (True, False):
            for name in ("running_mean", "running_var"):
                expected = outcome(torch.nn.functional.batch_norm, "requires grad", name, training)
                found = outcome(bncore.torch.batch_norm, "requires grad", name, training)
                torch.testing.assert_close(found[3], expected[3])


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm1d, torch.nn.SyncBatchNorm])
def test_modules_refuse_statistics_that_require_grad(way, kind):
    texts = []
    for module in (kind(C), bncore.torch.convert(kind(C))):
        module.running_var.requires_grad_()
        for training in (True, False):
            with pytest.raises(RuntimeError, match="'running_var'") as error:
                module.train(training)(values()["x"])
            texts.append(str(error.value))
        assert torch.equal(module.running_mean, torch.zeros(C))
    assert module.num_batches_tracked == 0 and len(set(texts)) == 1


def short(value):
    return str(value)[:20]


OTHER = {
    "training": [1, None, torch.tensor(True), "a"],
    "momentum": [-1.0, 2, True, None, "a", float("nan"), float("inf"), 10**400, 1j, *map(
        torch.tensor, (0.25, [0.25], 1, True)
    )],
    "eps": [2, True, None, "a", float("nan"), float("inf"), -1.0, 0.0, 10**400, 1j, *map(
        torch.tensor, (0.25, [0.25], 1, True, -1.0)
    )],
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "value"), [(n, v) for n in OTHER for v in OTHER[n]], ids=short)
def test_numbers_and_flags(way, name, value, training):
    results = []
    for function in (torch.nn.functional.batch_norm, bncore.torch.batch_norm):
        given = values()
        try:
            y = function(**{"input" if n == "x" else n: t for n, t in given.items()}, **{
                "training": training, name: value
            })  # fmt: skip
        except Exception as error:
            results.append((type(error), str(error)))
        else:
            results.append((y, given["running_mean"], given["running_var"]))
    expected, found = results
    if isinstance(expected[0], type):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, equal_nan=True)


# Gradients


GRADIENTS = {
    name: KINDS[name]
    for name in (
        "requires grad", "negated", "zero", "conjugate", "mkldnn", "meta", "sparse", "nested",
        "subclass", "of inference", "int", "strided", "none", "no dimension",
    )
}  # fmt: skip
GRADIENTS["expanded"] = lambda t: torch.ones(()).expand(t.shape)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_every_kind_of_gradient(way, kind, activation, training):
    results = []
    for function in (torch.nn.functional.batch_norm, bncore.torch.batch_norm):
        given = values()
        leaves = [given[name].requires_grad_() for name in ("x", "weight", "bias")]
        if function is bncore.torch.batch_norm:
            y = function(*given.values(), training, activation=activation)
        else:
            y = function(*given.values(), training)
            y = torch.relu(y) if activation else y
        dy = GRADIENTS[kind](torch.arange(24.0).reshape(4, C, 2).cos())
        try:
            results.append(torch.autograd.grad(y, leaves, dy))
        except Exception as error:
            results.append(error)
    expected, found = results
    if isinstance(expected, Exception):
        assert isinstance(found, type(expected)), (found, expected)
        return
    assert [type(t) for t in found] == [type(t) for t in expected]
    if not expected[0].is_meta:
        torch.testing.assert_close(found, expected)


# The operators themselves


CALLS = {
    "train_op": "x weight bias residual where weights",
    "train_backward_op": "dy x moments weight bias residual where weights",
    "infer_op": "x running_mean running_var weight bias residual where weights",
    "infer_backward_op": "dy x running_mean running_var weight bias residual where weights",
    "update_op": "running_mean running_var moments",
}
REST = (1e-5, "relu", 0.1, "propagate", None)
AFTER = {
    "train_op": REST,
    "train_backward_op": (*REST, True),
    "infer_op": REST,
    "infer_backward_op": (*REST, True),
    "update_op": (0.1,),
}
CASES = [(op, name) for op, names in CALLS.items() for name in names.split()]


def operands(op):
    given = values() | {"moments": torch.full((3, C), 8.0, dtype=torch.float64)}
    given |= {"dy": given["x"].cos(), "residual": given["x"] + 1}
    given |= {"where": given["x"] > -1, "weights": given["x"].abs()}
    return {name: given[name] for name in CALLS[op].split()}


def results(found, given):
    """What an operator gives, or what it has changed."""
    if found is None:
        return list(given.values())[:2]
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize(("op", "name"), CASES, ids=lambda v: v)
def test_no_kind_of_tensor_crashes_an_operator(op, name):
    """Each gives the result of plain tensors, or an error."""
    run = getattr(ops, op)
    plain = operands(op)
    expected = results(run(*plain.values(), *AFTER[op]), plain)
    computed = set()
    for kind, made in KINDS.items():
        given = operands(op)
        try:
            given[name] = made(given[name])
        except RuntimeError:
            continue  # PyTorch has no such tensor of these sizes or this dtype
        try:
            found = run(*given.values(), *AFTER[op])
        except Exception:
            continue
        computed.add(kind)
        if kind in ("negated", "strided", "of inference"):
            for a, b in zip(results(found, given), expected, strict=True):
                torch.testing.assert_close(a, b)
    assert "strided" in computed
    assert "negated" in computed or name == "where"  # PyTorch negates no bool
    if name in ("running_mean", "running_var") or (name, op) == ("moments", "train_backward_op"):
        assert not computed & {"requires grad", "has a gradient"}


# Tracers


@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is deprecated")
def test_jit_trace_in_training(way):
    """Sizes are tensors while this traces."""
    x = values()["x"]
    module = bncore.torch.convert(torch.nn.BatchNorm1d(C))
    traced = torch.jit.trace(module, x, check_trace=False)
    module.reset_running_stats()
    assert "bncore::batch_norm_train" in str(traced.inlined_graph)
    found = traced(x)
    mean = module.running_mean.clone()
    module.reset_running_stats()
    assert torch.equal(found, module(x)) and torch.equal(module.running_mean, mean)


def test_functionalize(way):
    given = values()
    statistics = given["running_mean"], given["running_var"]

    def run(x):
        return bncore.torch.batch_norm(x, *statistics, training=True)

    found = torch.func.functionalize(run)(given["x"])
    torch.testing.assert_close(found, run(values()["x"]))


def test_make_fx_keeps_the_operators(way):
    x = values()["x"]
    graph = make_fx(lambda x: bncore.torch.batch_norm(x, None, None, training=True))(x)
    assert "bncore.batch_norm_train.default" in graph.code
    assert torch.equal(graph(x), bncore.torch.batch_norm(x, None, None, training=True))
