"""What counts in bncore.torch: bad input, channels without a value, and masks of every kind."""

from __future__ import annotations

import re

import pytest
import torch

import bncore.torch
from bncore.torch import BatchNorm1d

pytestmark = pytest.mark.needs_torch

C = 3
X = torch.arange(60.0).reshape(4, C, 5).sin()
BAD = {
    "dtype of mask": ({"where": torch.ones(5)}, TypeError, "where: expected bool, got"),
    "no tensor": ({"where": [True]}, TypeError, "where: expected a tensor, got "),
    "shape of mask": (
        {"where": torch.ones(4, C, 4, dtype=torch.bool)},
        ValueError,
        "where: expected a shape that broadcasts against x's (4, 3, 5), got (4, 3, 4)",
    ),
    "more dimensions": (
        {"weights": torch.ones(1, 4, C, 5)},
        ValueError,
        "weights: expected a shape that broadcasts against x's (4, 3, 5), got (1, 4, 3, 5)",
    ),
    "complex": ({"weights": torch.ones(5).cfloat()}, TypeError, "weights: expected real numbers"),
    "negative": (
        {"weights": torch.tensor([[1.0], [-2.0], [1.0]])},
        ValueError,
        "weights: expected finite numbers >= 0, got -2",
    ),
    "NaN": (
        {"weights": torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0])},
        ValueError,
        "weights: expected finite numbers >= 0, got nan at (0, 0, 1)",
    ),
    "infinite": (
        {"weights": torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0])},
        ValueError,
        "weights: expected finite numbers >= 0, got inf at (0, 0, 1)",
    ),
    "policy": (
        {"nan_policy": "skip"},
        ValueError,
        "nan_policy: expected None, 'propagate', 'omit'",
    ),
    "fill": ({"fill": "0"}, TypeError, "fill: expected a real number"),
    "gradient": (
        {"weights": torch.ones(5, requires_grad=True)},
        RuntimeError,
        "not differentiable with respect to argument 'weights'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(way, name):
    given, kind, text = BAD[name]
    layer = BatchNorm1d(C)
    with pytest.raises(kind) as caught:
        layer(X, **given)
    assert text in str(caught.value)
    assert layer.num_batches_tracked == 0 and not layer.running_mean.any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_nan_that_counts_is_refused(way, memory_format):
    x = torch.randn(4, C, 5, 2).to(memory_format=memory_format)
    x[3, 1, 0, 0] = x[2, 2, 4, 1] = torch.nan
    where = torch.ones(4, 1, 1, 1, dtype=torch.bool)
    call = {"training": True, "nan_policy": "raise"}
    with pytest.raises(ValueError, match=r"x: expected no NaN .* got NaN in channel 2$"):
        bncore.torch.batch_norm(x, None, None, **call)
    where[2] = False
    with pytest.raises(ValueError, match=r"got NaN in channel 1$"):
        bncore.torch.batch_norm(x, None, None, where=where, **call)
    where[3] = False
    y = bncore.torch.batch_norm(x, None, None, where=where, **call)
    assert y[:2].isfinite().all()


FEW = r"^input: expected a sum of weights per channel > correction = 1"


def test_channels_without_a_value(way):
    """They leave the running statistics as they are, and one value alone cannot move them."""
    layer = BatchNorm1d(C)
    x = X.clone().requires_grad_()
    where = torch.ones(4, C, 1, dtype=torch.bool)
    where[:, 1] = False
    y = layer(x, where, fill=0.5)
    assert (y[:, 1] == 0.5).all() and y.isfinite().all()
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert not dx[:, 1].any() and dx[:, 0].any() and dx.isfinite().all()
    assert layer.running_mean[1] == 0.0 and layer.running_var[1] == 1.0
    assert layer.running_mean[0] != 0.0
    assert layer(x, where)[:, 1].isnan().all()
    single = torch.zeros(4, 1, 5, dtype=torch.bool)
    single[0, 0, 0] = True
    before = [one.clone() for one in layer.buffers()]
    with pytest.raises(ValueError, match=FEW + ", got 1 for channel 0"):
        layer(x, single)
    for above in (2.0**-50, 9e-6):
        weights = torch.full((4, 1, 5), 0.05, dtype=torch.float64) * (1.0 + above)
        with pytest.raises(ValueError, match=FEW + " by more than rounding, got 1"):
            layer(x, weights=weights)
    assert all(map(torch.equal, layer.buffers(), before))
    y = bncore.torch.batch_norm(x, None, None, training=True, where=single)
    assert not y[0, :, 0].any()
    layer(x, weights=torch.full((4, 1, 5), 0.05, dtype=torch.float64) * (1.0 + 2e-5))
    assert layer.num_batches_tracked == 3 and layer.running_var.isfinite().all()


def test_a_mask_in_the_place_of_the_residual(way):
    layer = bncore.torch.BatchNormAddReLU(C)
    with pytest.raises(RuntimeError, match=r"^residual: expected Float .* where=mask\)$"):
        layer(X, torch.ones_like(X, dtype=torch.bool))


def test_a_negative_running_variance_is_refused(way):
    layer = BatchNorm1d(C).eval()
    layer.running_var[1] = -0.5
    text = re.escape("var: expected variances >= 0, got -0.5 for channel 1")
    with pytest.raises(ValueError, match=text):
        layer(X)
    with torch.no_grad(), pytest.raises(ValueError, match=text):
        layer(X)


def test_what_goes_to_pytorch_has_no_weights(way):
    where = torch.ones(5, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="where, weights, nan_policy, fill: expected"):
        bncore.torch.batch_norm(X.to_sparse(), None, None, training=True, where=where)
    mask = where.to_sparse()
    with pytest.raises(NotImplementedError, match="where, weights, nan_policy, fill: expected"):
        bncore.torch.batch_norm(X, None, None, training=True, where=mask)


def test_a_mask_of_other_bytes_and_of_any_strides(way):
    """True may be any byte but 0, and a view is a mask, too."""
    x = torch.randn(4, C, 6)
    odd = torch.tensor([2, 0, 255, 1, 0, 7], dtype=torch.uint8).view(torch.bool)
    wanted = torch.tensor([True, False, True, True, False, True])
    views = [odd, wanted.repeat(4, 2)[:, :6].unsqueeze(1), wanted.flip(0).flip(0)]
    views.append(wanted.repeat_interleave(2)[::2].expand(4, C, 6))
    expected = bncore.torch.batch_norm(x, None, None, training=True, where=wanted)
    for mask in views:
        assert torch.equal(
            bncore.torch.batch_norm(x, None, None, training=True, where=mask), expected
        )
