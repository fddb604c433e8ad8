"""What `BatchNorm` keeps between forward and backward, and for how long."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from layers import a_layer, assert_unchanged, data, snapshot


def test_backward_needs_one_training_forward_each(rng):
    x, dy, _ = data(rng)
    layer = a_layer(rng)
    with pytest.raises(RuntimeError, match="gradients: expected a call of backward"):
        layer.gradients()
    with pytest.raises(RuntimeError, match="a training forward before it, got none"):
        layer.backward(dy)
    layer(x)
    with pytest.raises(ValueError, match="dy: expected shape"):
        layer.backward(dy[:1])
    layer.backward(dy)  # what was kept is still there
    with pytest.raises(RuntimeError, match="got a second backward"):
        layer.backward(dy)
    layer(x)
    layer.eval()(x)
    with pytest.raises(RuntimeError, match="got one in evaluation"):
        layer.backward(dy)
    layer.train()(x)
    with pytest.raises(RuntimeError, match="got a copy"):
        copy.deepcopy(layer).backward(dy)
    layer.reset()
    with pytest.raises(RuntimeError, match="got none"):
        layer.backward(dy)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_holds_what_backward_needs_and_no_longer_than_that(rng, activation, frozen):
    x, dy, residual = data(rng)
    held = weakref.ref(x), weakref.ref(residual)
    layer = a_layer(rng, activation=activation).freeze(frozen)
    y = layer(x, residual)
    del x, residual
    gc.collect()
    # Without an activation no gradient depends on the residual.
    assert [ref() is not None for ref in held] == [True, activation is not None]
    assert all(y is not value for value in layer._saved)
    layer.backward(dy)
    gc.collect()
    assert [ref() for ref in held] == [None, None]


@pytest.mark.parametrize("frozen", [False, True])
def test_an_output_over_what_is_kept_is_refused(rng, frozen):
    x, _, residual = data(rng)
    layer = a_layer(rng, activation="relu").freeze(frozen)
    before = snapshot(layer)
    for name, out in [("x", x), ("x", x[::-1]), ("residual", residual)]:
        with pytest.raises(ValueError, match=f"out: expected memory apart from {name}, which"):
            layer(x, residual, out=out)
    assert_unchanged(layer, before)
    layer.activation = None  # then the residual is not kept
    assert layer(x, residual, out=residual) is residual


class Wrapped:
    """An array-like object over an array's memory, like a tensor of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wrap", [memoryview, Wrapped, lambda array: array.view(np.memmap)])
def test_an_array_like_is_guarded_and_kept_as_the_array_it_is(rng, wrap, frozen):
    x, dy, residual = data(rng)
    layer = a_layer(rng, activation="relu").freeze(frozen)
    before = snapshot(layer)
    with pytest.raises(ValueError, match="out: expected memory apart from residual, which"):
        layer(x, wrap(residual), out=residual)
    with pytest.raises(ValueError, match="out: expected memory apart from x, which"):
        layer(wrap(x), residual, out=x)
    assert_unchanged(layer, before)
    layer(x, residual.tolist())
    dx = layer.backward(dy)
    layer(x, residual)
    np.testing.assert_array_equal(layer.backward(dy), dx)


def test_a_list_as_residual_is_kept_as_it_was_in_forward(rng):
    x, dy, residual = data(rng)
    layer = a_layer(rng, activation="relu")
    layer(x, residual)
    dx = layer.backward(dy)
    values = residual.tolist()
    layer(x, values)
    values.clear()
    np.testing.assert_array_equal(layer.backward(dy), dx)


def test_backward_uses_the_settings_of_its_forward(rng):
    x, dy, _ = data(rng)
    layer, same = a_layer(rng), a_layer(rng)
    same.load_state_dict(layer.state_dict())
    layer(x), same(x)
    layer.eps, layer.activation = 0.5, "relu"
    np.testing.assert_array_equal(layer.backward(dy), same.backward(dy))
    assert np.abs(layer(x) - same(x)).max() > 0.1


BAD_CALLS = {
    "x": lambda layer, x: layer(x[:, :2]),
    "dtype": lambda layer, x: layer(x.astype(int)),
    "residual": lambda layer, x: layer(x, x[:1]),
    "out": lambda layer, x: layer(x, out=x[:1].copy()),
    "kept": lambda layer, x: layer(x, out=x),
    "update_stats": lambda layer, x: layer(x, update_stats=None),
    "single": lambda layer, x: layer(x[:1, :, :1, :1]),
    "nonfinite": lambda layer, x: layer(x * np.inf),
    "evaluation": lambda layer, x: layer.eval()(x[:, :2]),
}


@pytest.mark.parametrize(
    ("bad", "frozen"),
    [
        (bad, frozen)
        for bad in BAD_CALLS
        for frozen in (False, True)
        if not (frozen and bad in ("single", "nonfinite"))  # no statistics of the batch
    ],
)
def test_backward_is_that_of_the_last_forward_that_did_not_fail(rng, frozen, bad):
    x, dy, residual = data(rng)
    layer = a_layer(rng, activation="relu", on_nonfinite="raise").freeze(frozen)
    layer(x, residual)
    dx = layer.backward(dy)
    dweight = layer.dweight
    layer(x, residual)
    before = snapshot(layer)
    with pytest.raises((TypeError, ValueError, FloatingPointError)):
        BAD_CALLS[bad](layer, x)
    assert_unchanged(layer.train(), before)
    np.testing.assert_array_equal(layer.backward(dy), dx)
    np.testing.assert_array_equal(layer.dweight, dweight)
