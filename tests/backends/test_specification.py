"""The specification, run as plain Python, beside every backend: to the bit.

`backends/numba/sums.py` and `elementwise.py` state the order of operations.  What they give is also
recorded here, as digests, so that a change of the order or of a constant is seen where all backends
follow it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import FLOATS, SIXTEEN_BITS
from bncore.backends.numba import gradients, sums
from bncore.backends.numba.group_operations import GroupOperations
from bncore.backends.numba.operations import in_order
from bncore.backends.partition import Planes, Rows, geometry
from specified import assert_every_backend_gives, specification

# (N, C, L), and what the additions go through there.
SHAPES = {
    (3, 2, 20): "planes, one block of short pieces",
    (2, 3, 16): "the narrowest planes",
    (5, 2, 49): "planes with a rest beside the lanes",
    (3, 2, 1700): "planes that gather into one block and begin the next",
    (2, 2, 4103): "planes longer than a block",
    (2, 1, 33000): "one channel: two segments",
    (7, 1, 3): "one channel, few values: planes",
    (6, 3, 5): "rows, not folded",
    (100, 3, 1): "rows, too few to fold",
    (256, 3, 1): "rows, folded, none short",
    (613, 3, 1): "rows, folded, the last one short",
    (150, 2, 15): "rows, folded, of several values per channel",
    (300, 257, 1): "rows, too wide to fold, two segments",
    (2100, 16, 1): "rows, folded, three segments",
    (4, 2100, 1): "rows of two strips",
    (2, 5, 1): "two values per channel",
}


def in_pieces(n_threads, n_tasks, kernel, *args):
    """Run the tasks one by one, the last one first: as unlike `in_order` as can be."""
    for task in range(n_tasks - 1, -1, -1):
        with np.errstate(all="ignore"):
            kernel(task, task + 1, *args)


def test_the_shapes_take_every_way():
    plans = [geometry(*shape) for shape in SHAPES]
    planes = [geo for geo in plans if isinstance(geo, Planes)]
    rows = [geo for geo in plans if not isinstance(geo, Planes)]
    assert {geo.n_segments for geo in planes} == {1, 2}
    assert {geo.n_segments for geo in rows} == {1, 2, 3}
    assert {geo.repeat > 1 for geo in rows} == {geo.short > 0 for geo in rows} == {True, False}
    assert {geo.width // sums.STRIP for geo in rows} >= {0, 2}


def test_the_segments_of_large_shapes():
    """Plain loops take too long for them, and what divides them is the same in all backends."""
    assert geometry(32, 8, 112 * 112) == Planes(32, 8, 112 * 112, segment_len=36864)
    assert geometry(64, 2, 1 << 20) == Planes(64, 2, 1 << 20, segment_len=1 << 20)
    assert geometry(1 << 20, 64, 1) == Rows(1 << 20, 64, 1, repeat=1, segment_rows=1 << 14)
    assert geometry(1 << 20, 3, 1) == Rows(1 << 20, 3, 1, repeat=32, segment_rows=512)
    assert geometry(5000, 300, 7) == Rows(5000, 300, 7, repeat=1, segment_rows=256)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_operation(rng, shape, dtype):
    case = operations.make_case(rng, shape, dtype, values="outlier_first")
    with specification():
        expected = operations.run_all(case)
    assert_every_backend_gives(expected, lambda: operations.run_all(case))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", [*arrays.VALUES, "not_finite", "constant"])
@pytest.mark.parametrize("shape", [(5, 3, 49), (70, 5, 3)], ids=str)
def test_every_kind_of_values(rng, shape, values, dtype):
    plain = operations.make_case(rng, shape, dtype, parameter_dtype=None)
    if values == "not_finite":
        plain.x[0, 0, 1], plain.x[1, 1, 2], plain.dy[2, 2, 0] = np.nan, np.inf, -np.inf
    elif values == "constant":
        plain.x[...] = dtype(0.1)
    else:
        plain.x[...] = arrays.VALUES[values](rng, shape, dtype)
    with specification():
        expected = operations.run_all(plain)
    assert_every_backend_gives(expected, lambda: operations.run_all(plain))


# The square of TINY underflows to 0; TINY is the step between the float64 values at BASE.
TINY, BASE = 2.0**-538, 2.0**-486


def merged(x):
    moments = bncore.moments(x)
    return {"mean": moments.mean, "m2": moments.m2}


@pytest.mark.parametrize("shape, zeros, block", [((2, 2, 4103), 16, 4096), ((300, 257, 1), 8, 256)])
def test_no_sum_of_squares_is_negative_when_the_pivot_moves(shape, zeros, block):
    """The pivot begins at 0.  Where it moves, it takes more away than the squares were."""
    x = np.full(shape, -TINY)
    runs = x if shape[2] == 1 else x.swapaxes(0, 2)
    runs[:zeros] = 0.0
    runs[block:] = 9.0 * TINY
    with specification():
        expected = merged(x)
    state = sums.flush((0.0, 0.0, 0.0, 0.0), -TINY * (block - zeros), 0.0, block, x, False)
    assert state[3] == 0.0
    assert (expected["m2"] > 0.0).all()
    assert_every_backend_gives(expected, lambda: merged(x))


@pytest.mark.parametrize("shape", [(5, 3, 49), (70, 5, 3)], ids=str)
def test_no_sum_of_squares_is_negative_when_a_segment_ends(shape):
    """The mean rounds to the pivot, BASE, and its offset takes away what the squares had not."""
    x = np.full(shape, BASE)
    order = np.arange(70)[:, None, None] if shape[0] == 70 else np.arange(49)
    x += np.where(np.isin(order % 16, (0, 2, 4, 9, 10, 11, 12)), TINY, 0.0)
    assert set(x.ravel()) == {BASE, BASE + TINY}
    with specification():
        expected = merged(x)
    assert (expected["m2"] == 0.0).all()
    assert_every_backend_gives(expected, lambda: merged(x))


@pytest.mark.parametrize("dtype", [*FLOATS, *SIXTEEN_BITS])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
@pytest.mark.parametrize("shape", [(5, 2, 49), (613, 3, 1), (6, 3, 5)], ids=str)
def test_what_is_fused(rng, shape, activation, added, dtype):
    residual = rng.standard_normal(shape).astype(dtype) if added else None
    case = operations.make_case(rng, shape, dtype)
    case.x[0, 0, 0] = np.nan
    case = operations.replace(case, fusion=operations.Fusion(activation, 0.2, residual))

    def run():
        return {
            f"{name}.{key}": value
            for name in operations.FUSED
            for key, value in operations.ALL[name](
                case, **({"dresidual": np.zeros_like(case.x)} if name.endswith("ward") else {})
            ).items()
        }

    with specification():
        expected = run()
    assert_every_backend_gives(expected, run)


@pytest.mark.parametrize("activation, slope", [("relu", 0.0), ("leaky_relu", 0.25)])
@pytest.mark.parametrize("shape", [(5, 2, 49), (613, 3, 1)], ids=str)
def test_both_zeros_are_on_the_negative_side(shape, activation, slope):
    x, dy = np.full(shape, 2.0), np.ones(shape)
    mean, var = np.full(shape[1], 2.0), np.ones(shape[1])
    weight, bias = np.where(np.arange(shape[1]) % 2, 1.0, -1.0), np.full(shape[1], -0.0)
    given = {"eps": 0.0, "bias": bias, "activation": activation, "negative_slope": slope}

    def run():
        return {
            "y": bncore.batch_norm_infer(x, mean, var, weight, **given),
            "dx": bncore.batch_norm_infer_backward(dy, x, mean, var, weight, **given)[0],
        }

    with specification():
        expected = run()
    signs = {(value, np.signbit(value)) for value in expected["y"].ravel()}
    assert signs == ({(0.0, False)} if slope == 0.0 else {(0.0, False), (0.0, True)})
    assert (expected["dx"] == slope * weight[:, None]).all()
    assert_every_backend_gives(expected, run)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(12))
def test_random_problems(seed, dtype):
    """Shapes, values and threads drawn together."""
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(2, 40, 2), *rng.integers(1, 9, rng.integers(0, 3)))
    values = rng.choice(list(arrays.VALUES))
    case = operations.make_case(rng, tuple(map(int, shape)), dtype, values=values)
    with specification():
        expected = operations.run_all(case)
    threads = int(rng.integers(1, 5))
    assert_every_backend_gives(expected, lambda: operations.run_all(case, n_threads=threads))


@pytest.mark.parametrize("shape", [(5, 2, 49), (2, 1, 33000), (613, 3, 1), (4, 2100, 1)], ids=str)
def test_tasks_share_nothing(rng, shape):
    """Whoever does a task, and in whatever order: the results are the same."""
    case = operations.make_case(rng, shape)
    with specification():
        expected = operations.run_all(case)
    with specification(GroupOperations(in_pieces)):
        assert operations.differences(operations.run_all(case), expected) == []


def recorded_case(shape, dtype):
    """Values that every machine makes alike, with so many digits that every sum of them rounds."""
    size = int(np.prod(shape))
    channels = np.arange(shape[1])
    return operations.Case(
        x=np.sqrt(np.arange(size) * 7919 % 1009 + 2.0).reshape(shape).astype(dtype),
        dy=(np.sqrt(np.arange(size) * 104729 % 997 + 2.0) - 20.0).reshape(shape).astype(dtype),
        weight=0.5 + channels % 3,
        bias=1.0 - channels % 5,
        mean=channels % 7 / 4.0,
        var=1.0 + channels % 4,
    )


# SHA-256 of all results, of their names in order; the first 16 digits.
DIGESTS = {
    ((5, 2, 49), "float32"): "e0a8f2d3eb942bf8",
    ((5, 2, 49), "float64"): "8656709701068e2d",
    ((2, 1, 33000), "float32"): "dc5c15ef804b5366",
    ((2, 1, 33000), "float64"): "8d20876c62a5fa43",
    ((2, 2, 4103), "float32"): "04f95eb0bb452d76",
    ((2, 2, 4103), "float64"): "28f44718f2c0c36a",
    ((613, 3, 1), "float32"): "ce80415c25f24b09",
    ((613, 3, 1), "float64"): "ae1087500ad92b4b",
    ((150, 2, 15), "float32"): "098e74dbd8405b89",
    ((150, 2, 15), "float64"): "5277eb0401aa0fde",
    ((300, 257, 1), "float32"): "5c4f0f417167a4a9",
    ((300, 257, 1), "float64"): "2aadae74d7afc3f4",
    ((6, 3, 5), "float32"): "abaa3dd46d0c77d7",
    ((6, 3, 5), "float64"): "ca12297b1e41d691",
    ((5, 2, 49), "float16"): "ee7ad17c8c7498c6",
    ((5, 2, 49), "bfloat16"): "b55ac9311f4f4cdd",
    ((2, 2, 4103), "float16"): "ea9750dbf97ab1bb",
    ((2, 2, 4103), "bfloat16"): "8ad78199539ca95a",
    ((613, 3, 1), "float16"): "ff4c7c40c780d509",
    ((613, 3, 1), "bfloat16"): "7cc89d58ec7564b2",
}


@pytest.mark.parametrize("shape, dtype", DIGESTS, ids=str)
def test_the_recorded_bits(shape, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="for bfloat16")  # then NumPy knows its name
    with specification():
        results = operations.run_all(recorded_case(shape, np.dtype(dtype).type))
    digest = hashlib.sha256()
    for name, values in sorted(results.items()):
        little = values.astype(values.dtype.newbyteorder("<"))
        digest.update(name.encode() + little.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[shape, dtype]


def test_values_that_do_not_fill_the_lanes_go_to_the_last_ones():
    """The merged sums hide where the last bits of one lane went, so look at the lanes."""
    values = np.arange(21.0)
    lanes = np.arange(16.0)
    lanes[11:] += values[16:]
    squares = np.arange(16.0) ** 2
    squares[11:] += values[16:] ** 2
    s, q, a, b = np.zeros((4, 16))
    zero = np.zeros(16)
    sums.add_squares(s, q, values, zero, False)
    gradients.add_products(a, b, values, values, zero, zero, False)
    assert s.tolist() == a.tolist() == lanes.tolist()
    assert q.tolist() == b.tolist() == squares.tolist()
    padded = np.concatenate([np.full(7, 99.0), values, np.full(3, 99.0)])
    for lanes_of in (s, q, a, b):
        lanes_of[:] = 0.0
    sums.add_wide_squares(s, q, padded, 7, 21, zero)
    gradients.add_wide_products(a, b, padded, padded, 7, 21, zero)
    assert s.tolist() == a.tolist() == lanes.tolist()
    assert q.tolist() == b.tolist() == squares.tolist()


def test_the_plain_text_needs_no_numba():
    code = (
        "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None; "
        "import numpy as np; "
        "from bncore.backends.numba.group_operations import GroupOperations; "
        "from bncore.backends.numba.operations import in_order; "
        "mean, m2 = np.empty((2, 3)); "
        "GroupOperations(in_order).moments(mean, m2, np.full((4, 3, 5), 2.0), 1); print(mean, m2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2. 2. 2.] [0. 0. 0.]\n"


def test_numba_compiles_this_text_and_no_other():
    """The functions of the text are not decorated: they stay what a reader sees."""
    pytest.importorskip("numba", reason="Numba is not installed")
    from bncore.backends.numba import elementwise, jit

    for kernel in (sums.planes_moments, elementwise.rows_activate):
        assert type(kernel) is type(in_order)
        assert jit.compiled(kernel).py_func is kernel
