"""What counts: masks and weights of every kind for the tests, and exact results with them.

Arrays have their channels on axis 1 here, as in `oracle.py`; a layout lets the arguments follow x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import oracle
from arrays import LAYOUTS, Layout

Rng = np.random.Generator
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """The arguments that say what counts, and the weight that each value of x gets from them."""

    where: np.ndarray | None
    weights: np.ndarray | None
    omit_nan: bool
    w: np.ndarray

    def given(self, layout: Layout = LAYOUTS[0]) -> dict[str, Any]:
        """Return the arguments, in x's layout."""
        arrays = {"where": self.where, "weights": self.weights}
        found: dict[str, Any] = {k: layout.build(v) for k, v in arrays.items() if v is not None}
        return found | ({"nan_policy": "omit"} if self.omit_nan else {})


def shared(shape: Shape) -> Shape:
    """Return the shape of an array that all channels share."""
    return (shape[0], 1, *shape[2:])


def _mask(rng: Rng, shape: Shape) -> np.ndarray:
    """A quarter is False, but not the first two values of a channel, whatever the layout."""
    mask = rng.random(shape) < 0.75
    mask[:2] = True
    return mask


def _numbers(rng: Rng, shape: Shape) -> np.ndarray:
    return np.where(_mask(rng, shape), rng.uniform(0.1, 3.0, shape), 0.0)


KINDS: dict[str, Callable[[Rng, Shape], Counts]] = {}


def kind(make: Callable[[Rng, Shape], tuple[Any, Any, np.ndarray]]) -> None:
    """Add a kind of counts; `make` returns where, weights and a first version of w."""

    def counts(rng: Rng, shape: Shape) -> Counts:
        where, weights, w = make(rng, shape)
        return Counts(where, weights, False, np.broadcast_to(w, shape).astype(np.float64))

    KINDS[make.__name__] = counts


@kind
def shared_mask(rng, shape):
    mask = _mask(rng, shared(shape))
    return mask, None, mask


@kind
def full_mask(rng, shape):
    mask = _mask(rng, shape)
    return mask, None, mask


@kind
def shared_weights(rng, shape):
    numbers = _numbers(rng, shared(shape))
    return None, numbers, numbers


@kind
def full_weights(rng, shape):
    numbers = _numbers(rng, shape)
    return None, numbers, numbers


@kind
def both(rng, shape):
    mask, numbers = _mask(rng, shared(shape)), _numbers(rng, shape)
    return mask, numbers, mask * numbers


@kind
def integers_of_samples(rng, shape):
    numbers = rng.integers(1, 5, (shape[0],) + (1,) * (len(shape) - 1))
    return None, numbers, numbers


def omitting(rng: Rng, x: np.ndarray) -> tuple[np.ndarray, Counts]:
    """Return x with NaN in some places, and counts that omit them."""
    holes = ~_mask(rng, x.shape)
    x = np.where(holes, np.array(np.nan, x.dtype), x)
    return x, Counts(None, None, True, (~holes).astype(np.float64))


# ----------------------------------------------------------------------------------- exact results


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    moments: list[oracle.ExactMoments],
    weight: np.ndarray | None,
    *,
    eps: float = 1e-5,
    filled: bool = False,
) -> oracle.Backward:
    """Gradients with weights w: dx = a * (dy - w/W * (sum dy + xhat * sum dy*xhat)).

    Where w is 0, nothing of x or dy enters if y is a constant there, or dy is 0.
    """
    skipped = (w == 0) & (filled | (dy == 0))
    parts = oracle.centered(np.where(skipped, x.dtype.type(0), x), moments, eps)
    xhat = np.where(skipped, 0, parts.xhat)
    g = np.where(skipped, 0, dy.astype(np.longdouble))
    axes = (0, *range(2, x.ndim))
    column = (1, -1) + (1,) * (x.ndim - 2)
    dbias, dweight = g.sum(axes), (g * xhat).sum(axes)
    gamma = np.ones(x.shape[1]) if weight is None else np.asarray(weight, np.float64)
    factor = gamma.reshape(column) * parts.invstd
    share = w / np.array([oracle.longdouble(m.count) for m in moments]).reshape(column)
    terms = [
        factor * g,
        -factor * share * xhat * dweight.reshape(column),
        -factor * share * np.broadcast_to(dbias.reshape(column), x.shape),
    ]
    largest = np.maximum.reduce([np.abs(term) for term in terms])
    spacing = np.abs(g).sum(axes) * (parts.invstd * oracle._mean_spacing(moments, x.ndim)).ravel()
    return oracle.Backward(
        sum(terms[1:], terms[0]), largest, dweight, dbias,
        np.abs(g * xhat).sum(axes), np.abs(g).sum(axes), spacing,
    )  # fmt: skip
