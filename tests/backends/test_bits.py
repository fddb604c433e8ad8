"""Results have the same bits for any number of threads, instruction set, alignment and layout.

Every result is compared with the NumPy backend's on one thread, so agreement of backends and
instruction sets is part of every test here.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import EDGE_SHAPES, FLOATS, LAYOUTS, SIXTEEN_BITS, THREADED_SHAPES
from variants import FOUND

THREADS = (1, 2, 3, 4, 7)


def counts_of(backend) -> tuple[int, ...]:
    """Numbers of threads to try; the NumPy backend computes on one, whatever it is asked for."""
    return THREADS if backend.name != "numpy" else (7,)


BIT_LAYOUTS = [
    layout
    for layout in LAYOUTS
    if str(layout) in ("contiguous", "channels_last_view", "channels_last", "channels_first")
]


@cache
def reference(shape, dtype, layout_index=0):
    """A case, and all its results from the NumPy backend on one thread."""
    rng = np.random.default_rng(17)
    case = operations.make_case(rng, shape, dtype).laid_out(BIT_LAYOUTS[layout_index])
    with bncore.use_backend("numpy"):
        return case, operations.run_all(case, n_threads=1)


def test_the_comparison_sees_one_bit():
    _, expected = reference((9, 3), np.float32)
    changed = dict(expected)
    changed["train.y"] = changed["train.y"].copy()
    changed["train.y"].view(np.uint32)[4, 1] ^= 1
    assert operations.differences(expected, expected) == []
    assert operations.differences(changed, expected) == ["train.y"]
    assert arrays.differing_bits(changed["train.y"], expected["train.y"]) == 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", THREADED_SHAPES, ids=str)
def test_threads(backend, shape, dtype):
    """Arrays large enough that seven threads all get work; one, two and three channels too."""
    assert math.prod(shape) >= max(THREADS) * arrays.THREAD_VALUES
    case, expected = reference(shape, dtype)
    for n_threads in counts_of(backend):
        got = operations.run_all(case, n_threads=n_threads)
        assert operations.differences(got, expected) == [], n_threads


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("shape", [(3, 2, 90001), (16000, 19), (8, 16, 60, 31)], ids=str)
def test_16_bits(backend, shape, dtype):
    """Threads, layouts and alignments in turn, on work for several threads."""
    for index in range(len(BIT_LAYOUTS)):
        case, expected = reference(shape, dtype, index)
        for n_threads in (1, 4):
            got = operations.run_all(case, n_threads=n_threads)
            assert operations.differences(got, expected) == [], (index, n_threads)
        for elements in (1, 7, 16, 31):
            check_offset(case, expected, "train", elements, [2])
            check_offset(case, expected, "train_backward", elements, [3])


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_edge_shapes_in_16_bits(dtype):
    """Chains that end in 8, 4, or fewer values, with values beside the lanes or not."""
    shapes = [(3, 2, 16 * k + rest) for k in (1, 3, 4, 7, 8, 13) for rest in (0, 5)]
    shapes += [(n, 300) for n in (3, 4, 7, 8, 13, 258)] + [(16 * n + 5, 3) for n in (8, 13)]
    for shape in shapes:
        check_every_backend(operations.make_case(np.random.default_rng(19), shape, dtype), 3)


@pytest.mark.parametrize("index", range(len(BIT_LAYOUTS)), ids=[str(e) for e in BIT_LAYOUTS])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_and_threads(backend, dtype, index):
    case, expected = reference((6, 5, 91, 97), dtype, index)
    for n_threads in counts_of(backend):
        got = operations.run_all(case, n_threads=n_threads)
        assert operations.differences(got, expected) == [], n_threads


def check_every_backend(case, n_threads):
    """Results without NaN, against the NumPy backend's on one thread."""
    with bncore.use_backend("numpy"):
        expected = operations.run_all(case, n_threads=1)
    for variant in FOUND.present:
        with variant.active():
            got = operations.run_all(operations.replace(case), n_threads=n_threads)
        assert operations.differences(got, expected) == [], (case.x.shape, variant)


def moved(array: np.ndarray, elements: int) -> np.ndarray:
    """The same values in the same memory order, `elements` items after a cache line's start."""
    stored, order = arrays.stored_in_order(array)
    return arrays.offset_by(stored, elements).transpose(np.argsort(order))


def check_offset(case, expected, name, elements, threads):
    """An operation with x, dy and out each starting somewhere within a cache line."""
    shifted = case.rebuilt(lambda array: moved(array, elements))
    options = {}
    if name in operations.WRITING:  # output and input need not be aligned alike
        options["out"] = moved(case.x, 31 - elements if case.x.itemsize == 2 else 15 - elements)
    for n_threads in threads:
        results = operations.ALL[name](shifted, n_threads=n_threads, **options)
        for key, value in results.items():
            place = elements, n_threads, name, key
            assert arrays.same_bits(value, expected[f"{name}.{key}"]), place
            assert key not in ("y", "dx") or value is options["out"]


@pytest.mark.parametrize("index", range(len(BIT_LAYOUTS)), ids=[str(e) for e in BIT_LAYOUTS])
@pytest.mark.parametrize("shape", [(5, 6, 31, 33), (3, 7, 5)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_alignments_of_small_arrays(backend, dtype, shape, index):
    """Test 16 offsets within a cache line, on so few values that one thread computes."""
    case, expected = reference(shape, dtype, index)
    for elements in range(16):
        for name in operations.WRITING:
            check_offset(case, expected, name, elements, [7])


@pytest.mark.parametrize("index", range(len(BIT_LAYOUTS)), ids=[str(e) for e in BIT_LAYOUTS])
@pytest.mark.parametrize("shape", [(5, 6, 91, 85), (2, 300, 400)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_alignments_times_threads_times_layouts(backend, dtype, shape, index):
    """Test them on work for seven threads; test_streamed_stores.py has larger arrays.

    Every second layout has the odd offsets, and each offset another number of threads.
    """
    assert math.prod(shape) >= max(THREADS) * arrays.THREAD_VALUES
    case, expected = reference(shape, dtype, index)
    for elements in range(index % 2, 16, 2):
        n_threads = THREADS[(elements + index + FLOATS.index(dtype)) % len(THREADS)]
        for name in ("train", "train_backward", "moments"):
            check_offset(case, expected, name, elements, [n_threads])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("parameter_dtype", [None, np.float32], ids=["no_parameters", "parameters"])
def test_edge_shapes(dtype, parameter_dtype):
    """Lanes, blocks, row blocks, gathered rows and segments, one below, at and above."""
    for shape in [*EDGE_SHAPES, *arrays.RANK_SHAPES, *arrays.EMPTY_SHAPES]:
        case = operations.make_case(
            np.random.default_rng(19), shape, dtype, parameter_dtype=parameter_dtype
        )
        check_every_backend(case, 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["shifted", "outlier_first", "huge", "subnormal", "sorted"])
def test_values(dtype, kind):
    for shape in [(3, 4, 20001), (120011, 2), (9601, 24)]:
        assert math.prod(shape) >= 7 * arrays.THREAD_VALUES
        check_every_backend(operations.make_case(np.random.default_rng(23), shape, dtype, kind), 7)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spoiled", ["x", "dy", "weight", "bias", "mean", "var"])
def test_nan_and_infinity(dtype, spoiled):
    """NaN is in the same places and all other bits are equal; the bits of NaN may differ."""
    rng = np.random.default_rng(31)
    for shape in [(3, 4, 20001), (120011, 2), (9, 40, 17), (31, 5)]:
        case = operations.make_case(rng, shape, dtype)
        values = getattr(case, spoiled).copy()
        flat = values.reshape(-1)
        spoilers = (np.nan, np.inf, -np.inf, -np.nan)  # variances below 0 are refused
        for k, value in enumerate(np.abs(spoilers) if spoiled == "var" else spoilers):
            flat[k :: max(4, flat.size // 3)] = value
        case = operations.replace(case, **{spoiled: values})
        with bncore.use_backend("numpy"):
            expected = operations.run_all(operations.replace(case), n_threads=1)
        assert any(np.isnan(value).any() for value in expected.values())
        expected = {key: arrays.one_nan(value) for key, value in expected.items()}
        for variant in FOUND.present:
            with variant.active():
                got = operations.run_all(operations.replace(case), n_threads=7)
            for key, value in expected.items():
                assert arrays.same_bits(arrays.one_nan(got[key]), value), (shape, key, variant)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5, 6, 31, 33), (4, 3, 30000), (40000, 3)], ids=str)
def test_fused_operations_are_their_parts(backend, shape, dtype):
    """train == moments then normalize; train_backward == grad_sums then grad_input."""
    case = operations.make_case(np.random.default_rng(29), shape, dtype)
    for n_threads in (1, 3):
        got = operations.run_all(case, n_threads=n_threads)
        assert arrays.same_bits(got["train.y"], got["normalize.y"])
        assert arrays.same_bits(got["train.mean"], got["moments.mean"])
        assert arrays.same_bits(got["train.m2"], got["moments.m2"])
        assert arrays.same_bits(got["train_backward.dx"], got["grad_input.dx"])
        assert arrays.same_bits(got["train_backward.dbias"], got["grad_sums.sum_dy"])
        assert arrays.same_bits(got["train_backward.dweight"], got["grad_sums.sum_dy_xhat"])


def test_repeated_runs(backend):
    case, expected = reference((3, 2, 90001), np.float32)
    for _ in range(10):
        assert operations.differences(operations.run_all(case), expected) == []
