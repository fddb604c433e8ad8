"""What holds for masks and weights: garbage, all True, repeated rows, nothing that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import arrays
import bncore
import tolerances
import weight_cases
from arrays import same_bits

SHAPE = (6, 4, 5, 9)
MASK = np.random.default_rng(3).random((6, 1, 5, 9)) < 0.7
MASK[:, :, :, 0] = True  # every group and every row of every sample has some values
MASK[:, :, 0, :2] = True
ALL = (SHAPE, np.float64)


def results(value: Any) -> list[np.ndarray]:
    """The arrays of a result, in order."""
    if isinstance(value, bncore.Moments):
        return [value.count, value.mean, value.m2]
    if isinstance(value, bncore.GradSums):
        return [value.sum_dy, value.sum_dy_xhat]
    if isinstance(value, (tuple, list)):
        return [part for one in value for part in results(one)]
    return [np.asarray(value)]


def same_results(one: Any, other: Any) -> bool:
    return all(same_bits(a, b) for a, b in zip(results(one), results(other), strict=True))


def batch_norm(x, dy, **counted) -> Any:
    y, m = bncore.batch_norm_train(x, **counted)
    return y, m, bncore.batch_norm_train_backward(dy, x, m, **counted)


def fused(x, dy, **counted) -> Any:
    residual, dresidual = np.full_like(x, 0.25), np.empty_like(x)
    options = {"activation": "relu", "residual": residual, **counted}
    y, m = bncore.batch_norm_train(x, **options)
    return (
        y,
        m,
        bncore.batch_norm_train_backward(dy, x, m, dresidual=dresidual, **options),
        dresidual,
    )


def steps(x, dy, **counted) -> Any:
    plain = {k: v for k, v in counted.items() if k != "fill"}
    m = bncore.moments(x, **plain)
    sums = bncore.grad_sums(dy, x, m, **counted)
    return bncore.normalize(x, m, **counted), sums, bncore.grad_input(dy, x, m, sums, **counted)


def infer(x, dy, **counted) -> Any:
    mean, var = np.full(4, 0.5), np.full(4, 2.0)
    y = bncore.batch_norm_infer(x, mean, var, **counted)
    return y, bncore.batch_norm_infer_backward(dy, x, mean, var, **counted)


def ghost(x, dy, **counted) -> Any:
    y, m = bncore.ghost_batch_norm(x, 4, **counted)
    return y, m, bncore.ghost_batch_norm_backward(dy, x, m, 4, **counted)


def group(x, dy, **counted) -> Any:
    y, m = bncore.group_norm(x, 2, [1.0, 2.0, 3.0, -1.0], **counted)
    return y, m, bncore.group_norm_backward(dy, x, m, 2, [1.0, 2.0, 3.0, -1.0], **counted)


def instance(x, dy, **counted) -> Any:
    y, m = bncore.instance_norm(x, **counted)
    return y, m, bncore.instance_norm_backward(dy, x, m, **counted)


def layer(x, dy, **counted) -> Any:
    weight, bias = np.linspace(0.5, 2.0, 45).reshape(5, 9), np.ones((5, 9))
    y, m = bncore.layer_norm(x, weight, bias, axis=-2, **counted)
    return y, m, bncore.layer_norm_backward(dy, x, m, weight, axis=-2, **counted)


def batch_norm_layer(x, dy, **counted) -> Any:
    bn = bncore.BatchNorm(4, dtype=x.dtype)
    y = bn(x, **counted)
    dx = bn.backward(dy)
    evaluated = bn.eval()(x, **counted)
    return y, dx, bn.dweight, bn.dbias, bn.running_mean, bn.running_var, evaluated


def standardize(x, dy, **counted) -> Any:
    return bncore.standardize(x, **counted)


CALLS: list[Callable[..., Any]] = [
    batch_norm, fused, steps, infer, ghost, group, instance, layer, batch_norm_layer, standardize,
]  # fmt: skip


def pair(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return tuple(rng.standard_normal((2, *SHAPE)).astype(dtype) + dtype(0.5))  # type: ignore[return-value]


def reductions(x, **counted) -> Any:
    """What has no y and no dy."""
    return (
        bncore.moments(x, **counted),
        bncore.stream_moments(x, block_bytes=4096, **counted),
        *(bncore.mean_var(x, axis=axis, **counted) for axis in (None, 0, (0, 2, 3), -1)),
        bncore.var(x, 1, ddof=1, **counted),
        bncore.std(x, (0, 1), **counted),
    )


# --------------------------------------------------------------------------------- garbage

GARBAGE = [np.nan, np.inf, -np.inf, 3e38, -1e30]


def with_garbage(x: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).choice(np.array(GARBAGE, x.dtype), x.shape)
    return np.where(mask, x, values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("full", [False, True], ids=["shared", "full"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_no_bit_depends_on_garbage_under_the_mask(backend, call, full, dtype):
    x, dy = pair(dtype)
    mask = np.broadcast_to(MASK, SHAPE)
    where = mask.copy() if full else MASK
    want = call(x, dy, where=where, fill=0.0)
    for seed in range(3):
        got = call(with_garbage(x, mask, seed), with_garbage(dy, mask, seed), where=where, fill=0.0)
        assert same_results(got, want)
    # Without a fill y is the formula's value there; the loss must not depend on it.
    slope = np.where(mask, dy, dtype(0))
    want = call(x, slope, where=where)
    got = call(with_garbage(x, mask, 7), slope, where=where)
    for one, other in zip(results(got), results(want), strict=True):
        if one.shape == SHAPE:
            assert same_bits(one[mask], other[mask])
        else:
            assert same_bits(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_bit_of_a_reduction_depends_on_garbage_under_the_mask(backend, dtype):
    x, _ = pair(dtype)
    want = reductions(x, where=MASK)
    for seed in range(3):
        got = reductions(with_garbage(x, np.broadcast_to(MASK, SHAPE), seed), where=MASK)
        assert same_results(got, want)
    weights = np.where(MASK, 2.5, 0.0)
    want = reductions(x, weights=weights)
    assert same_results(
        reductions(with_garbage(x, np.broadcast_to(MASK, SHAPE), 9), weights=weights), want
    )


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_omitted_nan_are_a_mask(backend, call):
    x, dy = pair(np.float64)
    mask = np.broadcast_to(MASK, SHAPE)
    x = np.where(mask, x, np.nan)
    want = call(x, dy, where=mask, fill=1.5)
    assert same_results(call(x, dy, nan_policy="omit", fill=1.5), want)
    assert same_results(call(x, dy, nan_policy="omit", where=True, fill=1.5), want)


# ------------------------------------------------------------------------- all of them count

ONES = {
    "where-shared": {"where": np.ones_like(MASK)},
    "where-full": {"where": np.ones(SHAPE, bool)},
    "where-True": {"where": True},
    "weights-shared": {"weights": np.ones(MASK.shape)},
    "weights-full": {"weights": np.ones(SHAPE, np.int64)},
    "weights-1": {"weights": 1},
    "omit": {"nan_policy": "omit"},
    "raise": {"nan_policy": "raise"},
}


@pytest.mark.parametrize("dtype", [*arrays.FLOATS, np.float16])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_weights_of_one_give_the_bits_of_the_plain_call(backend, call, dtype):
    x, dy = pair(dtype)
    want = call(x, dy)
    for name, ones in ONES.items():
        assert same_results(call(x, dy, **ones), want), name
        assert same_results(call(x, dy, **ones, fill=3.0), want), name


@pytest.mark.parametrize("ones", ONES)
def test_weights_of_one_give_the_bits_of_the_plain_reduction(backend, ones):
    x, _ = pair(np.float32)
    assert same_results(reductions(x, **ONES[ones]), reductions(x))


@pytest.mark.parametrize("shape", [(3, 2, 4111), (300, 3), (86, 5, 3), (70, 2, 1000)], ids=str)
@pytest.mark.parametrize("dtype", [*arrays.FLOATS, np.float16])
def test_weights_of_one_give_the_plain_bits_in_every_shape(backend, rng, shape, dtype):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    want = batch_norm(x, dy)
    for counted in (
        {"where": np.ones(weight_cases.shared(shape), bool)},
        {"weights": np.ones(shape)},
        {"nan_policy": "omit"},
    ):
        assert same_results(batch_norm(x, dy, **counted), want)


# --------------------------------------------------------------------------------- repeated rows


@pytest.mark.parametrize("as_type", [np.int64, np.float64, np.uint8])
def test_integers_count_as_repeated_rows(backend, rng, as_type):
    x, dy = rng.standard_normal((2, 60, 3, 5)) + 3.0
    times = rng.integers(0, 5, 60)
    weights = times.astype(as_type).reshape(-1, 1, 1)
    y, moments = bncore.batch_norm_train(x, weights=weights)
    want_y, want = bncore.batch_norm_train(x.repeat(times, 0))
    assert same_bits(moments.count, want.count)
    np.testing.assert_allclose(moments.mean, want.mean, rtol=tolerances.WEIGHTED)
    np.testing.assert_allclose(moments.m2, want.m2, rtol=tolerances.WEIGHTED)
    for correction in (0, 1):
        np.testing.assert_allclose(
            moments.var(correction), want.var(correction), rtol=tolerances.WEIGHTED
        )
    np.testing.assert_allclose(
        y.repeat(times, 0), want_y, rtol=tolerances.WEIGHTED, atol=tolerances.WEIGHTED
    )
    # The gradient of a value that stands there k times is the sum of the gradients of the copies.
    share = np.where(times > 0, 1.0 / np.maximum(times, 1), 0.0).reshape(-1, 1, 1)
    dx, *sums = bncore.batch_norm_train_backward(dy * (times > 0).reshape(-1, 1, 1), x, moments,
                                                 weights=weights)  # fmt: skip
    copies = bncore.batch_norm_train_backward(
        (dy * share).repeat(times, 0), x.repeat(times, 0), want
    )
    starts = np.concatenate([[0], times.cumsum()[:-1]])[times > 0]
    summed = np.zeros_like(dx)
    summed[times > 0] = np.add.reduceat(copies[0], starts, axis=0)
    np.testing.assert_allclose(dx, summed, rtol=tolerances.WEIGHTED, atol=tolerances.WEIGHTED)
    for one, other in zip(sums, copies[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerances.WEIGHTED)


def test_numpys_average_with_weights(backend, rng):
    x, weights = rng.standard_normal((7, 50, 6)), rng.uniform(0.0, 2.0, (50, 1))
    for axis in (None, 1, (0, 1), (1, 2)):
        mean, var = bncore.mean_var(x, axis=axis, weights=weights)
        full = np.broadcast_to(weights, x.shape)
        want = np.average(x, axis, full, keepdims=True)
        np.testing.assert_allclose(
            mean, want.reshape(mean.shape), rtol=tolerances.WEIGHTED, atol=1e-15
        )
        spread = np.average((x - want) ** 2, axis, full)
        np.testing.assert_allclose(var, spread, rtol=tolerances.WEIGHTED)


# --------------------------------------------------------------------------------- nothing counts


@pytest.mark.parametrize("how", ["where", "weights", "omit"])
def test_a_channel_without_a_value(backend, rng, how):
    x, dy = rng.standard_normal((2, 5, 3, 8))
    keep = np.ones((5, 3, 8), bool)
    keep[:, 1] = False
    counted = {
        "where": {"where": keep},
        "weights": {"weights": keep * 1.0},
        "omit": {"nan_policy": "omit"},
    }[how]
    if how == "omit":
        x[:, 1] = np.nan
    with np.errstate(all="raise"):
        y, m = bncore.batch_norm_train(x, **counted)
        filled, _ = bncore.batch_norm_train(x, **counted, fill=0.0)
        dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, m, **counted, fill=0.0)
    assert m.count.tolist() == [40, 0, 40] and m.m2[1] == 0.0
    assert np.isnan(m.mean).tolist() == np.isnan(m.var()).tolist() == [False, True, False]
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, [0, 2]]).all()
    assert (filled[:, 1] == 0.0).all() and same_bits(filled[:, [0, 2]], y[:, [0, 2]])
    assert (dx[:, 1] == 0.0).all() and dweight[1] == dbias[1] == 0.0
    rest = bncore.batch_norm_train(x[:, [0, 2]].copy())
    np.testing.assert_allclose(y[:, [0, 2]], rest[0], rtol=tolerances.WEIGHTED)
    mean, var = np.ones(3), np.full(3, 2.0)
    bncore.update_running_stats(mean, var, m)
    assert mean[1] == 1.0 and var[1] == 2.0 and (mean != 1.0).tolist() == [True, False, True]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_nothing_counts_at_all(backend, call):
    x, dy = pair(np.float64)
    for counted in ({"where": False}, {"weights": 0.0}):
        got = call(x, dy, **counted, fill=2.0)
        assert (results(got)[0] == 2.0).all()
    bn = bncore.BatchNorm(4)
    bn(x, where=np.zeros_like(MASK))
    assert (bn.running_mean == 0.0).all() and (bn.running_var == 1.0).all()
    assert bn.num_batches_tracked == 0 and bn.moments is None


def test_one_value_that_counts_has_variance_0(backend):
    x = np.array([[3.0, 1.0], [5.0, 2.0]])
    y, m = bncore.batch_norm_train(x, where=[[True], [False]])
    assert m.count.tolist() == [1.0, 1.0] and m.mean.tolist() == [3.0, 1.0]
    assert m.m2.tolist() == [0.0, 0.0] and y[0].tolist() == [0.0, 0.0]
    single, _ = bncore.batch_norm_train(x[:1], where=True)
    assert single.tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"^Expected more than 1 value per channel"):
        bncore.batch_norm_train(x[:1], fill=0.0)
    mean, var = bncore.mean_var(x, axis=0, where=[[True], [False]], ddof=1)
    assert mean.tolist() == [3.0, 1.0] and np.isnan(var).all()


@pytest.mark.parametrize("shape", arrays.EMPTY_SHAPES, ids=str)
def test_empty_arrays(backend, shape):
    x = np.empty(shape)
    for counted in ({"where": True}, {"weights": np.ones(shape)}, {"nan_policy": "omit"},
                    {"nan_policy": "raise"}):  # fmt: skip
        y, m = bncore.batch_norm_train(x, **counted, fill=1.0)
        assert y.shape == shape and (m.count == 0.0).all() and np.isnan(m.mean).all()
        dx, dweight, _ = bncore.batch_norm_train_backward(x, x, m, **counted)
        assert dx.shape == shape and (dweight == 0.0).all()
        mean, var = bncore.mean_var(x, **counted)
        assert np.isnan(mean) and np.isnan(var)


# ------------------------------------------------------------------------- nan_policy="raise"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_nan_that_counts_is_refused(backend, call):
    x, dy = pair(np.float64)
    for bad in (np.inf, 1e308):
        x[0, 0, 0, 0] = bad  # no NaN, whatever becomes of it
        call(x, dy, nan_policy="raise")
    x[2, 1, 3, 4] = np.nan
    with pytest.raises(
        ValueError, match=r"^x: expected no NaN with nan_policy='raise', got NaN in"
    ):
        call(x, dy, nan_policy="raise")
    where = np.ones(SHAPE, bool)
    where[2, 1, 3, 4] = False
    call(x, dy, nan_policy="raise", where=where)


def test_the_refusal_names_the_channel_and_nothing_is_written(backend):
    for of_type in (np.float32, *arrays.SIXTEEN_BITS):
        x = np.zeros((70, 4, 1000), of_type)
        x[66, 2, 999] = x[68, 1, 5] = np.nan
        out = np.full_like(x, 7)
        where = np.ones((70, 1, 1000), bool)
        for channel in (2, 1):
            with pytest.raises(ValueError, match=f"got NaN in channel {channel}$"):
                bncore.batch_norm_train(x, out=out, where=where, nan_policy="raise")
            where[66] = False
        assert (out == 7).all()
    with pytest.raises(ValueError, match=r"got NaN in row 1$"):
        bncore.layer_norm(np.array([[1.0, 2.0], [np.nan, 1.0]]), nan_policy="raise")


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (1, 2), None])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_refusal_of_mean_var_says_where(backend, axis, order):
    x = np.zeros((5, 1, 4, 3), np.float32, order)
    x[2, 0, 3, 1] = np.nan
    where = np.ones(x.shape, bool)
    for call in (bncore.mean_var, bncore.var, bncore.std):
        with pytest.raises(ValueError, match=r"^x: .* got NaN at \(2, 0, 3, 1\)$"):
            call(x, axis=axis, nan_policy="raise", where=where)
    where[2, 0, 3, 1] = False
    bncore.mean_var(x, axis=axis, nan_policy="raise", where=where)
