"""In any rank, axis and memory order, results have the same values and x's memory order."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

import arrays
import bncore
import operations
import oracle
import tolerances
import variants
from arrays import FLOATS, LAYOUTS, RANK_SHAPES, VALUES

WRITABLE = [layout for layout in LAYOUTS if layout.writable]


@pytest.fixture(params=LAYOUTS, ids=str)
def layout(request):
    return request.param


def in_place_result(results: operations.Results) -> np.ndarray:
    return results["y"] if "y" in results else results["dx"]


@cache
def expected(
    shape: arrays.Shape, dtype: type
) -> tuple[operations.Case, oracle.Forward, oracle.Backward]:
    """Make a plain case, and the exact results of forward and backward."""
    plain = operations.make_case(np.random.default_rng(37), shape, dtype)
    exact = oracle.channel_moments(plain.x)
    forward = oracle.forward(plain.x, exact, plain.weight, plain.bias, plain.eps)
    return plain, forward, oracle.backward(plain.dy, plain.x, exact, plain.weight, plain.eps)


@variants.taking_turns(shape=[*RANK_SHAPES, (3, 5, 17, 19), (40, 8)], layout=LAYOUTS, dtype=FLOATS)
def test_every_layout_gives_the_plain_result(backend, shape, layout, dtype):
    """The bits are the same if a channel's values keep their order; else they fit the gates."""
    plain, forward, backward = expected(shape, dtype)
    case = plain.laid_out(layout)
    results = operations.plain_results(case, operations.run_all(case))
    assert all(value.dtype.isnative for value in results.values())
    if layout.same_order:
        assert operations.differences(results, operations.run_all(plain)) == []
    error = oracle.forward_error(results["train.y"], forward)
    assert error <= tolerances.forward(dtype)
    error = oracle.gradient_error(results["train_backward.dx"], backward)
    assert error <= tolerances.gradient(dtype)


@pytest.mark.parametrize("shape", RANK_SHAPES, ids=str)
def test_results_have_the_memory_order_of_x(backend, rng, shape):
    plain = operations.make_case(rng, shape)
    for layout, (name, operation) in itertools.product(LAYOUTS, operations.WRITING.items()):
        case = plain.laid_out(layout)
        result = in_place_result(operation(case))
        assert arrays.memory_order(result) == arrays.memory_order(case.x), (layout, name)
        assert arrays.stored_in_order(result)[0].flags.c_contiguous, (layout, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_any_axis_of_any_order_is_a_transpose(backend, rng, shape, dtype):
    """Every memory order and channel axis gives the same bits as the same memory in C order."""
    for order in itertools.permutations(range(len(shape))):
        x, dy = (
            VALUES["normal"](rng, [shape[a] for a in order], dtype).transpose(np.argsort(order))
            for _ in range(2)
        )
        assert arrays.memory_order(x) == order
        for axis in range(len(shape)):
            weight, bias = arrays.parameters(rng, shape[axis])
            mean, var = rng.standard_normal(shape[axis]), rng.uniform(0.5, 2, shape[axis])
            case = operations.Case(x, dy, weight, bias, mean, var, axis=axis)
            stored = operations.replace(
                case, x=x.transpose(order), dy=dy.transpose(order), axis=order.index(axis)
            )
            expected = {
                key: value.transpose(np.argsort(order)) if value.ndim > 1 else value
                for key, value in operations.run_all(stored).items()
            }
            assert operations.differences(operations.run_all(case), expected) == []


@pytest.mark.parametrize("shape", RANK_SHAPES, ids=str)
def test_negative_axes_count_from_the_end(backend, rng, shape):
    x = VALUES["normal"](rng, shape, np.float32)
    for axis in range(len(shape)):
        if x.size == x.shape[axis]:
            continue
        expected, _ = bncore.batch_norm_train(x, axis=axis)
        y, moments = bncore.batch_norm_train(x, axis=axis - len(shape))
        assert arrays.same_bits(y, expected)
        assert moments.mean.shape == (shape[axis],)


@pytest.mark.parametrize("layout", WRITABLE, ids=str, indirect=True)
@pytest.mark.parametrize("dtype", FLOATS)
def test_in_place(backend, rng, layout, dtype):
    """With out=x, and in backward with out=dy, that memory gets the same bits."""
    plain = operations.make_case(rng, (4, 3, 9, 7), dtype)
    for name, operation in operations.WRITING.items():
        expected = in_place_result(operation(plain.laid_out(layout)))
        for target in ("x", "dy") if name in operations.BACKWARD else ("x",):
            case = plain.laid_out(layout).with_statistics()
            out = getattr(case, target)
            got = in_place_result(operation(case, out=out))
            assert got is out
            assert arrays.same_bits(got, expected), (name, target)


@pytest.mark.parametrize("layout", WRITABLE, ids=str, indirect=True)
def test_out_of_any_order_is_filled(backend, rng, layout):
    """out has its own layout, byte order and alignment; x has another."""
    plain = operations.make_case(rng, (4, 3, 9, 7))
    for name, operation in operations.WRITING.items():
        expected = in_place_result(operation(plain))
        out = np.moveaxis(layout.build(np.zeros_like(plain.x)), layout.axis(4), 1)
        result = in_place_result(operation(plain, out=out))
        assert result is out
        assert arrays.same_bits(np.ascontiguousarray(out), expected), name


def test_out_leaves_its_surroundings_alone(backend, rng):
    """A window of a larger buffer: nothing outside the window is written."""
    plain = operations.make_case(rng, (4, 3, 9, 7))
    for operation in operations.WRITING.values():
        buffer = np.full((6, 5, 11, 9), 7.25, np.float32)
        inside = (slice(1, -1),) * 4
        operation(plain, out=buffer[inside])
        assert arrays.same_bits(buffer[inside].copy(), in_place_result(operation(plain)))
        buffer[inside] = 7.25
        assert (buffer == 7.25).all()


def test_dy_may_have_another_order_than_x(backend, rng, layout):
    """The gradient has x's memory order, whatever dy's is."""
    plain = operations.make_case(rng, (4, 3, 5, 6))
    x_plain = np.moveaxis(layout.build(plain.x), layout.axis(4), 1)
    same = operations.replace(plain, x=x_plain, dy=like(plain.dy, x_plain))
    for name in ("train_backward", "infer_backward", "grad_input", "grad_sums"):
        wanted = operations.ALL[name](same)
        for dy_layout in LAYOUTS:
            dy = np.moveaxis(dy_layout.build(plain.dy), dy_layout.axis(4), 1)
            got = operations.ALL[name](operations.replace(same, dy=dy))
            assert operations.differences(got, wanted) == [], (name, dy_layout)
            if "dx" in got:
                order = arrays.memory_order(x_plain)
                assert arrays.memory_order(got["dx"]) == order, (name, dy_layout)


def like(values: np.ndarray, model: np.ndarray) -> np.ndarray:
    """The values in the model's order of memory."""
    out = np.empty_like(model, dtype=values.dtype)
    out[...] = values
    return out


def test_inputs_are_never_written(backend, rng, layout):
    case = operations.make_case(rng, (4, 3, 5, 6)).laid_out(layout)
    held = {
        name: getattr(case, name).copy() for name in ("x", "dy", "weight", "bias", "mean", "var")
    }
    operations.run_all(case)
    for name, value in held.items():
        assert arrays.same_bits(getattr(case, name), value), name


def test_broadcast_input(backend, rng):
    """An image repeated with stride 0 gives the result of the whole array, in a copy's order."""
    image = VALUES["normal"](rng, (3, 8, 9), np.float32)
    x = np.broadcast_to(image, (5, 3, 8, 9))
    case = operations.replace(operations.make_case(rng, x.shape), x=x)
    expected = operations.run_all(operations.replace(case, x=x.copy(order="K")))
    assert operations.differences(operations.run_all(case), expected) == []


def test_array_likes(backend, rng):
    """Lists of floats and objects with __array__ act like the arrays that NumPy makes of them."""

    class Wrapper:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    x = VALUES["normal"](rng, (4, 3), np.float64)
    expected, _ = bncore.batch_norm_train(x)
    for given in (x.tolist(), tuple(map(tuple, x.tolist())), Wrapper(x)):
        y, _ = bncore.batch_norm_train(given)
        assert type(y) is np.ndarray
        assert arrays.same_bits(y, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_mapped_input_and_output(backend, rng, tmp_path, dtype):
    plain = operations.make_case(rng, (4, 3, 50), dtype)
    path = tmp_path / "x.npy"
    np.save(path, plain.x)
    x = np.load(path, mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", dtype, plain.x.shape)
    y, _ = bncore.batch_norm_train(x, plain.weight, plain.bias, out=out)
    assert y is out
    expected, _ = bncore.batch_norm_train(plain.x, plain.weight, plain.bias)
    assert arrays.same_bits(np.load(tmp_path / "y.npy"), expected)
