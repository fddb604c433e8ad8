"""Gradients with masks and weights against central differences of bncore's own forward calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bncore
import tolerances
import variants
import weight_cases
from differences import stencil_difference

SHAPE = (5, 4, 3)
EPS = 0.1
STEP = 3e-3  # of y, whose derivatives are large in groups of two and three values

Forward = Callable[..., np.ndarray]
Backward = Callable[..., tuple[np.ndarray, ...]]


def batch_norm(**options: Any) -> tuple[Forward, Backward]:
    """Return y of (x, weight, bias), and the gradients of the sum of r * y."""

    def forward(x, weight, bias):
        return bncore.batch_norm_train(x, weight, bias, eps=EPS, **options)[0]

    def backward(r, x, weight, bias):
        keys = ("where", "weights", "nan_policy")
        moments = bncore.moments(x, **{k: options[k] for k in keys if k in options})
        given = options | {"bias": bias, "eps": EPS}
        return bncore.batch_norm_train_backward(r, x, moments, weight, **given)

    return forward, backward


def of(name: str, *extra: Any) -> Callable[..., tuple[Forward, Backward]]:
    """Return the same for another norm; `extra` follows x, or x and moments."""
    norm, back = getattr(bncore, name), getattr(bncore, f"{name}_backward")

    def both(**options: Any) -> tuple[Forward, Backward]:
        def forward(x, weight, bias):
            return norm(x, *extra, weight, bias, eps=EPS, **options)[0]

        def backward(r, x, weight, bias):
            moments = norm(x, *extra, eps=EPS, **options)[1]
            return back(r, x, moments, *extra, weight, eps=EPS, **options)

        return forward, backward

    return both


NORMS = {
    "batch": batch_norm,
    "ghost": of("ghost_batch_norm", 3),
    "group": of("group_norm", 2),
    "one_group": of("group_norm", 1),
    "instance": of("instance_norm"),
    "layer": of("layer_norm"),
}
KINDS = [*weight_cases.KINDS, "omitted_nan"]


def check(rng, norm, x, counts: weight_cases.Counts, fill: float | None, **fused: Any) -> None:
    forward, backward = norm(**counts.given(), fill=fill, **fused)
    size = SHAPE[-1] if norm is NORMS["layer"] else SHAPE[1]
    weight, bias = rng.uniform(0.5, 2.0, size), rng.standard_normal(size)
    r = rng.standard_normal(SHAPE)
    r[np.isnan(forward(x, weight, bias))] = 0.0  # x is NaN, or nothing of the group counts

    def loss(*arguments):
        y = forward(*arguments)
        return float((r * np.where(r == 0, 0.0, y)).sum())

    arguments = [x, weight, bias]
    for position, gradient in enumerate(backward(r, *arguments)):
        largest = max(np.abs(gradient).max(), 1.0)
        for index in np.ndindex(gradient.shape):
            if position == 0 and np.isnan(x[index]):
                assert gradient[index] == 0.0
                continue
            numeric = stencil_difference(loss, arguments, position, index, STEP)
            assert abs(numeric - gradient[index]) <= tolerances.CENTRAL_DIFFERENCES * largest


@variants.taking_turns(norm=NORMS, kind=KINDS, fill=[None, 0.0])
def test_central_differences(backend, rng, norm, kind, fill):
    x = rng.standard_normal(SHAPE)
    if kind == "omitted_nan":
        x, counts = weight_cases.omitting(rng, x)
    else:
        counts = weight_cases.KINDS[kind](rng, SHAPE)
    check(rng, NORMS[norm], x, counts, fill)


@pytest.mark.parametrize("fill", [None, 0.0], ids=["formula", "fill"])
@pytest.mark.parametrize("kind", ["shared_mask", "full_weights"])
def test_central_differences_of_leaky_relu_and_residual(backend, rng, kind, fill):
    """The values before the activation keep away from 0, where the gradient is not continuous."""
    x = rng.standard_normal(SHAPE)
    residual = np.where(rng.random(SHAPE) < 0.5, 20.0, -20.0)
    fused = {"activation": "leaky_relu", "negative_slope": 0.25, "residual": residual}
    check(rng, batch_norm, x, weight_cases.KINDS[kind](rng, SHAPE), fill, **fused)


@pytest.mark.parametrize("kind", ["shared_mask", "full_weights"])
def test_the_gradient_of_the_residual(backend, rng, kind):
    x, dy = rng.standard_normal((2, *SHAPE))
    counts = weight_cases.KINDS[kind](rng, SHAPE)
    m = bncore.moments(x, **counts.given())
    for fill in (None, 0.0):
        dresidual = np.empty_like(x)
        bncore.batch_norm_train_backward(
            dy, x, m, residual=x, dresidual=dresidual, fill=fill, **counts.given()
        )
        assert (dresidual == (dy if fill is None else np.where(counts.w == 0, 0.0, dy))).all()
