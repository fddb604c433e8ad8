"""PyTorch in float64 as a second oracle; `make test-torch` installs it and runs this."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import tolerances

pytestmark = pytest.mark.needs_torch

# Shape, eps and momentum of PyTorch's own sample inputs for batch_norm and BatchNorm1d/2d/3d.
SAMPLES = [
    ((5, 5, 5), 0.6, 0.5),
    ((3, 2, 4), 1e-5, 0.1),
    ((3, 2, 3, 4), 0.5, 0.3),
    ((3, 1), 1e-5, 0.0),
    ((2, 1), 1e-5, 0.1),
    ((4, 10), 1e-3, 0.3),
    ((4, 5, 3), 1e-3, 0.3),
    ((2, 3, 6, 6), 1e-3, 0.8),
    ((2, 3, 4, 4, 4), 1e-3, 0.7),
    ((5, 33, 27, 27), 1e-5, 0.1),
]


def close(got: np.ndarray, want) -> None:
    want = want.detach().numpy()
    scale = np.abs(want).max(initial=1.0)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0.0) <= tolerances.TORCH_FLOAT64 * scale


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape, eps, momentum", SAMPLES, ids=str)
def test_against_torch(backend, rng, shape, eps, momentum, affine):
    import torch

    channels = shape[1]
    x, dy = rng.standard_normal(shape) + 3.0, rng.standard_normal(shape)
    weight, bias = rng.standard_normal((2, channels)) if affine else (None, None)
    running_mean, running_var = rng.standard_normal(channels), rng.random(channels) + 0.5
    tensors = [None if a is None else torch.tensor(a, requires_grad=True) for a in (weight, bias)]
    tx = torch.tensor(x, requires_grad=True)
    theirs = torch.tensor(running_mean), torch.tensor(running_var)

    evaluated = torch.nn.functional.batch_norm(tx, *theirs, *tensors, False, momentum, eps)
    evaluated.backward(torch.tensor(dy))
    close(bncore.batch_norm_infer(x, running_mean, running_var, weight, bias, eps=eps), evaluated)
    dx, dweight, dbias = bncore.batch_norm_infer_backward(
        dy, x, running_mean, running_var, weight, eps=eps
    )
    close(dx, tx.grad)
    if affine:
        close(dweight, tensors[0].grad)
        close(dbias, tensors[1].grad)
    for tensor in (tx, *tensors):
        if tensor is not None:
            tensor.grad = None

    trained = torch.nn.functional.batch_norm(tx, *theirs, *tensors, True, momentum, eps)
    trained.backward(torch.tensor(dy))
    y, moments = bncore.batch_norm_train(x, weight, bias, eps=eps)
    close(y, trained)
    bncore.update_running_stats(running_mean, running_var, moments, momentum=momentum)
    close(running_mean, theirs[0])
    close(running_var, theirs[1])
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, moments, weight, eps=eps)
    close(dx, tx.grad)
    if affine:
        close(dweight, tensors[0].grad)
        close(dbias, tensors[1].grad)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
@pytest.mark.parametrize("shape", [(5, 5, 5), (4, 10), (2, 3, 6, 6), (5, 33, 27, 27)], ids=str)
def test_fused_against_torch(backend, rng, shape, activation):
    """Autograd through batch norm, addition and activation."""
    import torch

    x, dy, residual = rng.standard_normal((3, *shape))
    weight, bias = rng.standard_normal((2, shape[1]))
    tensors = tx, tweight, tbias, tresidual = [
        torch.tensor(a, requires_grad=True) for a in (x, weight, bias, residual)
    ]
    fused = {"activation": activation, "negative_slope": 0.2, "residual": residual}
    mean, var = rng.standard_normal(shape[1]), rng.random(shape[1]) + 0.5
    for training in (True, False):
        statistics = (None, None) if training else (torch.tensor(mean), torch.tensor(var))
        z = torch.nn.functional.batch_norm(tx, *statistics, tweight, tbias, training) + tresidual
        if activation == "relu":
            theirs = torch.relu(z)
        else:
            theirs = torch.nn.functional.leaky_relu(z, 0.2) if activation else z
        theirs.backward(torch.tensor(dy))
        dresidual = np.empty_like(x)
        if training:
            y, moments = bncore.batch_norm_train(x, weight, bias, **fused)
            gradients = bncore.batch_norm_train_backward(
                dy, x, moments, weight, bias=bias, dresidual=dresidual, **fused
            )
        else:
            y = bncore.batch_norm_infer(x, mean, var, weight, bias, **fused)
            gradients = bncore.batch_norm_infer_backward(
                dy, x, mean, var, weight, bias=bias, dresidual=dresidual, **fused
            )
        close(y, theirs)
        for got, tensor in zip((*gradients, dresidual), tensors, strict=True):
            close(got, tensor.grad)
            tensor.grad = None
