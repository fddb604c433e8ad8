"""What weights must not change: bits.

Results have the same bits for every backend, instruction set and number of threads.  Weights of 1
give the bits of the plain call, and what is where nothing counts reaches no result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import bncore
import gates
import operations
import variants
import weighted

DTYPES = [np.float32, np.float64, np.float16, np.uint16]
# Planes and rows of several blocks, segments and strips; work for several threads.  One channel,
# and rows too wide to fold, are divided by segments and by the tiles of NumPy's backend.
SHAPES = [(2, 3, 45001), (16000, 19, 1), (3001, 33, 5), (2, 1, 33000), (300, 257, 1)]


def assert_same(got, expected, but=()):
    got, expected = (
        {name: values for name, values in results.items() if name not in but}
        for results in (weighted.one_nan(got), weighted.one_nan(expected))
    )
    assert operations.differences(got, expected) == []


def threaded_case(shape, dtype, kind):
    number = list(weighted.KINDS).index(kind)
    fill, fused = (None, 0.3)[number % 2], number % 3 > 0
    return weighted.make_case(np.random.default_rng(7), shape, dtype, kind, fill, fused)


def digests(results):
    return {name: gates.digest(values) for name, values in weighted.one_nan(results).items()}


@cache
def reference(shape, dtype, kind):
    """What the NumPy backend gives; as digests, since the results take gigabytes."""
    with bncore.use_backend("numpy"):
        return digests(weighted.run(threaded_case(shape, dtype, kind)))


@variants.taking_turns(shape=SHAPES, kind=weighted.KINDS, dtype=DTYPES)
def test_threads(backend, shape, kind, dtype):
    case = threaded_case(shape, dtype, kind)
    for n_threads in (1, 4) if backend.name != "numpy" else (4,):
        assert digests(weighted.run(case, n_threads)) == reference(shape, dtype, kind)


@variants.taking_turns(
    shape=[(5, 2, 49), (1, 1, 40000), (613, 3, 1), (600, 257, 1)],
    fused=[False, True],
    dtype=DTYPES,
)
def test_weights_of_1_are_the_plain_call(backend, rng, shape, fused, dtype):
    case = weighted.make_case(rng, shape, dtype, "mask", fused=fused)
    case = case.with_values("x", np.isnan(weighted.in_numbers(case.x)), 3.0)
    expected = weighted.run(case.plain())
    for kind, given in weighted.ONES.items():
        got = weighted.run(replace(case, given=given(shape)))
        assert operations.differences(got, expected) == [], kind


GARBAGE = (np.nan, np.inf, -np.inf, 1e38, 0.0)


@variants.taking_turns(
    shape=[(5, 3, 49), (2, 2, 4103), (613, 3, 1)],
    kind=["mask shared", "numbers", "late"],
    dtype=DTYPES,
)
def test_garbage_under_the_mask(backend, rng, shape, kind, dtype):
    """With fill it may be in dy as well; without, dy has to be 0 there, and y alone shows it."""
    for fill, fused in ((0.5, True), (None, False)):
        case = weighted.make_case(rng, shape, dtype, kind, fill, fused)
        under = case.w == 0.0
        assert under.any()
        case = case.with_values("x", under, 0.0).with_values("dy", under, 0.0)
        expected = weighted.run(case)
        for value in GARBAGE:
            spoiled = case.with_values("x", under, value)
            if fill is not None:
                spoiled = spoiled.with_values("dy", under, value)
            got = weighted.run(spoiled)
            ys = () if fill is not None else ("train.y", "normalize.y")
            assert_same(got, expected, but=ys)
            for name in ys:
                assert (got[name][~under] == expected[name][~under]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", [None, 0.25], ids=["formula", "fill"])
@pytest.mark.parametrize("shape", [(5, 3, 49), (613, 3, 1)], ids=str)
def test_a_channel_without_a_value(backend, rng, shape, fill, dtype):
    case = weighted.make_case(rng, shape, dtype, "mask", fill)
    case.given.values[:, 1] = 0
    case = case.with_values("dy", case.w == 0.0, 0.0)
    got = weighted.run(case)
    others = [0, 2]
    for name in ("moments", "float64", "train"):
        assert got[f"{name}.count"][1] == got[f"{name}.m2"][1] == 0.0
        assert np.isnan(got[f"{name}.mean"][1])
        assert (got[f"{name}.count"] == case.w.sum(axis=(0, 2))).all()
        assert np.isfinite(got[f"{name}.mean"][others]).all()
    y = weighted.in_numbers(got["train.y"])
    assert np.isnan(y[:, 1]).all() if fill is None else (y[:, 1] == fill).all()
    for name in ("steps", "train_backward", "infer_backward"):
        assert (weighted.in_numbers(got[f"{name}.dx"][:, 1]) == 0.0).all()
        assert got[f"{name}.dbias"][1] == got[f"{name}.dweight"][1] == 0.0
        assert np.isfinite(weighted.in_numbers(got[f"{name}.dx"][:, others])).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3, 49), (613, 3, 1)], ids=str)
def test_nan_that_counts_stays_in_its_channel(backend, rng, shape, dtype):
    case = weighted.make_case(rng, shape, dtype, "mask")
    case = case.with_values("x", case.w == 0.0, 0.0)
    clean = weighted.run(case)
    where = np.zeros(shape, bool)
    where[np.argmax(case.w[:, 1, 0] != 0.0), 1, 0] = True
    got = weighted.run(case.with_values("x", where, np.nan))
    for name, values in got.items():
        at = (slice(None), 1) if values.ndim == 3 else 1
        rest = [0, 2] if values.ndim == 1 else (slice(None), [0, 2])
        assert_same({name: values[rest]}, {name: clean[name][rest]})
        if name.endswith(("mean", "m2", "y", "dweight")):
            assert np.isnan(weighted.in_numbers(values[at])).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mask", "omit", "numbers, omit"])
@pytest.mark.parametrize("shape", [(5, 3, 49), (613, 3, 1)], ids=str)
def test_outputs_in_the_memory_of_inputs(backend, rng, shape, kind, dtype):
    """y over x, dx over x or dy, and dresidual over dy; weights come from x before it is gone."""
    case = weighted.make_case(rng, shape, dtype, kind, 0.5, True)
    expected, kernels = weighted.run(case), bncore.backends.current().kernels
    x, w, (mean, m2) = case.x.copy(), case.given, np.empty((2, 3))
    fusion = weighted.Fusion("leaky_relu", 0.25, case.residual, None, None, case.bias)
    kernels.train(x, mean, m2, x, case.weight, case.bias, weighted.EPS, 1, fusion, w)
    assert_same({"train.y": x}, {"train.y": expected["train.y"]})
    statistics = mean, m2 / w.count, case.weight, weighted.EPS, 1
    for name in ("train_backward", "infer_backward"):
        for over in ("x", "dy"):
            x, dy, sums = case.x.copy(), case.dy.copy(), np.empty((2, 3))
            to = {"x": x, "dy": dy}[over]
            getattr(kernels, name)(to, *sums, dy, x, *statistics, fusion, w)
            assert_same({"dx": to}, {"dx": expected[f"{name}.dx"]})
        dy, dx = case.dy.copy(), np.empty_like(case.x)
        both = fusion._replace(dresidual=dy)
        getattr(kernels, name)(dx, *sums, dy, case.x, *statistics, both, w)
        assert_same({"dresidual": dy}, {"dresidual": expected[f"{name} of both.dresidual"]})
