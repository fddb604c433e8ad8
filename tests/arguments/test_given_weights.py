"""Masks and weights as the backends get them: what is shared, what is copied, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
from arrays import LAYOUTS, SIXTEEN_BITS
from bncore.arguments.problem import Problem

SHAPE = (4, 3, 5, 6)
X = np.zeros(SHAPE)


def canonical(x, axis=1, where=None, weights=None, nan_policy="propagate", fill=None):
    return Problem(x, axis).weights(where, weights, nan_policy, fill)


SHARED = [
    (4, 1, 5, 6), (1, 1, 5, 6), (4, 1, 1, 1), (1, 5, 6), (5, 6), (6,), (1,), (), (4, 1, 1, 6),
]  # fmt: skip
FULL = [SHAPE, (3, 1, 1), (3, 5, 6), (1, 3, 1, 1), (4, 3, 1, 1)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHARED + FULL, ids=str)
@pytest.mark.parametrize("numbers", [False, True], ids=["mask", "numbers"])
def test_the_weights_lie_as_x_does(rng, layout, shape, numbers):
    x = layout.build(X)
    axis = layout.axis(4)
    plain = rng.uniform(0.0, 2.0, shape) if numbers else rng.random(shape) < 0.5
    padded = plain.reshape((1,) * (4 - plain.ndim) + shape)
    moved = np.moveaxis(padded, 1, axis)
    given = {"weights" if numbers else "where": moved}
    found = canonical(x, axis, **given).values
    p = Problem(x, axis)
    outer, channels, inner = p.x.shape
    assert found.shape == (outer, channels if shape in FULL else 1, inner)
    assert found.flags.c_contiguous and found.flags.aligned
    assert found.dtype == (np.float64 if numbers else np.uint8)
    marked = np.broadcast_to(np.moveaxis(padded, 1, axis), x.shape).astype(np.float64)
    order = sorted(range(4), key=lambda i: -abs(x.strides[i]))
    want = marked.transpose(order).reshape(p.x.shape)
    assert (np.broadcast_to(found, p.x.shape) == want).all()


def test_one_channel_shares():
    assert canonical(np.zeros((4, 1, 5)), where=np.ones((4, 1, 5), bool)).values.shape == (4, 1, 5)


def test_what_repeats_is_shared_however_it_was_made():
    mask = np.broadcast_to(np.ones((4, 1, 5, 6), bool), SHAPE)
    assert canonical(X, where=mask).values.shape == (4, 1, 30)
    numbers = np.broadcast_to(np.float32(2.0), SHAPE)
    found = canonical(X, weights=numbers).values
    assert found.shape == (4, 1, 30) and (found == 2.0).all()


def test_an_array_in_xs_order_is_not_copied():
    mask, numbers = np.ones((4, 1, 5, 6), bool), np.ones((4, 1, 5, 6))
    last = np.ones((4, 5, 6, 1), bool)
    assert np.shares_memory(canonical(X, where=mask).values, mask)
    assert np.shares_memory(canonical(X, weights=numbers).values, numbers)
    nhwc = np.zeros((4, 5, 6, 3))
    assert np.shares_memory(canonical(nhwc, -1, where=last).values, last)
    view = np.moveaxis(nhwc, -1, 1)
    assert np.shares_memory(canonical(view, where=np.moveaxis(last, -1, 1)).values, last)
    full = np.ones((4, 5, 6, 3), bool)
    assert np.shares_memory(canonical(view, where=np.moveaxis(full, -1, 1)).values, full)


@pytest.mark.parametrize("of_type", [
    bool, np.uint8, np.int8, np.int64, np.uint64, np.float16, np.float32, np.float64,
    np.longdouble, ">f4", ">i2", *SIXTEEN_BITS,
])  # fmt: skip
def test_numbers_of_every_real_type(of_type):
    given = np.array([0, 1, 1, 0, 1, 1]).astype(of_type)
    found = canonical(X, weights=given).values
    assert found.dtype == (np.uint8 if of_type is bool else np.float64)
    assert (found.reshape(-1, 6) == [0, 1, 1, 0, 1, 1]).all()


def test_the_product_of_both():
    where = np.array([True, True, False, True, True, False])
    weights = np.array([1.0, 0.0, 5.0, 2.0, 3.0, 0.0])
    found = canonical(X, where=where, weights=weights).values
    assert (found.reshape(-1, 6) == weights * where).all() and found.dtype == np.float64
    found = canonical(X, where=where, weights=weights != 0).values
    assert (found.reshape(-1, 6) == [1, 0, 0, 1, 1, 0]).all() and found.dtype == np.uint8
    samples = np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)
    assert canonical(X, where=where, weights=samples).values.shape == (4, 1, 30)


def test_bytes_of_a_bool_other_than_0_and_1():
    mask = np.array([0, 255, 1, 2, 0, 7], np.uint8).view(bool)
    assert canonical(X, where=mask).values.reshape(-1, 6)[0].tolist() == [0, 1, 1, 1, 0, 1]


def test_unaligned_and_scattered_arrays():
    memory = np.zeros(6 * 8 + 1, np.uint8)
    unaligned = memory[1:].view(np.float64)
    unaligned[:] = [0, 1, 2, 3, 4, 5]
    for weights in (unaligned, np.arange(6.0)[::-1][::-1], np.repeat(np.arange(6.0), 2)[::2]):
        found = canonical(X, weights=weights).values
        assert found.flags.aligned and (found.reshape(-1, 6)[0] == np.arange(6.0)).all()


def test_nothing_given_is_nothing():
    given = canonical(X)
    assert not given.weighs and given.record(np.zeros(3)) is None and not given.sources
    given = canonical(X, fill=1.0)
    assert not given.weighs and given.filling(3) is None
    given = canonical(X, nan_policy="omit")
    assert given.weighs and given.values is None and given.filling(3) is None
    count = np.zeros(3)
    assert given.record(count).count is count


# --------------------------------------------------------------------------------- bad arguments


def test_a_list_and_a_scalar_are_arrays():
    assert canonical(X, where=[True, False] * 3).values.shape == (4, 1, 30)
    assert canonical(X, weights=2).values.shape == (4, 1, 30)


BAD = [
    ("where", np.ones((4, 2, 5, 6), bool), ValueError, r"broadcasts .* \(4, 3, 5, 6\), got \(4, 2"),
    ("where", np.ones((1, *SHAPE), bool), ValueError, r"broadcasts"),
    ("where", np.ones((7,), bool), ValueError, r"broadcasts .* got \(7,\)"),
    ("where", np.ones(6), TypeError, "bool, got float64"),
    ("where", np.ones(6, np.uint8), TypeError, "bool, got uint8"),
    ("where", 1, TypeError, "bool, got int64"),
    ("where", "mask", TypeError, "bool, got <U4"),
    ("where", object(), TypeError, "bool, got object"),
    ("where", np.ma.masked_array([True] * 6), TypeError, "got MaskedArray"),
    ("weights", np.ones((5, 3)), ValueError, "broadcasts"),
    ("weights", np.ones(6, complex), TypeError, "real numbers, got complex128"),
    ("weights", ["1"] * 6, TypeError, "real numbers, got <U1"),
    ("weights", [None] * 6, TypeError, "real numbers, got list"),
    ("weights", np.array([1, 2, -3, 4, -5, 6]), ValueError, r"numbers >= 0, got -3.0 at \(2,\)"),
    ("weights", [1.0, np.nan, 1, 1, 1, 1], ValueError, r"got nan at \(1,\)"),
    ("weights", np.full(SHAPE, np.inf), ValueError, r"got inf at \(0, 0, 0, 0\)"),
    ("weights", np.float32(-1e-40), ValueError, r"got -9.9"),
    ("weights", -1, ValueError, r"got -1.0 at \(\)"),
    ("nan_policy", "ignore", ValueError, "'omit' or 'raise', got 'ignore'"),
    ("nan_policy", True, TypeError, "got True"),
    ("fill", "0", TypeError, "a real number, got '0'"),
    ("fill", True, TypeError, "a real number, got True"),
    ("fill", np.zeros(3), TypeError, "a real number, got ndarray"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_a_wrong_argument_is_refused_before_anything_is_written(name, value, error, message):
    x, dy = np.random.default_rng(0).standard_normal((2, *SHAPE))
    m = bncore.moments(x)
    out = np.full_like(x, 7.0)
    running = np.ones(3)
    layer = bncore.BatchNorm(3, dtype=np.float64)
    state = layer.state_dict()
    given = {name: value}
    calls = [
        lambda: bncore.batch_norm_train(x, out=out, **given),
        lambda: bncore.batch_norm_train_backward(dy, x, m, out=out, **given),
        lambda: bncore.batch_norm_infer(x, running, running, out=out, **given),
        lambda: bncore.batch_norm_infer_backward(dy, x, running, running, out=out, **given),
        lambda: bncore.normalize(x, m, out=out, **given),
        lambda: bncore.grad_sums(dy, x, m, **given),
        lambda: bncore.grad_input(dy, x, m, bncore.grad_sums(dy, x, m), out=out, **given),
        lambda: bncore.ghost_batch_norm(x, 2, out=out, **given),
        lambda: bncore.group_norm(x, 3, out=out, **given),
        lambda: bncore.instance_norm(x, out=out, **given),
        lambda: bncore.layer_norm(x, out=out, **given),
        lambda: bncore.standardize(x, out=out, **given),
        lambda: layer(x, out=out, **given),
    ]
    if name != "fill":
        calls += [
            lambda: bncore.moments(x, **given),
            lambda: bncore.mean_var(x, out=(running[:1].reshape(()),) * 2, **given),
            lambda: bncore.var(x, **given),
            lambda: bncore.std(x, **given),
            lambda: bncore.stream_moments(x, block_bytes=4096, **given),
        ]
    if name in ("nan_policy", "fill"):
        calls.append(lambda: bncore.MicroBatches(**given))
    for call in calls:
        with pytest.raises(error, match=rf"^{name}: expected .*{message}"):
            call()
    assert (out == 7.0).all() and (running == 1.0).all()
    for key, before in state.items():
        assert (layer.state_dict()[key] == before).all()


@pytest.mark.parametrize("name", ["where", "weights"])
def test_an_output_must_not_overlap_what_counts(name):
    memory = np.zeros(X.nbytes, np.uint8)
    out = memory.view(np.float64).reshape(SHAPE)
    counts = memory[:720].view(bool) if name == "where" else memory[: 8 * 90].view(np.float64)
    counts = counts[:90].reshape(3, 5, 6)
    m, one = bncore.moments(X), np.ones(3)
    given = {name: counts, "out": out}
    for call in (
        lambda: bncore.batch_norm_train(X, **given),
        lambda: bncore.batch_norm_train_backward(X, X, m, **given),
        lambda: bncore.batch_norm_infer(X, one, one, **given),
        lambda: bncore.batch_norm_infer_backward(X, X, one, one, **given),
        lambda: bncore.normalize(X, m, **given),
        lambda: bncore.grad_input(X, X, m, bncore.grad_sums(X, X, m), **given),
        lambda: bncore.ghost_batch_norm(X, 2, **given),
        lambda: bncore.group_norm(X, 3, **given),
        lambda: bncore.layer_norm(X, **given),
        lambda: bncore.BatchNorm(3)(X, **given),
    ):
        with pytest.raises(ValueError, match=r"^out: expected memory apart from the parameters"):
            call()
    assert not memory.any()
    with pytest.raises(ValueError, match=r"^dresidual: expected memory apart from the parameters"):
        bncore.batch_norm_train_backward(X, X, m, dresidual=out, **{name: counts})


def test_the_gradient_takes_moments_that_a_mask_can_leave():
    x = np.random.default_rng(0).standard_normal((10, 2))
    more = bncore.moments(np.concatenate([x, x]))
    where = np.arange(10).reshape(-1, 1) < 6
    with pytest.raises(ValueError, match=r"^moments: expected at most count 10, .* got 20 "):
        bncore.batch_norm_train_backward(x, x, more, where=where)
    bncore.batch_norm_train_backward(x, x, more, weights=np.full((10, 1), 2.0))


def test_a_fill_may_be_any_number():
    x = np.array([[1.0], [2.0], [3.0]])
    where = [[True], [True], [False]]
    for fill, want in ((np.nan, np.nan), (-3, -3), (np.float32(0.5), 0.5), (10**400, np.inf)):
        y, _ = bncore.batch_norm_train(x, where=where, fill=fill)
        np.testing.assert_array_equal(y[2], [want])
