"""An array that no kernel can take as it is gets copied once, by every function."""

from __future__ import annotations

import numpy as np
import pytest

import allocations
import bncore
import calls

SHAPE = (8, 6, 16, 16)
LEAST = 1 << 12  # bytes: what is smaller is no copy of an array, nor of a part of it


def with_gaps(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def foreign(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def of_subclass(array: np.ndarray) -> np.ndarray:
    return array.view(type("Plain", (np.ndarray,), {}))


COPIED = {"gaps": with_gaps, "foreign": foreign}  # no kernel takes these
CASES = [(name, argument) for name, argument in calls.pairs(calls.DATA) if name != "stream_moments"]


def extra_bytes(call, arguments, argument, change) -> int:
    """Return how many more bytes a call allocates when one argument is changed."""
    changed = arguments | {argument: change(arguments[argument])}
    usual, more = (
        allocations.bytes_of_large(lambda given=given: call(given), LEAST)
        for given in (arguments, changed)
    )
    return more - usual


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_one_copy(name, argument):
    call = calls.CALLS[name]
    arguments = call.arguments(SHAPE, np.float32)
    for change in COPIED.values():
        copied = extra_bytes(call, arguments, argument, change)
        assert copied <= 1.02 * arguments[argument].nbytes, change


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_an_array_of_a_subclass_is_not_copied(name, argument):
    call = calls.CALLS[name]
    assert extra_bytes(call, call.arguments(SHAPE), argument, of_subclass) < LEAST


class Counting:
    """An array_like that counts how often it is asked for its array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.asked = array, 0

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.asked += 1
        return self.array


@pytest.mark.parametrize(("name", "argument"), list(calls.pairs(calls.DATA, calls.PARAMETERS)))
def test_an_argument_is_asked_once(name, argument):
    """If it gave another array the next time, the call would find a mistake after writing y."""
    call = calls.CALLS[name]
    arguments = call.arguments()
    if argument not in arguments:
        pytest.skip("the usual call leaves it out")
    counting = Counting(arguments[argument])
    call(arguments | {argument: counting})
    assert counting.asked == 1


@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip", "raise"])
def test_a_layer_copies_once(on_nonfinite):
    x = calls.good_arguments(SHAPE, np.float32)["x"]
    layer, out = bncore.BatchNorm(SHAPE[1], on_nonfinite=on_nonfinite), np.empty_like(x)
    layer(x)
    for given in (x, with_gaps(x), foreign(x)):
        asked = allocations.bytes_of_large(lambda given=given: layer(given, out=out), LEAST)
        assert asked <= (given is not x) * 1.02 * x.nbytes
