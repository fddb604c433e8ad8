"""Arguments of batch norm, and what bncore's functions and bncore.jax make of them."""

from __future__ import annotations

import jax
import numpy as np

import bncore
import bncore.jax as bj

C = 3
LAYOUTS = [
    ((4, C), 1),
    ((4, C, 5), 1),
    ((4, 5, C), -1),
    ((2, C, 4, 5), 1),
    ((2, 4, 5, C), -1),
    ((C, 7, 2), 0),
    ((2, 3, C, 2, 3), 2),
]
FUSIONS = [
    {},
    {"activation": "relu"},
    {"activation": "leaky_relu", "negative_slope": 0.3, "residual": True},
    {"residual": True},
    {"activation": "relu", "residual": True},
]
BY_FUSION = ["plain", "relu", "leaky-residual", "residual", "relu-residual"]


def same(got, want) -> None:
    """Of the same dtype, shape and bits."""
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


class Arrays:
    """Arguments of a call in NumPy, and what bncore makes of them."""

    def __init__(self, rng, shape, axis, dtype, fusion=None, affine=True, parameters=None):
        fusion = fusion or {}
        parameters = parameters or dtype
        self.axis = axis
        self.x, self.dy, residual = (
            rng.standard_normal(shape).astype(dtype) + dtype(2) for _ in range(3)
        )
        channels = shape[axis]
        self.weight, self.bias, self.mean = rng.standard_normal((3, channels)).astype(parameters)
        self.var = rng.uniform(0.5, 2.0, channels).astype(parameters)
        if not affine:
            self.weight = self.bias = None
        self.residual = residual - dtype(2) if fusion.get("residual") else None
        self.fused = {k: v for k, v in fusion.items() if k != "residual"} | {"axis": axis}

    def train(self):
        """y, moments, gradients by x, weight, bias and residual."""
        fused = self.fused | {"residual": self.residual}
        y, moments = bncore.batch_norm_train(self.x, self.weight, self.bias, **fused)
        dresidual = np.empty_like(self.x)
        gradients = bncore.batch_norm_train_backward(
            self.dy, self.x, moments, self.weight, bias=self.bias, dresidual=dresidual, **fused
        )
        return y, moments, (*gradients, dresidual)

    def infer(self):
        """y, gradients by x, weight, bias and residual."""
        fused = self.fused | {"residual": self.residual}
        statistics = self.mean, self.var
        y = bncore.batch_norm_infer(self.x, *statistics, self.weight, self.bias, **fused)
        dresidual = np.empty_like(self.x)
        gradients = bncore.batch_norm_infer_backward(
            self.dy,
            self.x,
            *statistics,
            self.weight,
            bias=self.bias,
            dresidual=dresidual,
            **fused,
        )
        return y, (*gradients, dresidual)

    def trained_by_jax(self, x, weight, bias, residual, dy):
        """The same with bncore.jax."""

        def forward(*given):
            *most, residual = given
            return bj.batch_norm_train(*most, residual=residual, **self.fused)

        y, pull, moments = jax.vjp(forward, x, weight, bias, residual, has_aux=True)
        return y, moments, pull(dy)

    def inferred_by_jax(self, x, weight, bias, residual, dy):
        """The same with bncore.jax."""

        def forward(x, weight, bias, residual):
            return bj.batch_norm_infer(
                x, self.mean, self.var, weight, bias, residual=residual, **self.fused
            )

        y, pull = jax.vjp(forward, x, weight, bias, residual)
        return y, pull(dy)

    @property
    def given(self):
        return self.x, self.weight, self.bias, self.residual, self.dy


def same_gradients(got, want, affine: bool, residual: bool) -> None:
    there = (True, affine, affine, residual)
    for one, expected, asked in zip(got, want, there, strict=True):
        if asked:
            same(one, expected)
        else:
            assert one is None
