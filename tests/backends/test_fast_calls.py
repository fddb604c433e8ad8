"""Canonical arguments take the fast path to the C core; all others go through the checks first.

Results are the same either way, so only this file notices if a call no longer takes the fast path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

import arrays
import bncore
import variants
from bncore import backends
from bncore.backends.contract import FastPath
from operations import ALL, BACKWARD, FUSED, WRITING, Case, Fusion, differences, run_all

pytestmark = pytest.mark.skipif(
    "native" not in variants.FOUND.names(), reason="the native module is missing"
)

SHAPE = (6, 4, 5, 3)
EVERY = set(ALL)
WITH_DY = {*BACKWARD, "grad_sums"}
WITH_MOMENTS = {"train_backward", "normalize", "grad_sums", "grad_input"}


@pytest.fixture
def taken(monkeypatch):
    """Record for each fast function, by name, whether it did the work of each of its calls."""
    seen: dict[str, list[bool]] = {}
    with bncore.use_backend("native"):
        active = backends.current()
        monkeypatch.setattr(active, "fast", variants.watched_fast_path(active.fast, seen))
        yield {name: seen[f"fast_{name}"] for name in ALL}


@pytest.fixture
def long_way(monkeypatch):
    """A native backend without its fast path."""

    def call(function: Callable, *arguments, **options):
        with bncore.use_backend("native"), monkeypatch.context() as patch:
            patch.setattr(backends.current(), "fast", None)
            return function(*arguments, **options)

    return call


def test_the_fast_functions_have_the_contracts_arguments():
    native = backends.native_module()
    for name in variants.FAST:
        _, *expected = inspect.signature(getattr(FastPath, name)).parameters
        given = inspect.signature(getattr(native, name)).parameters
        assert [argument.rstrip("_") for argument in given] == expected, name
    assert set(variants.FAST) == {name for name in dir(native) if name.startswith("fast_")}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def make(rng, dtype=np.float32, shape=SHAPE, parameters: type = np.float64, **options) -> Case:
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    channels = shape[options.get("axis", 1)]
    given = (rng.uniform(0.5, 2.0, channels).astype(parameters) for _ in range(4))
    return Case(x, dy, *given, **options)


def short(taken, case: Case, names: Iterable[str] = ALL, *, out=None, **options) -> set[str]:
    """Return which operations took the fast path; each is called once, with its own out."""
    case.with_statistics()
    went = set()
    for name in names:
        for calls in taken.values():
            calls.clear()
        target = {"out": out(case.x)} if out is not None and name in WRITING else {}
        ALL[name](case, **target, **options)
        assert [other for other, calls in taken.items() if calls] == [name]
        if taken[name] == [True]:
            went.add(name)
    return went


DTYPES = (*arrays.FLOATS, *arrays.SIXTEEN_BITS)

CANONICAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "channels-last view": channels_last,
}


@pytest.mark.parametrize("out", [None, np.empty_like], ids=["new", "out"])
@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
@pytest.mark.parametrize("dtype", DTYPES)
def test_canonical_calls_take_the_short_way(taken, rng, dtype, build, out):
    for parameters in DTYPES:
        case = make(rng, dtype, parameters=parameters).rebuilt(build)
        assert short(taken, case, out=out) == EVERY
        assert short(taken, replace(case, weight=None, bias=None), out=out) == EVERY


SHAPES = [(7, 3), (2, 3, 4), (5, 300), (2, 3, 2, 2, 2), (4, 1, 3), (2, 3, 1, 1), (3, 2, 1, 40)]


@pytest.mark.parametrize("axis", [1, -1, 0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_rank_axis_and_number_of_channels_with_the_same_bits(
    taken, long_way, rng, dtype, shape, axis
):
    if np.prod(shape) == shape[axis]:
        pytest.skip("one value per channel")
    case = make(rng, dtype, shape, dtype, axis=axis)
    assert short(taken, case) == EVERY
    assert differences(run_all(case), long_way(run_all, case)) == []


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_fused_has_the_same_bits(taken, long_way, rng, dtype, build, activation):
    fusion = Fusion(activation, 0.25, rng.standard_normal(SHAPE).astype(dtype))
    case = replace(make(rng, dtype), fusion=fusion).rebuilt(build)
    assert short(taken, case, FUSED) == set(FUSED)
    assert differences(run_all(case), long_way(run_all, case)) == []
    for name in ("train_backward", "infer_backward"):
        taken[name].clear()
        got = ALL[name](case, dresidual=np.empty_like(case.x))
        assert taken[name] == [True]
        expected = long_way(ALL[name], case, dresidual=np.empty_like(case.x))
        assert differences(got, expected) == []


def test_in_place_is_canonical(taken, rng):
    for name in WRITING:
        case = make(rng)
        assert short(taken, case, [name], out=lambda x: x) == {name}
        case = make(rng)
        target = case.dy
        if name in BACKWARD:
            assert short(taken, case, [name], out=lambda x, target=target: target) == {name}


def test_the_results_are_as_immutable_as_ever(taken, rng):
    x, dy = rng.standard_normal((2, *SHAPE))
    moments = bncore.moments(x)
    sums = bncore.grad_sums(dy, x, moments)
    _, of_training = bncore.batch_norm_train(x)
    assert taken["moments"] == taken["grad_sums"] == taken["train"] == [True]
    assert type(moments) is type(of_training) is bncore.Moments
    assert moments == of_training
    for values in (
        *(moments.count, moments.mean, moments.m2),
        *(of_training.count, of_training.mean, of_training.m2),
        *(sums.sum_dy, sums.sum_dy_xhat),
    ):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1.0


def test_moments_of_more_values_take_the_short_way_and_of_fewer_are_refused(taken, long_way, rng):
    case = make(rng)
    rest = bncore.moments(rng.standard_normal((5, *SHAPE[1:])))
    parts = WITH_MOMENTS - {"train_backward"}

    def results(moments):
        y = bncore.normalize(case.x, moments, case.weight)
        sums = bncore.grad_sums(case.dy, case.x, moments)
        dx = bncore.grad_input(case.dy, case.x, moments, sums, case.weight)
        return {"y": y, "sum_dy": sums.sum_dy, "sum_dy_xhat": sums.sum_dy_xhat, "dx": dx}

    merged = case.moments.merge(rest)
    for calls in taken.values():
        calls.clear()
    got = results(merged)
    assert {name for name, calls in taken.items() if calls == [True]} == parts
    assert differences(got, long_way(results, merged)) == []
    fewer = bncore.moments(case.x[:2])
    with pytest.raises(ValueError, match="moments: expected count >= 90"):
        bncore.grad_sums(case.dy, case.x, fewer)
    with pytest.raises(ValueError, match="moments: expected count >= 90"):
        bncore.grad_input(case.dy, case.x, fewer, case.sums)
    with pytest.raises(ValueError, match="moments: expected count 90"):
        bncore.batch_norm_train_backward(case.dy, case.x, fewer)
    with pytest.raises(ValueError, match="moments: expected a count above 0"):
        bncore.normalize(case.x, bncore.moments(case.x[:0]))


class OfMoments(bncore.Moments):
    pass


class OfSums(bncore.GradSums):
    pass


def test_subclasses_of_statistics_take_the_long_way(taken, rng):
    case = make(rng)
    moments = OfMoments(case.moments.count, case.moments.mean, case.moments.m2)
    sums = OfSums(case.sums.sum_dy, case.sums.sum_dy_xhat)
    for calls in taken.values():
        calls.clear()
    bncore.normalize(case.x, moments)
    bncore.grad_sums(case.dy, case.x, moments)
    bncore.batch_norm_train_backward(case.dy, case.x, moments)
    bncore.grad_input(case.dy, case.x, moments, case.sums)
    bncore.grad_input(case.dy, case.x, case.moments, sums)
    assert not any(taken.values())


REDUCED = [None, 0, -1, (0,), (0, 1), (0, 2, 3), (2, 3), (-1, 0, 2), (), (0, 1, 2, 3)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
@pytest.mark.parametrize("shape", [SHAPE, (6, 1, 5, 3), (6, 4, 1, 3), (1, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_var_has_the_same_bits(taken, long_way, rng, dtype, shape, build, keepdims):
    x = build(rng.standard_normal(shape).astype(dtype))
    bncore.mean_var(x)
    assert taken["mean_var"] == [True]
    for axis in REDUCED:
        for correction in (0, 1, 0.5, 1000):
            options = {"axis": axis, "correction": correction, "keepdims": keepdims}
            got = bncore.mean_var(x, **options)
            expected = long_way(bncore.mean_var, x, **options)
            for one, other in zip(got, expected, strict=True):
                assert type(one) is type(other), options
                # 0 / 0 is a NaN with any bits.
                assert arrays.same_bits(arrays.one_nan(one), arrays.one_nan(other)), options


@pytest.mark.parametrize(
    ("change", "is_short"),
    [
        pytest.param({"axis": (2, 3)}, True, id="planes"),
        pytest.param({"axis": (0, 1)}, True, id="rows"),
        pytest.param({"axis": (0, 3)}, True, id="the middle"),
        pytest.param({"axis": 1}, False, id="apart in memory"),
        pytest.param({"axis": [0, 1]}, None, id="a list"),
        pytest.param({"axis": (0, 0)}, None, id="twice"),
        pytest.param({"axis": (0, -4)}, None, id="twice, once from the end"),
        pytest.param({"axis": 4}, None, id="no axis"),
        pytest.param({"axis": True}, None, id="a bool"),
        pytest.param({"axis": np.int64(0)}, False, id="an axis of NumPy's"),
        pytest.param({"keepdims": np.True_}, False, id="a bool of NumPy's"),
        pytest.param({"keepdims": 1}, None, id="an integer keepdims"),
        pytest.param({"correction": np.float64(1.0)}, False, id="a correction of NumPy's"),
        pytest.param({"correction": 1 << 80}, False, id="a large correction"),
        pytest.param({"correction": np.nan}, None, id="a NaN correction"),
        pytest.param({"correction": True}, None, id="a bool correction"),
    ],
)
def test_what_mean_var_takes(taken, rng, change, is_short):
    """The fast path returns None for an error, which the checks then find."""
    x = rng.standard_normal(SHAPE)
    if is_short is None:
        with pytest.raises((TypeError, ValueError)):
            bncore.mean_var(x, **change)
    else:
        bncore.mean_var(x, **change)
    assert taken["mean_var"] == [is_short is True]


def test_mean_var_of_channels_last_keeps_only_what_is_in_order(taken, long_way, rng):
    x = channels_last(rng.standard_normal(SHAPE))
    for axis, is_short in {(0, 2, 3): True, (1,): True, (0,): False, (2, 3): False}.items():
        taken["mean_var"].clear()
        got, expected = bncore.mean_var(x, axis=axis), long_way(bncore.mean_var, x, axis=axis)
        assert taken["mean_var"] == [is_short]
        assert all(map(arrays.same_bits, got, expected))


@pytest.mark.parametrize("name", ["mean", "var", "weight", "bias"])
def test_a_gradient_by_the_residual_over_a_parameter_is_refused(taken, rng, name):
    x, dy, residual = rng.standard_normal((3, 6, 4))
    memory = np.ones(24)
    given = {"mean": np.zeros(4), "var": np.ones(4), "weight": np.ones(4), "bias": np.zeros(4)}
    given[name] = memory[20:]
    with pytest.raises(ValueError, match="dresidual: expected memory apart from the parameters"):
        bncore.batch_norm_infer_backward(
            dy, x, **given, residual=residual, dresidual=memory.reshape(6, 4)
        )
    assert taken["infer_backward"] == [False]
    assert (memory == 1.0).all()


@pytest.mark.parametrize("name", sorted(WRITING))
def test_an_output_over_a_parameter_is_refused(taken, rng, name):
    memory = np.ones(24)
    case = replace(make(rng, np.float64, (6, 4)), weight=memory[20:])
    with pytest.raises(ValueError, match="out: expected memory apart from the parameters"):
        short(taken, case, [name], out=lambda x: memory.reshape(6, 4))
    assert taken[name] == [False]
    assert (memory == 1.0).all()


@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
def test_outputs_of_what_is_fused_may_be_its_inputs(taken, rng, build):
    fusion = Fusion("relu", 0.01, rng.standard_normal(SHAPE).astype(np.float32))
    for name in FUSED:
        case = replace(make(rng), fusion=fusion).rebuilt(build)
        residual = case.fusion.residual
        assert short(taken, case, [name], out=lambda x, at=residual: at) == {name}
    for name in ("train_backward", "infer_backward"):
        case = replace(make(rng), fusion=fusion).rebuilt(build)
        assert short(taken, case, [name], dresidual=case.dy) == {name}
        assert short(taken, case, [name], dresidual=case.fusion.residual) == {name}


def test_a_residual_gradient_with_nothing_fused_takes_the_long_way(taken, rng):
    case = make(rng)
    for name in ("train_backward", "infer_backward"):
        dresidual = np.empty_like(case.x)
        assert short(taken, case, [name], dresidual=dresidual) == set()
        np.testing.assert_array_equal(dresidual, case.dy)


@pytest.mark.parametrize(
    "fusion",
    [
        pytest.param(Fusion(negative_slope=1), id="an integer slope"),
        pytest.param(Fusion(residual=[[1.0] * 4] * 6), id="a list"),
        pytest.param(Fusion(residual=np.ones((4, 6)).T), id="another order"),
        pytest.param(Fusion(activation=np.str_("relu")), id="a string of NumPy's"),
    ],
)
def test_other_fusions_take_the_long_way(taken, rng, fusion):
    case = replace(make(rng, np.float64, (6, 4)), fusion=fusion)
    assert short(taken, case) == EVERY - set(FUSED)


def big_endian(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder(">"))


class Subclass(np.ndarray):
    pass


OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda x: x[:, :, ::-1],
    "every second": lambda x: x.repeat(2, axis=3)[..., ::2],
    "Fortran order": np.asfortranarray,
    "every second image, channels last": lambda x: channels_last(x.repeat(2, axis=0))[::2],
    "big-endian": big_endian,
    "unaligned": arrays.unaligned,
    "subclass": lambda x: x.view(Subclass),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=list(OTHERS))
def test_other_arrays_take_the_long_way(taken, rng, build):
    case = make(rng)
    assert short(taken, case.rebuilt(build)) == set()
    assert short(taken, replace(case, dy=build(case.dy))) == EVERY - WITH_DY


WITH_WEIGHT = set(WRITING)
WITH_EPS = EVERY - {"moments", "mean_var"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({"weight": [1.0] * 4}, WITH_WEIGHT, id="a list"),
        pytest.param({"weight": np.ones(8)[::2]}, WITH_WEIGHT, id="a stride"),
        pytest.param({"weight": np.ones(4, np.longdouble)}, WITH_WEIGHT, id="long double"),
        pytest.param({"weight": big_endian(np.ones(4))}, WITH_WEIGHT, id="big-endian"),
        pytest.param({"mean": [0.0] * 4}, {"infer", "infer_backward"}, id="a list as mean"),
        pytest.param({"var": np.ones(8)[::2]}, {"infer", "infer_backward"}, id="a stride of var"),
        pytest.param({"eps": 1}, WITH_EPS, id="an integer eps"),
        pytest.param({"axis": np.int64(1)}, EVERY - {"mean_var"}, id="an axis of NumPy's"),
    ],
)
def test_other_arguments_take_the_long_way(taken, rng, change, names):
    assert short(taken, replace(make(rng), **change)) == EVERY - names


def test_an_output_of_another_order_takes_the_long_way(taken, rng):
    assert short(taken, make(rng), out=channels_last) == EVERY - set(WRITING)


def test_a_gradient_in_another_order_than_x_takes_the_long_way(taken, rng):
    case = make(rng)
    assert short(taken, replace(case, dy=channels_last(case.dy))) == EVERY - WITH_DY


def test_an_empty_batch_takes_the_long_way(taken, rng):
    assert short(taken, make(rng, shape=(0, 4, 5))) == set()
