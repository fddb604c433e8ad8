"""Forward results: training and inference against the exact reference, constants, parameters."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import arrays
import bncore
import oracle
import tolerances
from arrays import CONSTANTS, EDGE_SHAPES, FLOATS, VALUES
from gates import GATE_LAYOUTS, GATE_ORDERS, digest, gate_case

PARAMETERS = ["neither", "weight", "bias", "both"]


def chosen_parameters(which: str, channels: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    weight, bias = arrays.parameters(np.random.default_rng(3), channels)
    return weight if which in ("weight", "both") else None, bias if which in (
        "bias",
        "both",
    ) else None


_measured: dict[tuple[str, str, bytes], float] = {}


def gate_error(order: str, which: str, y: np.ndarray) -> float:
    """Largest error of y (plain) in ulp of |weight*xhat| + |bias|; equal bits are measured once."""
    key = order, which, digest(y)
    if key not in _measured:
        case = gate_case(order)
        weight, bias = chosen_parameters(which, y.shape[1])
        per_channel = []
        for c in range(y.shape[1]):
            scaled = case.xhat[:, c] * (1.0 if weight is None else np.longdouble(weight[c]))
            shift = np.longdouble(0.0 if bias is None else bias[c])
            scale = np.abs(scaled) + np.abs(shift)
            per_channel.append(oracle.max_ulp(y[:, c], scaled + shift, scale))
        _measured[key] = max(per_channel)
    return _measured[key]


@pytest.mark.parametrize("layout", GATE_LAYOUTS, ids=str)
@pytest.mark.parametrize("which", PARAMETERS)
def test_gate_forward_float32(backend, which, layout):
    """1e6 normal values per channel, mean/std 1, 1e2, 1e4, 1e6."""
    case = gate_case("random")
    weight, bias = chosen_parameters(which, 4)
    y, _ = bncore.batch_norm_train(case.in_layout(layout), weight, bias, axis=layout.axis(4))
    assert gate_error("random", which, layout.plain(y)) <= tolerances.FORWARD_ULP


@pytest.mark.parametrize("order", [order for order in GATE_ORDERS if order != "random"])
def test_gate_forward_float32_in_any_order(backend, order):
    y, _ = bncore.batch_norm_train(gate_case(order).x)
    assert gate_error(order, "neither", y) <= tolerances.FORWARD_ULP


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("which", PARAMETERS)
def test_forward_float64(backend, rng, which, ratio):
    x = arrays.normal(rng, (5, 3, 500), np.float64, mean=ratio)
    weight, bias = chosen_parameters(which, 3)
    expected = oracle.forward(x, oracle.channel_moments(x), weight, bias)
    y, _ = bncore.batch_norm_train(x, weight, bias)
    assert oracle.forward_error(y, expected) <= tolerances.FORWARD_FLOAT64


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "huge", "subnormal", "alternating"])
def test_forward_edge_shapes(backend, dtype, kind):
    rng = np.random.default_rng(11)
    for shape in EDGE_SHAPES:
        x = VALUES[kind](rng, shape, dtype)
        if x.size > 20000:
            continue  # the gates have size; these are about edges
        weight, bias = arrays.parameters(rng, shape[1])
        expected = oracle.forward(x, oracle.channel_moments(x), weight, bias)
        y, _ = bncore.batch_norm_train(x, weight, bias)
        assert y.dtype == dtype
        assert oracle.forward_error(y, expected) <= tolerances.forward(dtype), shape


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("which", PARAMETERS)
@pytest.mark.parametrize("one_channel", [False, True], ids=["rows", "planes"])
def test_a_constant_channel_gives_exactly_bias(backend, dtype, which, one_channel):
    constants = np.array(CONSTANTS[dtype], dtype)
    weight, bias = chosen_parameters(which, len(constants))
    expected = np.zeros(len(constants)) if bias is None else bias
    expected = expected.astype(dtype)
    for count in (2, 3, 7, 16, 17, 70, 4097, 100003):
        shape = (1, len(constants), count) if one_channel else (count, len(constants))
        column = constants[:, None] if one_channel else constants
        x = np.ascontiguousarray(np.broadcast_to(column, shape))
        y, _ = bncore.batch_norm_train(x, weight, bias)
        target = expected[:, None] if one_channel else expected
        np.testing.assert_array_equal(y, np.broadcast_to(target, shape), err_msg=str(count))


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_variance_and_zero_eps_follow_the_formula(backend, dtype):
    """0/0: NaN, silently; the other channel is untouched."""
    x = np.stack([np.full(20, 3.0), np.arange(20.0)], axis=1).astype(dtype)
    y, moments = bncore.batch_norm_train(x, eps=0)
    assert np.isnan(y[:, 0]).all()
    expected = oracle.forward(x[:, 1:], oracle.channel_moments(x[:, 1:]), eps=0)
    assert oracle.forward_error(y[:, 1:], expected) <= tolerances.forward(dtype)
    assert moments.m2[0] == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 10.0])
@pytest.mark.parametrize("which", PARAMETERS)
def test_infer(backend, rng, dtype, eps, which):
    """Given statistics that no float32 holds, mean/std up to 1e6."""
    shape = (7, 4, 37)
    std = np.array([0.3, 2.0, 1.0, 1.0])
    mean = np.array([0.1, -200.0, 1e4 + 1 / 3, 1e6 + 1 / 3])
    x = (rng.standard_normal(shape) * std[:, None] + mean[:, None]).astype(dtype)
    weight, bias = chosen_parameters(which, 4)
    given = [
        oracle.ExactMoments(1, Fraction(m), Fraction(s)) for m, s in zip(mean, std**2, strict=True)
    ]
    expected = oracle.forward(x, given, weight, bias, eps)
    y = bncore.batch_norm_infer(x, mean, std**2, weight, bias, eps=eps)
    assert oracle.forward_error(y, expected) <= tolerances.forward(dtype)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("dtype", FLOATS)
def test_parameters_of_any_float_type_are_read_as_float64(backend, rng, dtype, kind):
    x = VALUES["normal"](rng, (6, 5, 7), dtype)
    weight, bias = arrays.parameters(rng, 5, kind)
    mean, var = rng.standard_normal(5).astype(kind), rng.uniform(0.5, 2, 5).astype(kind)
    as_double = [np.asarray(p, np.float64) for p in (mean, var, weight, bias)]
    given = bncore.batch_norm_infer(x, mean, var, weight, bias)
    assert arrays.same_bits(given, bncore.batch_norm_infer(x, *as_double))
    trained, _ = bncore.batch_norm_train(x, weight, bias)
    expected, _ = bncore.batch_norm_train(x, *as_double[2:])
    assert arrays.same_bits(trained, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spoiler", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(9, 4, 40), (2100, 4)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(backend, rng, dtype, shape, spoiler):
    """Values, parameters and given statistics alike."""
    clean = VALUES["normal"](rng, shape, dtype)
    weight, bias = arrays.parameters(rng, 4)
    others = np.arange(4) != 1
    expected, _ = bncore.batch_norm_train(clean, weight, bias)
    x = clean.copy()
    x[3, 1] = spoiler
    spoiled = weight.copy()
    spoiled[1] = np.nan
    for y in (
        bncore.batch_norm_train(x, weight, bias)[0],
        bncore.batch_norm_train(clean, spoiled, bias)[0],
    ):
        assert np.isnan(y[:, 1]).all()
        assert arrays.same_bits(y[:, others], expected[:, others])
    mean, var = np.zeros(4), np.ones(4)
    expected = bncore.batch_norm_infer(clean, mean, var, weight, bias)
    mean[1] = np.nan
    y = bncore.batch_norm_infer(clean, mean, var, weight, bias)
    assert np.isnan(y[:, 1]).all()
    assert arrays.same_bits(y[:, others], expected[:, others])


@pytest.mark.parametrize("shape", arrays.EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_empty_batches_give_empty_results(backend, shape, dtype):
    x = np.empty(shape, dtype)
    weight, bias = np.ones(shape[1]), np.zeros(shape[1])
    y, moments = bncore.batch_norm_train(x, weight, bias)
    assert y.shape == shape
    assert y.dtype == dtype
    assert moments.mean.shape == (shape[1],)
    y = bncore.batch_norm_infer(x, np.zeros(shape[1]), np.ones(shape[1]), weight, bias)
    assert y.shape == shape


# The range of the promise, with eps = 0: type, std and weight.
INSIDE = [
    (np.float32, 1e30, 1.0),
    (np.float32, 1e-30, 1.0),
    (np.float32, 5e37, 1.0),
    (np.float32, 1e-37, 1.0),
    (np.float32, 1e30, 1e-6),
    (np.float64, 1e150, 1.0),
    (np.float64, 1e-150, 1.0),
]
OUTSIDE = [
    (np.float32, 1e37, 1e-6),  # weight * invstd is subnormal
    (np.float32, 1e-40, 1.0),  # or infinite
    (np.float64, 1e156, 1.0),  # squares are infinite
    (np.float64, 1e-170, 1.0),  # or 0
]


def run_at_scale(rng, shape, dtype, std, weight):
    """y and moments of values of a std, and y's error; exact for values brought near 1 exactly."""
    x = (np.clip(rng.standard_normal(shape), -3.0, 3.0) * std).astype(dtype)
    weights = np.full(shape[1], weight)
    y, moments = bncore.batch_norm_train(x, weights, eps=0.0)
    with bncore.use_backend("numpy"):
        reference, reference_moments = bncore.batch_norm_train(x, weights, eps=0.0)
    assert np.array_equal(y, reference, equal_nan=True) and moments == reference_moments
    near = np.ldexp(x.astype(np.float64), -np.frexp(std)[1])
    expected = oracle.forward(near, oracle.channel_moments(near), weights, eps=0.0)
    return oracle.forward_error(y, expected) if np.isfinite(y).all() else np.inf


@pytest.mark.parametrize("shape", [(8, 3, 40), (300, 3)], ids=["planes", "rows"])
@pytest.mark.parametrize(("dtype", "std", "weight"), INSIDE)
def test_the_promise_holds_for_any_scale(backend, rng, dtype, std, weight, shape):
    error = run_at_scale(rng, shape, dtype, std, weight)
    assert error <= tolerances.forward(dtype)


@pytest.mark.parametrize("shape", [(8, 3, 40), (300, 3)], ids=["planes", "rows"])
@pytest.mark.parametrize(("dtype", "std", "weight"), OUTSIDE)
def test_outside_the_promise_nothing_is_raised(backend, rng, dtype, std, weight, shape):
    """Every backend gives the same Inf, NaN or value with fewer digits, and no warning."""
    error = run_at_scale(rng, shape, dtype, std, weight)
    assert error > tolerances.forward(dtype)


def test_a_difference_from_the_mean_that_float32_cannot_hold_is_infinite(backend):
    x = np.full((4, 1, 20), -3.4e38, np.float32)
    x[0, 0, 0] = 3.4e38
    y, moments = bncore.batch_norm_train(x, eps=0.0)
    assert np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all()
    assert y[0, 0, 0] == np.inf
