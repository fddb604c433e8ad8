"""`bncore.torch.moments` and `var_mean`: PyTorch's signature and gradients, and right digits."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import bncore
import bncore.torch
import tolerances
from bncore.torch import moments, var_mean

pytestmark = pytest.mark.needs_torch

DIMS = [None, (), 0, -1, 1, (0, 2), (0, 2, 3), [1, 3], (0, 1, 2, 3), (2,)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NEAR = {dtype: torch.finfo(dtype).eps * 0.501 for dtype in DTYPES[2:]}  # one rounding
NEAR |= {torch.float32: tolerances.VARIANCE_FLOAT32, torch.float64: tolerances.MERGED}
NONE = contextlib.nullcontext()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_results_are_pytorch_s_in_float64(dtype, dim, keepdim):
    x = (torch.randn(4, 5, 6, 3) * 2 + 7).to(dtype).to(memory_format=torch.channels_last)
    for correction in (0, 1, 1.5):
        given = {"dim": dim, "correction": correction, "keepdim": keepdim}
        got = var_mean(x, **given)
        for one, want in zip(got, torch.var_mean(x.double(), **given), strict=True):
            assert one.dtype == dtype and one.shape == want.shape
            torch.testing.assert_close(one.double(), want, atol=0, rtol=NEAR[dtype])


def test_digits_where_pytorch_loses_them():
    x = torch.randn(1 << 17, 3) + 1e4
    exact = x.double().var(0)
    var, _ = var_mean(x, 0)
    assert ((var / exact - 1).abs() <= tolerances.VARIANCE_FLOAT32).all()


@pytest.mark.parametrize("dim", [None, 0, (0, 2)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("correction", [0, 1])
def test_gradients_of_both_results(dim, keepdim, correction):
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def both(x):
        return var_mean(x, dim, correction=correction, keepdim=keepdim)

    assert both(x)[0].grad_fn.name() == "_VarMeanBackward"
    assert torch.autograd.gradcheck(both, x)
    assert torch.autograd.gradgradcheck(both, x)
    for part in (0, 1):
        (ours,) = torch.autograd.grad(both(x)[part].sum(), x)
        (theirs,) = torch.autograd.grad(
            torch.var_mean(x, dim, correction=correction, keepdim=keepdim)[part].sum(), x
        )
        torch.testing.assert_close(ours, theirs)


def test_what_pytorch_computes():
    """Where bncore has nothing to add, results and errors are PyTorch's."""
    x = torch.randn(4, 3)
    for given in (x.to_sparse(), x.cfloat(), torch.empty(0, 3), torch.tensor(2.0), x.to("meta")):
        if given.is_sparse:
            with pytest.raises(NotImplementedError):
                var_mean(given)
            continue
        with pytest.warns(UserWarning, match="degrees of freedom") if given.numel() < 2 else NONE:
            got = var_mean(given)
        if given.is_meta:
            assert got[0].is_meta
            continue
        with pytest.warns(UserWarning) if given.numel() < 2 else NONE:
            torch.testing.assert_close(got, torch.var_mean(given), equal_nan=True)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert var_mean(x[:1], 0)[0].isnan().all()
    torch.testing.assert_close(
        torch.func.vmap(var_mean)(x), torch.var_mean(x, 1), check_stride=False
    )
    compiled = torch.compile(lambda x: var_mean(x, 0), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.var_mean(x, 0))


@pytest.mark.parametrize(("given", "error"), [
    ({"dim": (0, 0)}, RuntimeError),
    ({"dim": 2}, IndexError),
    ({"dim": 1.0}, TypeError),
    ({"correction": "1"}, TypeError),
    ({"keepdim": 1}, TypeError),
])  # fmt: skip
def test_errors_are_pytorch_s(given, error):
    x = torch.randn(4, 3)
    with pytest.raises(error) as ours:
        var_mean(x, **{"dim": 0, **given})
    with pytest.raises(error) as theirs:
        torch.var_mean(x, **{"dim": 0, **given})
    begin, _, _ = str(theirs.value).partition(" - got")  # it counts how arguments were given
    assert str(ours.value).startswith(begin)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.int32, torch.bool], ids=str)
def test_moments_are_those_of_the_functions(dtype):
    x = (torch.randn(6, 4, 5) * 3 + 9).clamp(0, 100).to(dtype)
    found = moments(x)
    wide = x.double().transpose(0, 1).reshape(4, -1)
    np.testing.assert_allclose(found.mean, wide.mean(1), rtol=1e-6)
    assert found.count.tolist() == [30.0] * 4
    assert moments(x.transpose(1, 2), dim=-1) == found
    if dtype == torch.float32:
        assert found == bncore.moments(x.numpy()) == moments(x.requires_grad_())


def test_moments_take_masks_and_weights():
    x = torch.randn(6, 4)
    x[0, 0] = torch.nan
    mask, weights = torch.arange(6) > 2, torch.rand(6, dtype=torch.float64)
    found = moments(x, where=mask[:, None], weights=weights[:, None])
    want = bncore.moments(x.numpy(), where=mask.numpy()[:, None], weights=weights.numpy()[:, None])
    assert found == want
    assert moments(x, nan_policy="omit").count.tolist() == [5.0, 6.0, 6.0, 6.0]
    with pytest.raises(ValueError, match="where: expected a shape that broadcasts"):
        moments(x, where=mask)
