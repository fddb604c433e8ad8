"""PyTorch's own samples for batch norm, its OpInfo and ModuleInfo, run on the adapter.

Tolerances are PyTorch's: `torch.testing.assert_close` with its defaults for the dtype.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import bncore.torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what PyTorch's suite imports
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

pytestmark = pytest.mark.needs_torch

(OP,) = (op for op in op_db if op.name == "nn.functional.batch_norm" and not op.variant_test_name)
MODULES = {
    torch.nn.BatchNorm1d: bncore.torch.BatchNorm1d,
    torch.nn.BatchNorm2d: bncore.torch.BatchNorm2d,
    torch.nn.BatchNorm3d: bncore.torch.BatchNorm3d,
}
MODULE_INFOS = [info for info in module_db if info.module_cls in MODULES]
DTYPES = [torch.float32, torch.float64]


def by_dtype(dtype):
    return str(dtype).removeprefix("torch.")


def again(value, dtype=None):
    """A leaf of its own for a tensor, anything else as it is."""
    if isinstance(value, torch.Tensor):
        new = value.detach().clone() if dtype is None else value.detach().to(dtype, copy=True)
        return new.requires_grad_(value.requires_grad)
    return value


def gradients(y, leaves, dtype=None):
    dy = torch.linspace(-1.0, 2.0, max(y.numel(), 1), dtype=dtype or y.dtype)
    return torch.autograd.grad(y, leaves, dy[: y.numel()].reshape(y.shape).to(y.dtype))


def test_the_samples_are_there():
    assert len(MODULE_INFOS) == len(MODULES)
    assert len(list(OP.sample_inputs("cpu", torch.float64))) >= 12


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16], ids=by_dtype)
def test_op_samples(dtype):
    """Values, gradients and running statistics, whether the sample is one of training or not.

    PyTorch's own errors in 16 bits exceed its tolerances, so it computes in float64 there.
    """
    theirs = torch.float64 if dtype.itemsize == 2 else dtype
    for sample in OP.sample_inputs("cpu", dtype, requires_grad=True):
        results = []
        for function, kind in (
            (torch.nn.functional.batch_norm, theirs),
            (bncore.torch.batch_norm, dtype),
        ):
            x, mean, var, weight, bias = (again(t, kind) for t in (sample.input, *sample.args))
            y = function(x, mean, var, weight, bias, **sample.kwargs)
            leaves = [t for t in (x, weight, bias) if t is not None]
            results.append((y, *gradients(y, leaves, dtype), mean, var))
        expected, got = results
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, None if b is None else b.to(dtype))


def test_op_samples_differentiate_twice():
    for sample in OP.sample_inputs("cpu", torch.float64, requires_grad=True):
        mean, var, weight, bias = sample.args
        leaves = [t for t in (sample.input, weight, bias) if t is not None]

        def function(x, *rest, mean=mean, var=var, affine=weight is not None, k=sample.kwargs):
            weight, bias = rest if affine else (None, None)
            mean, var = (None if t is None else t.clone() for t in (mean, var))
            return bncore.torch.batch_norm(x, mean, var, weight, bias, **k)

        if sample.input.numel():
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=by_dtype)
@pytest.mark.parametrize("info", MODULE_INFOS, ids=lambda info: info.formatted_name)
def test_module_inputs(info, dtype, training):
    """Two calls, so that running statistics of the first normalize the second in evaluation."""
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert len(inputs) >= 7
    for sample in inputs:
        given = sample.constructor_input
        theirs = info.module_cls(*given.args, **given.kwargs, dtype=dtype)
        own = MODULES[info.module_cls](*given.args, **given.kwargs, dtype=dtype)
        with torch.no_grad():
            for value in theirs.state_dict().values():
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5)
        assert own.load_state_dict(theirs.state_dict())
        assert repr(own) == f"bncore.torch.{theirs!r}"
        results = []
        for module in (theirs, own):
            module.train(training)
            (x,) = map(again, sample.forward_input.args)
            module(x)
            y = module(x)
            leaves = [x, *module.parameters()]
            results.append((y, *gradients(y, leaves), copy.deepcopy(module.state_dict())))
        expected, got = results
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("info", MODULE_INFOS, ids=lambda info: info.formatted_name)
def test_module_errors(info):
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        given = sample.module_error_input.constructor_input
        module = MODULES[info.module_cls](*given.args, **given.kwargs, dtype=torch.float64)
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module(*sample.module_error_input.forward_input.args)
        assert module.num_batches_tracked == 0
