"""Tests of the generator of arrays: every case has the properties that its name claims."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
from arrays import FLOATS, LAYOUTS, VALUES
from bncore.backends.numba import threads as numba_threads


@pytest.fixture(params=LAYOUTS, ids=str)
def layout(request):
    return request.param


@pytest.mark.parametrize("shape", arrays.RANK_SHAPES, ids=str)
def test_a_layout_moves_memory_and_keeps_values(rng, layout, shape):
    x = VALUES["normal"](rng, shape, np.float32)
    built = layout.build(x)
    assert not np.shares_memory(built, x)
    assert built.flags.writeable == layout.writable
    assert layout.plain(built).shape == x.shape
    np.testing.assert_array_equal(layout.plain(built), x)
    assert arrays.same_bits(np.ascontiguousarray(layout.plain(built)), x)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("contiguous", lambda x: x.flags.c_contiguous and x.flags.aligned),
        ("channels_last_view", lambda x: x.transpose(0, 2, 3, 1).flags.c_contiguous),
        ("channels_last", lambda x: x.flags.c_contiguous),
        ("channels_first", lambda x: x.flags.c_contiguous),
        ("fortran", lambda x: x.flags.f_contiguous and not x.flags.c_contiguous),
        ("spatial_swapped", lambda x: x.transpose(0, 1, 3, 2).flags.c_contiguous),
        ("negative_axis", lambda x: x.flags.c_contiguous),
        ("read_only", lambda x: not x.flags.writeable),
        ("unaligned", lambda x: not x.flags.aligned),
        ("big_endian", lambda x: x.dtype.byteorder == ">"),
        ("reversed", lambda x: all(s < 0 for s in x.strides)),
        ("every_other", lambda x: x.strides[-1] == 2 * x.itemsize),
        ("window", lambda x: x.base is not None and x.strides[0] > x[0].nbytes),
    ],
)
def test_a_layout_is_what_its_name_says(rng, name, holds):
    layout = {str(entry): entry for entry in LAYOUTS}[name]
    assert holds(layout.build(VALUES["normal"](rng, (3, 4, 5, 6), np.float32)))


def test_every_layout_has_such_a_check():
    marks = test_a_layout_is_what_its_name_says.pytestmark
    assert {case[0] for case in marks[0].args[1]} == {str(layout) for layout in LAYOUTS}


@pytest.mark.parametrize("elements", range(16))
@pytest.mark.parametrize("dtype", FLOATS)
def test_offsets_are_counted_from_a_cache_line(rng, dtype, elements):
    x = VALUES["normal"](rng, (3, 5), dtype)
    moved = arrays.offset_by(x, elements)
    assert moved.ctypes.data % 64 == elements * x.itemsize % 64
    np.testing.assert_array_equal(moved, x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 7), (2, 3, 4, 5)], ids=str)
def test_values_are_finite_and_of_the_type(rng, kind, shape, dtype):
    x = VALUES[kind](rng, shape, dtype)
    assert x.shape == shape
    assert x.dtype == dtype
    assert np.isfinite(x).all()
    again = VALUES[kind](np.random.default_rng(20), shape, dtype)
    np.testing.assert_array_equal(again, VALUES[kind](np.random.default_rng(20), shape, dtype))


def test_values_have_the_property_they_are_named_for(rng):
    shape = (50, 3, 40)
    by_channel = (0, 2)
    shifted = VALUES["shifted"](rng, shape, np.float64)
    assert (abs(shifted.mean(by_channel) / shifted.std(by_channel)) > 9e5).all()
    outlier = VALUES["outlier_first"](rng, shape, np.float32)
    assert (outlier[0, :, 0] == 1e6).all()
    assert np.count_nonzero(outlier > 100) == 3
    ascending = VALUES["sorted"](rng, shape, np.float32).transpose(1, 0, 2).reshape(3, -1)
    assert (np.diff(ascending, axis=1) >= 0).all()
    for dtype in FLOATS:
        small = VALUES["subnormal"](rng, shape, dtype)
        assert (abs(small) < np.finfo(dtype).tiny).all()
        assert np.count_nonzero(small) > 1000


@pytest.mark.parametrize("dtype", FLOATS)
def test_constants_survive_their_type(dtype):
    stored = np.array(arrays.CONSTANTS[dtype], dtype)
    assert np.isfinite(stored).all()
    assert np.count_nonzero(stored) == len(stored) - 2
    assert (abs(stored[stored != 0]) < np.finfo(dtype).tiny).any()


def test_threaded_shapes_have_segments_for_seven_threads():
    assert all(np.prod(shape) > 7 * 32768 for shape in arrays.THREADED_SHAPES)
    assert {1, 2, 3} <= {shape[1] for shape in arrays.THREADED_SHAPES}


def test_empty_shapes_are_empty():
    assert all(np.prod(shape) == 0 for shape in arrays.EMPTY_SHAPES)


def test_memory_order_is_read_from_strides():
    x = np.zeros((2, 3, 4, 5))
    assert arrays.memory_order(x) == (0, 1, 2, 3)
    assert arrays.memory_order(x.transpose(0, 3, 1, 2)) == (0, 2, 3, 1)
    assert arrays.memory_order(x[::-1, :, :, ::-1]) == (0, 1, 2, 3)
    assert arrays.memory_order(np.zeros((2, 1, 3), order="F")) == (2, 0)
    stored, order = arrays.stored_in_order(x.transpose(2, 0, 3, 1))
    assert stored.flags.c_contiguous
    assert order == (1, 3, 0, 2)


def test_bits_are_compared_as_bits():
    one = np.array([1.0, np.nan, 0.0], np.float32)
    assert arrays.same_bits(one, one.copy())
    assert arrays.same_bits(one, one.astype(">f4"))
    assert not arrays.same_bits(one, np.array([1.0, np.nan, -0.0], np.float32))
    assert not arrays.same_bits(one, one.astype(np.float64))
    assert arrays.differing_bits(one, one) == 0
    assert arrays.differing_bits(one, np.nextafter(one, np.float32(9))) >= 2
    with pytest.raises(ValueError, match="cannot compare"):
        arrays.differing_bits(one, one[:2])


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_nan_hides_the_bits_of_nan_and_nothing_else(dtype):
    a = np.array([np.nan, -0.0, np.inf, 1.0], dtype)
    b = np.array([-np.nan, -0.0, np.inf, 1.0], dtype)
    assert not arrays.same_bits(a, b)
    assert arrays.same_bits(arrays.one_nan(a), arrays.one_nan(b))
    assert np.signbit(b[0])  # and the argument stays
    for other in ([1.0, -0.0, np.inf, 1.0], [np.nan, 0.0, np.inf, 1.0], [np.nan, -0.0, -np.inf, 1]):
        assert not arrays.same_bits(arrays.one_nan(a), arrays.one_nan(np.array(other, dtype)))


def test_work_for_a_thread_is_what_the_backends_take_for_it():
    assert arrays.THREAD_VALUES == numba_threads.WORK
