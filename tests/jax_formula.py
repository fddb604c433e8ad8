"""Batch norm in jax.numpy as a user writes it, beside bncore.jax, and arguments for both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import bncore.jax as bj
import tolerances

C = 3
SHAPES = {1: (4, C, 5, 2), -1: (4, 5, 2, C)}
FUSED = [
    {},
    {"activation": "relu"},
    {"activation": "leaky_relu", "negative_slope": 0.3},
]
BY_FUSION = ["plain", "relu", "leaky_relu"]
ALL = ("x", "weight", "bias", "residual")
EPS = 1e-3


def along(x, values, axis):
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def finished(z, given, activation=None, negative_slope=0.01):
    if given["residual"] is not None:
        z = z + given["residual"]
    slope = 0.0 if activation == "relu" else negative_slope
    return z if activation is None else jnp.where(z > 0, z, slope * z)


def formula_train(given, axis, **fused):
    """What bncore.jax.batch_norm_train computes, as a user writes it: y, mean, var."""
    x = given["x"]
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    return formula_infer(given | {"mean": mean, "var": var}, axis, **fused), mean, var


def formula_infer(given, axis, **fused):
    x, weight, bias, mean, var = (given[n] for n in ("x", "weight", "bias", "mean", "var"))
    xhat = (x - along(x, mean, axis)) / jnp.sqrt(along(x, var, axis) + EPS)
    return finished(xhat * along(x, weight, axis) + along(x, bias, axis), given, **fused)


def train(given, axis, **fused):
    y, moments = bj.batch_norm_train(**given, axis=axis, eps=EPS, **fused)
    return y, moments.mean, moments.var


def infer(given, axis, **fused):
    return bj.batch_norm_infer(**given, axis=axis, eps=EPS, **fused)


def arguments(rng, axis, *, statistics=False):
    """Arrays for a call, and one of dy; no z is so near 0 that a rounding decides its sign."""
    shape = SHAPES[axis]
    given = {
        "x": rng.standard_normal(shape) + 1.0,
        "weight": rng.uniform(0.5, 1.5, C),
        "bias": rng.standard_normal(C),
        "residual": rng.standard_normal(shape),
    }
    if statistics:
        given |= {"mean": rng.standard_normal(C), "var": rng.uniform(0.5, 2.0, C)}
        z = formula_infer(given, axis)
    else:
        z = formula_train(given, axis)[0]
    given["residual"] = given["residual"] + np.where(np.abs(z) < 0.01, 0.05, 0.0)
    return given, rng.standard_normal(shape)


def close(got, want, tolerance=tolerances.JAX_FLOAT64) -> None:
    """The same tree, and every array within the tolerance of its largest value."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = np.abs(b).max(initial=1.0)
        assert np.abs(np.asarray(a) - np.asarray(b)).max(initial=0.0) <= tolerance * scale


def loss_of(function, axis, dy, **fused):
    """Compute a scalar that depends nonlinearly on every result of a call."""

    def loss(given):
        results = function(given, axis, **fused)
        y, *statistics = results if isinstance(results, tuple) else (results,)
        total = (y * dy).sum() + 0.1 * (y**3).sum()
        for statistic in statistics:
            total = total + (statistic**2 * jnp.arange(1.0, C + 1)).sum()
        return total

    return loss


PAIRS = {"train": (train, formula_train), "infer": (infer, formula_infer)}
