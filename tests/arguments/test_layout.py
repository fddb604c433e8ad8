"""Tests of how arrays lie in memory, for the cases that test_problem.py does not reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bncore.arguments import layout
from views import in_memory_order, numbered, views


def test_an_overlap_that_is_too_hard_to_tell_counts(monkeypatch):
    def too_hard(a, b, max_work=None):
        raise np.exceptions.TooHardError

    monkeypatch.setattr(np, "shares_memory", too_hard)
    assert layout.share_memory(numbered((2,)), numbered((2,)))


@given(views())
def test_the_memory_order_is_the_one_that_numpy_keeps(array):
    order = layout.memory_order(array)
    like = np.empty_like(array, order="K", subok=False)
    assert like.transpose(order).flags.c_contiguous


@given(views(), st.data())
def test_a_block_has_the_values_and_is_a_copy_only_where_it_must_be(array, data):
    order = tuple(data.draw(st.permutations(range(array.ndim))))
    block = layout.block(array, order)
    assert layout.readable(block) and np.array_equal(block, array.transpose(order))
    if array.size:
        assert np.shares_memory(block, array) == layout.readable(array.transpose(order))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_elements_are_the_same_where_address_shape_and_steps_are(order):
    array = in_memory_order(numbered((2, 3, 4)), order)
    assert layout.same_elements(array, array[...])
    assert not layout.same_elements(array, array.copy(order="K"))
    assert not layout.same_elements(array, array[:, ::-1])
    assert not layout.same_elements(array[:1], array[:, :1])
    assert layout.same_elements(array[:1], array[:1][::-1]), "no step is taken along an axis"


@pytest.mark.parametrize(
    ("shape", "strides", "meets"),
    [
        ((3, 4), (32, 8), False),
        ((3, 4), (8, 24), False),
        ((3, 4), (-32, 8), False),
        ((3, 4), (0, 8), True),
        ((3, 4), (24, 8), True),
        ((3, 4), (32, 4), True),
        ((1, 4), (0, 8), False),
        ((0, 4), (0, 8), False),
    ],
    ids=str,
)
def test_elements_that_meet(shape, strides, meets):
    memory = np.zeros(100)[50:]
    array = np.lib.stride_tricks.as_strided(memory, shape, strides)
    assert layout.meets_itself(array) == meets
