"""bncore.programs.bench: what is measured, whether it is right, and what the memory allows."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bncore.programs.bench import (
    cases,
    check,
    limit,
    machine,
    peers,
)
from bncore.programs.bench.cases import Case
from bncore.programs.bench.results import timed
from bncore.programs.demo import formula
from bncore.runtime import buffer_pool

TINY = Case("train", (2, 3, 4, 4))
FIRST, LAST = cases.LAYOUTS


def test_shapes_are_those_of_the_file():
    listed = json.loads(Path(cases.__file__).with_name("shapes.json").read_text())
    assert cases.SHAPES["resnet50_n32"] == [tuple(e["shape"]) for e in listed["resnet50_n32"]]
    assert (1, 16, 4, 4) in cases.SHAPES["quick"]
    kilobytes = [4 * math.prod(shape) / 1024 for shape in cases.SHAPES["sizes"]]
    assert kilobytes[0] == 1
    assert kilobytes[-2:] == [256 * 1024, 400 * 1024]
    assert all(b / a == 2 for a, b in pairwise(kilobytes[:-1]))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_arrays_of_a_problem(layout, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="for bfloat16")
    p = Case("train", (5, 3, 7, 2), layout, dtype).problem()
    assert p.x.shape == ((5, 7, 2, 3) if layout == LAST else (5, 3, 7, 2))
    for array in (p.x, p.dy, p.out):
        assert array.dtype == cases.numpy_dtype(dtype)
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
    assert not np.array_equal(p.x, p.dy)
    assert abs(p.x.astype(float).mean() - 1.0) < 0.5
    assert p.weight.dtype == p.running_var.dtype == (dtype if dtype == "float64" else "float32")
    assert Case("train", p.shape, layout, dtype).x_bytes == p.x.nbytes
    assert list(p.picks) == [0, 1, 2]


def test_large_arrays_go_round_the_pool_and_few_channels_are_checked():
    p = cases.Problem((4, 20, 256, 256))
    pool = cases._pool("float32", 1.0, 0.0)
    assert p.x.size > pool.size
    np.testing.assert_array_equal(p.x.reshape(-1)[: pool.size], pool + np.float32(1.0))
    assert p.x.reshape(-1)[pool.size] == p.x.reshape(-1)[0]
    assert list(p.picks) == [0, 9, 19]
    assert list(cases.Problem((1, 1, 1_000_003)).picks) == [0]


def test_axes_that_statistics_reduce():
    for shape, memory, axes in (
        ((6, 4), (6, 4), (0,)),
        ((1, 4, 6), (4, 6), (1,)),
        ((1, 1, 24), (24,), None),
        ((2, 3, 4, 5), (2, 3, 4, 5), (0, 2, 3)),
    ):
        x, reduced = cases.Problem(shape).reduced
        assert (x.shape, reduced) == (memory, axes)


LIGHT = ("native", "numba", "twin", "numpy", "alone", "given", "wide")


@pytest.mark.parametrize("key", LIGHT)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_every_operation_of_the_peers_at_hand_is_right(key, operation):
    try:
        peer = peers.load(key)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))
    for shape in ((3, 4, 5, 6), (40, 9), (1, 4, 50), (1, 1, 60)):
        for output in cases.outputs_of(operation):
            for dtype in dtypes_of(key, shape):
                layout = LAST if len(shape) == 4 else FIRST
                case = Case(operation, shape, layout, dtype, 1, output)
                if not can(key, case):
                    assert not peer.can(case)
                    continue
                p = case.problem()
                assert peer.can(case)
                with peer.active(1):
                    call = peer.call(case, p)
                    for _ in range(2):  # what a call leaves in its outputs does not change the next
                        result = call()
                    outputs = peer.arrays(case, result, p)
                    found = check.errors(outputs, check.reference(operation, p), p)
                check.assert_right(peer.exact, case, found)
                if key in ("alone", "wide"):
                    continue
                into = key == "given" or output == "given"
                shares = [np.shares_memory(outputs[0], p.out)]
                assert shares == [into and operation not in cases.WRITES_NOTHING_LARGE]


def dtypes_of(key, shape):
    """16-bit data are the same loops in every shape, and the Numba backend compiles slowly."""
    wide = cases.DTYPES[:2]
    if shape != (3, 4, 5, 6) or key == "numba":
        return wide
    return cases.DTYPES if importlib.util.find_spec("ml_dtypes") else (*wide, "float16")


def can(key, case):
    """Some of the peers are there for a comparison, and the formula is for wider data."""
    if key == "wide":
        return cases.ITEM_BYTES[case.dtype] == 2 and case.operation in cases.MAIN
    if key in ("numpy", "alone") and cases.ITEM_BYTES[case.dtype] == 2:
        return False
    if key == "alone":
        return case.operation in cases.FUSED
    return key != "given" or case.output == "pooled"


def test_the_outputs_of_an_operation():
    assert cases.outputs_of("moments") == ("given",)
    assert cases.outputs_of("infer") == ("given", "returned")
    assert cases.outputs_of("add_relu") == cases.outputs_of("train") == cases.OUTPUTS


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_no_sum_with_the_residual_is_near_zero(layout):
    p = cases.Problem((3, 20, 300, 300), layout)
    assert len(p.picks) < 20
    w, b = p.per_channel(p.weight), p.per_channel(p.bias)
    z = formula.train(p.x.astype(float), w, b, p.axes, cases.EPS) + p.residual
    assert np.abs(p.take(z)).min() >= cases.UNDECIDED
    assert np.abs(z).min() < cases.UNDECIDED / 100  # in channels that are not checked
    assert 0.3 < (z > 0).mean() < 0.7


def test_what_is_cleared_before_a_result_is_taken():
    p = TINY.problem()
    p.out[...] = p.dresidual[...] = 1
    p.clear(replace(TINY, output="pooled"))
    assert p.out.all()
    p.clear(TINY)
    assert not p.out.any()
    assert p.dresidual.all()
    p.clear(replace(TINY, operation="add_relu_backward"))
    assert not p.dresidual.any()


def test_the_pool_is_on_for_calls_that_return_from_it():
    native = peers.load("twin")
    case = Case("train", (8, 64, 32, 32), output="returned")
    p = case.problem()
    with native.active(1):
        for output, is_on in (("pooled", True), ("returned", False), ("pooled", True)):
            call = native.call(replace(case, output=output), p)
            call()
            assert (buffer_pool.current is not None) is is_on
            assert (
                buffer_pool.current is not None and buffer_pool.current.idle_bytes() > p.x.nbytes
            ) is is_on
    assert buffer_pool.current is None


@pytest.mark.parametrize("operation", cases.FUSED)
def test_a_result_without_its_activation_is_caught(operation):
    case = Case(operation, (3, 4, 5, 6))
    p = case.problem()
    native = peers.load("twin")
    with native.active(1):
        call = native.call(replace(case, operation=cases.FUSED[operation]), p)
        result = call() if operation == "add_relu" else (*call(), p.dy)
    expected = check.reference(operation, p)
    outputs = result if isinstance(result, tuple) else (np.add(result, p.residual),)
    with pytest.raises(check.WrongResult, match=f"{operation} is wrong by"):
        check.assert_right(False, case, check.errors(outputs, expected, p))


@pytest.mark.parametrize("wrong", [1.01, math.nan, math.inf])
def test_a_wrong_result_is_caught(wrong):
    p = TINY.problem()
    expected = check.reference("train", p)
    right = expected[0][0].astype(np.float32)
    check.assert_right(True, TINY, check.errors((right,), expected, p))
    y = right.copy()
    y[1, 2, 3, 0] *= wrong
    found = check.errors((y,), expected, p)
    assert found == {"float32": pytest.approx(check.error((y,), expected, p))}
    with pytest.raises(check.WrongResult, match="train is wrong by"):
        check.assert_right(True, TINY, found)
    for dtype in cases.DTYPES:
        assert check.allowed(False, "train", dtype) > check.allowed(True, "train", dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_16_bit_result_must_be_the_nearest(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="for bfloat16")
    p = replace(TINY, dtype=dtype).problem()
    (exact,) = check.reference("train", p)
    nearest = exact[0].astype(np.float32).astype(p.x.dtype)
    assert 0.4 < check.errors((nearest,), [exact], p)[dtype] <= 0.5
    bits = nearest.copy()
    bits.view(np.uint16)[1, 2, 3, 0] ^= 1  # the next value
    found = check.errors((bits,), [exact], p)
    assert 0.5 <= found[dtype] <= 1.5
    with pytest.raises(check.WrongResult, match="train is wrong by"):
        check.assert_right(True, replace(TINY, dtype=dtype), found)


def test_gradients_by_parameters_are_judged_in_their_own_dtype():
    p = Case("train_backward", (2, 3, 4, 4), dtype="float16").problem()
    expected = check.reference("train_backward", p)
    right = [exact.reshape(p.shape if exact.size > 3 else 3) for exact, _ in expected]
    given = (right[0].astype(np.float16), *(r.astype(np.float32) for r in right[1:]))
    found = check.errors(given, expected, p)
    assert found["float16"] <= 0.5
    assert found["float32"] <= 1.0
    rounded = (given[0], *(r.astype(np.float16).astype(np.float32) for r in given[1:]))
    assert check.errors(rounded, expected, p)["float32"] > 8.0
    assert check.error(given, expected, p) == found["float16"]


@pytest.mark.parametrize(
    ("operation", "fits", "does_not"),
    [
        ("train", (0, 1), (1, 1)),
        ("infer", (0, 1), (0, 1)),
        ("train_backward", (1, 1), (3, 1)),
        ("infer_backward", (1, 1), (1, 1)),
        ("grad_sums", (2, 0), (2, 0)),
        ("moments", (1, 0), (1, 0)),
        ("add_relu", (1, 1), (2, 1)),
        ("add_relu_backward", (1, 2), (3, 2)),
    ],
)
def test_passes_of_the_limit(operation, fits, does_not):
    case = Case(operation, (32, 64, 56, 56))
    assert limit.passes(case, 2**20) == fits
    assert limit.passes(case, 2**18) == does_not
    # With ordinary arrays of 4 bytes: the traffic of docs/performance.md.
    reads, copies = limit.passes(case, 2**20)
    assert 4 * (reads + 2 * copies) * math.prod(case.shape) == case.minimal_bytes


def test_bytes_of_a_channel():
    assert limit.slab_bytes(Case("train", (32, 64, 56, 56))) == 32 * 56 * 56 * 4
    assert limit.slab_bytes(Case("train", (32, 64, 56, 56), LAST)) == 32 * 56 * 56 * 64
    assert limit.slab_bytes(Case("train", (100, 3), dtype="float64")) == 100 * 3 * 8


def test_share_of_the_limit():
    assert limit.Passes(3, 1).seconds(2.0, 5.0) == 11.0
    row = timed(TINY, "bncore", [4.0, 2.0, 8.0], limit=1.0)
    assert (row.median, row.low, row.high, row.repeats) == (4.0, 3.0, 6.0, 3)
    assert row.limit_share == 0.25
    assert replace(row, limit=5.0).limit_share == 1.0  # no better time than the call's is known
    assert math.isnan(replace(row, limit=math.nan).limit_share)
    assert row.gb_per_s == pytest.approx(2 * 96 * 4 / 4.0 / 1e9)


def test_streams_take_any_size_and_check_themselves(monkeypatch):
    from bncore.programs.bench import streams

    for size, threads in ((64, 1), (100_000, 2)):
        made = streams.Streams(size, threads)
        assert made.x.nbytes >= size
        assert made.call["read"]() == pytest.approx(made.values)
        made.y[...] = 0.0
        made.call["copy"]()
        np.testing.assert_array_equal(made.y, 1.0)

    def nothing(x, y, first, last):
        return np.float32(0.0)

    monkeypatch.setitem(streams.FORMS, "copy", (nothing,))
    monkeypatch.setattr(streams, "PARALLEL", {"read": (), "copy": ()})
    with pytest.raises(AssertionError, match="streaming copy is wrong"):
        streams.Streams(64, 1)


def test_streams_need_no_numba():
    code = (
        "import sys; sys.modules['numba'] = None; "
        "from bncore.programs.bench import streams; "
        "made = streams.Streams(100_000, 2); print(made.call['read']() == made.values)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_caches_are_read(tmp_path):
    for name, level, kind, size, shared in (
        ("index0", "1", "Data", "48K", "0"),
        ("index1", "1", "Instruction", "32K", "0"),
        ("index2", "2", "Unified", "1M", "0,4"),
        ("index3", "3", "Unified", "32768K", "0-7"),
        ("index4", "4", "Unified", "?", "0"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("level", level), ("type", kind), ("size", size)):
            (folder / file).write_text(text + "\n")
        (folder / "shared_cpu_list").write_text(shared + "\n")
    found = machine.caches(tmp_path)
    assert [(c.name, c.size, c.shared_by) for c in found] == [
        ("L1", 48 * 1024, 1),
        ("L2", 2**20, 2),
        ("L3", 2**25, 8),
    ]
    assert machine.cache_share(2, found) == 2**19
    assert machine.cache_share(2, machine.caches(tmp_path / "none")) == 2**20
    assert {"processor", "system", "bncore", "numpy"} <= machine.facts(("numpy",)).keys()
