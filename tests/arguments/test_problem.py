"""The canonical shape: which memory orders need no copy, what a copy keeps, where results go."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bncore.arguments import layout
from bncore.arguments.problem import Problem
from views import in_memory_order, numbered, views


def channel_values(array: np.ndarray, axis: int) -> list[list[float]]:
    return [sorted(row.ravel().tolist()) for row in np.moveaxis(array, axis, 0)]


@given(views(), st.data())
def test_any_array_becomes_outer_channels_inner(array, data):
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    p = Problem(array, axis)
    assert p.x.ndim == 3 and p.x.flags.c_contiguous and p.x.flags.aligned and p.x.dtype.isnative
    assert p.channels == array.shape[axis] == p.x.shape[1]
    assert p.count == p.x.shape[0] * p.x.shape[2]
    assert channel_values(p.x, 1) == channel_values(array, axis)


@given(views(), st.data())
def test_a_result_lies_in_the_memory_order_of_x(array, data):
    p = Problem(array, data.draw(st.integers(0, array.ndim - 1)))
    output = p.output(None)
    np.copyto(output.values, p.x)
    y = output.finish()
    assert y.shape == array.shape and y.dtype == np.float64 and (y == array).all()
    like = np.empty_like(array, dtype=np.float64, order="K", subok=False)
    assert y.strides == like.strides


@given(views(), st.data())
def test_dy_and_out_of_any_layout_match_x_value_for_value(x, data):
    shape = x.shape
    order = data.draw(st.permutations(range(x.ndim)))
    dy = in_memory_order(numbered(shape) + 0.5, order)
    p = Problem(x, data.draw(st.integers(0, x.ndim - 1)))
    gradient, source = p.gradient(dy)
    assert layout.same_elements(source, dy)
    output = p.output(np.empty_like(dy))
    np.copyto(output.values, gradient)
    assert (output.finish() == dy).all()
    kept = p.output(None)
    np.copyto(kept.values, gradient)
    assert (kept.finish() == dy).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 1, 5), (2, 3, 1, 1)])
def test_a_permuted_block_is_not_copied(shape, order):
    x = in_memory_order(numbered(shape), order)
    for axis in range(4):
        p = Problem(x, axis)
        assert np.shares_memory(p.x, x)
        # In memory order, the axes that are not the channel axis are the outer ones and the inner.
        at = order.index(axis)
        if shape[axis] > 1:
            outer = math.prod(shape[i] for i in order[:at])
            inner = math.prod(shape[i] for i in order[at + 1 :])
            assert p.x.shape == (outer, shape[axis], inner)
        dy = in_memory_order(numbered(shape), order)
        assert np.shares_memory(p.gradient(dy)[0], dy)
        out = in_memory_order(numbered(shape), order)
        assert np.shares_memory(p.output(out).values, out)


def test_nchw_shaped_view_of_nhwc_memory_is_rows():
    x = np.moveaxis(numbered((2, 4, 5, 3), np.float32), -1, 1)
    assert x.shape == (2, 3, 4, 5)
    p = Problem(x, 1)
    assert p.x.shape == (40, 3, 1) and np.shares_memory(p.x, x)


def test_strides_of_axes_of_size_one_mean_nothing():
    x = np.lib.stride_tricks.as_strided(numbered((2, 3, 4)), (2, 1, 3, 4, 1), (96, 8, 32, 8, 4096))
    p = Problem(x, 2)
    assert p.x.shape == (2, 3, 4) and np.shares_memory(p.x, x)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(numbered((4, 6))[:, ::2], id="step"),
        pytest.param(numbered((4, 3))[::-1], id="negative"),
        pytest.param(np.broadcast_to(numbered((3,)), (4, 3)), id="broadcast"),
        pytest.param(numbered((4, 3)).astype(">f8"), id="big-endian"),
    ],
)
def test_what_is_no_native_block_is_copied(x):
    p = Problem(x, 1)
    assert not np.shares_memory(p.x, x)
    assert channel_values(p.x, 1) == channel_values(x, 1)


def test_rank_goes_to_the_limit_of_numpy():
    shape = (2, 3, *[1] * 60, 2, 2)
    p = Problem(numbered(shape), 1)
    assert p.x.shape == (2, 3, 4) and p.shape == shape


def test_array_likes_are_read():
    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return numbered((4, 3))

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another device")

    class Sub(np.ndarray):
        pass

    for x in ([[0.0, 1.0, 2.0]] * 4, Wrapped(), numbered((4, 3)).view(Sub)):
        assert type(Problem(x, 1).x) is np.ndarray
    with pytest.raises(
        TypeError, match=r"^x: expected an array, got Broken \(on another device\)$"
    ):
        Problem(Broken(), 1)


# ------------------------------------------------------------------------------------ overlap rules


def test_out_may_be_x_or_dy_under_another_name():
    x, dy = numbered((4, 3)), numbered((4, 3))
    p = Problem(x, 1)
    p.output(x[...], dy)
    p.output(dy[...], dy)
    p.output(x.view(">f8"), dy)  # the same bytes, read another way: through a temporary


@pytest.mark.parametrize(
    "out",
    [
        pytest.param(lambda memory: memory[1:13].reshape(4, 3), id="shifted"),
        pytest.param(lambda memory: memory[:12].reshape(3, 4).T, id="transposed"),
        pytest.param(lambda memory: memory[:12].reshape(4, 3)[::-1], id="reversed"),
        pytest.param(lambda memory: memory[:24:2].reshape(4, 3), id="interleaved"),
    ],
)
def test_out_may_not_be_a_part_of_x(out):
    memory = numbered((40,))
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart"):
        Problem(memory[:12].reshape(4, 3), 1).output(out(memory))


def test_out_may_lie_between_the_values_of_x():
    memory = numbered((4, 6))
    p = Problem(memory[:, ::2], 1)
    output = p.output(memory[:, 1::2])
    output.values[...] = -1.0
    output.finish()
    assert (memory[:, 1::2] == -1.0).all() and (memory[:, ::2] >= 0.0).all()


def test_out_keeps_its_byte_order():
    p = Problem(numbered((4, 3)), 1)
    out = np.zeros((4, 3), ">f8")
    output = p.output(out)
    np.copyto(output.values, p.x)
    assert output.finish() is out
    assert out.dtype == np.dtype(">f8") and (out == numbered((4, 3))).all()


# --------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", ">f4", ">f8"])
def test_parameters_of_any_float_dtype_are_read_as_float64(dtype):
    p = Problem(numbered((4, 3)), 1)
    weight = np.array([0.5, 1.0, 2.0, 9.0, 4.0, 9.0], dtype)[::2]
    given = p.parameter("weight", weight)
    assert given.values.dtype == np.float64 and given.values.flags.c_contiguous
    assert given.values.tolist() == [0.5, 2.0, 4.0]
    gradient = p.parameter_gradient(np.array([0.5, 1e300, -2.0]), given)
    assert gradient.dtype == np.dtype(dtype).newbyteorder("=")
    assert gradient[0] == 0.5 and gradient[2] == -2.0
    assert p.parameter_gradient(np.zeros(3), p.optional("weight", None)).dtype == np.float64


def test_an_unaligned_parameter_is_copied():
    memory = np.zeros(25, np.uint8)
    weight = memory[1:].view(np.float64)
    given = Problem(numbered((4, 3)), 1).parameter("weight", weight)
    assert given.values.flags.aligned and given.source is weight
