"""The count of `Moments` is one number per channel: weights add up to any number, or to none."""

from __future__ import annotations

import pickle
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bncore
import oracle
from bncore import Moments, update_running_stats
from bncore.statistics import concatenated
from merging import FAR, far_values, merged_exactly
from tolerances import EPS64, MERGED


def test_one_number_or_one_for_each_channel():
    for count in (3, 3.0, np.float32(3), np.int64(3), Fraction(3), [3, 3], (3.0, 3.0),
                  np.array([3, 3], np.uint8), np.full(4, 3.0, ">f4")[::2]):  # fmt: skip
        moments = Moments(count, [1.0, 2.0], [2.0, 4.0])
        assert moments.count.dtype == np.float64 and moments.count.tolist() == [3.0, 3.0]
        assert moments == Moments(3, [1.0, 2.0], [2.0, 4.0])
    counts = np.array([1.5, 2.0])
    moments = Moments(counts, [1.0, 2.0], [2.0, 4.0])
    counts[0] = 7.0
    assert moments.count.tolist() == [1.5, 2.0]
    assert Moments(2, [], []).count.shape == (0,)


def test_every_channel_has_its_own_variance():
    moments = Moments([4.0, 2.5, 0.0, 1.0], [1.0] * 4, [12.0, 5.0, 7.0, 0.0])
    for correction, expected in ((0, [3.0, 2.0, np.nan, 0.0]), (1, [4.0, 5 / 1.5, np.nan, np.nan]),
                                 (0.5, [12 / 3.5, 2.5, np.nan, 0.0])):  # fmt: skip
        np.testing.assert_array_equal(moments.var(correction), expected)
        np.testing.assert_array_equal(moments.std(correction), np.sqrt(expected))
    np.testing.assert_array_equal(moments.invstd(1.0), [0.5, 1 / np.sqrt(3.0), np.nan, 1.0])


def test_a_channel_without_a_value_has_one_meaning():
    moments = Moments([2, 0], [5.0, 5.0], [1.0, 1.0])
    np.testing.assert_array_equal(moments.mean, [5.0, np.nan])
    assert moments.m2.tolist() == [1.0, 0.0]
    assert moments == Moments([2, 0], [5.0, np.nan], [1.0, 0.0])
    assert repr(moments) == (
        "Moments(count=array([2., 0.]), mean=array([ 5., nan]), m2=array([1., 0.]))"
    )


def test_an_empty_batch_has_no_mean(backend):
    for shape in ((0, 3), (2, 3, 0)):
        moments = bncore.moments(np.ones(shape))
        assert moments == Moments(0, [np.nan] * 3, [0.0] * 3)
        assert np.isnan(moments.mean).all() and not moments.m2.any()
        assert np.isnan(moments.var()).all()


counts = st.one_of(st.just(0.0), st.integers(1, 1000).map(float), st.floats(2**-20, 2**20))
channels = st.tuples(
    counts, st.integers(-1000, 1000).map(lambda n: n / 8), st.floats(0.0, 2**20, width=32)
)


@given(st.lists(st.lists(channels, min_size=3, max_size=3), min_size=1, max_size=6))
def test_every_channel_merges_by_its_own_count(rows):
    """Against exact fractions; a channel without a value takes those of the other side."""
    pieces = [Moments(*map(list, zip(*row, strict=True))) for row in rows]
    merged = reduce(Moments.merge, pieces)
    for c in range(3):
        exactly = merged_exactly(pieces, c)
        assert oracle.relative_error(merged.count[c], exactly.count) <= 6 * EPS64
        if not exactly.count:
            assert np.isnan(merged.mean[c]) and merged.m2[c] == 0.0
            continue
        np.testing.assert_allclose(merged.mean[c], float(exactly.mean), rtol=0, atol=125 * MERGED)
        # The deviations are at most 250, and their errors are relative to that.
        scale = float(exactly.m2) + float(exactly.count) * 250**2
        assert abs(Fraction(float(merged.m2[c])) - exactly.m2) <= scale * MERGED


def test_one_side_of_a_channel_is_taken_as_it_is():
    a = Moments([2, 0, 0, 3], [1.0, 9.0, 9.0, np.inf], [2.0, 0.0, 0.0, np.nan])
    b = Moments([0, 4, 0, 0], [9.0, 2.0, 9.0, 9.0], [0.0, np.inf, 0.0, 0.0])
    want = Moments([2, 4, 0, 3], [1.0, 2.0, 9.0, np.inf], [2.0, np.inf, 0.0, np.nan])
    assert a.merge(b) == b.merge(a) == want


def test_what_a_merged_mean_lost_is_kept_where_the_other_side_has_no_value(rng):
    rows = far_values(rng, 512)
    pieces = [bncore.moments(row.reshape(1, 2)) for row in rows]
    expected = reduce(Moments.merge, pieces)
    hole = Moments([0.0, 3.0], [0.0, FAR], [0.0, 0.0])
    middle = reduce(Moments.merge, [*pieces[:256], hole])
    merged = reduce(Moments.merge, pieces[256:], middle)
    for name in ("count", "mean", "m2"):
        assert getattr(merged, name)[0] == getattr(expected, name)[0]
    assert merged.count[1] == 515.0


def test_moments_of_ranges_of_channels_are_joined(rng):
    parts = [
        reduce(Moments.merge, [bncore.moments(row.reshape(1, 2)) for row in far_values(rng, size)])
        for size in (300, 200)
    ]
    joined = concatenated([*parts, Moments(0, [0.0], [0.0])])
    assert joined.count.tolist() == [300.0, 300.0, 200.0, 200.0, 0.0]
    more = [bncore.moments(row.reshape(1, 2)) for row in far_values(rng, 2)]
    for part, at in zip(parts, (slice(0, 2), slice(2, 4)), strict=True):
        apart = part.merge(more[0]).merge(more[1])
        wide = [Moments(1, np.tile(m.mean, 3)[:5], np.zeros(5)) for m in more]
        together = joined.merge(wide[0]).merge(wide[1])
        for name in ("count", "mean", "m2"):
            np.testing.assert_array_equal(getattr(together, name)[at], getattr(apart, name))


def pickle_of(count: int, mean: float, m2: float) -> bytes:
    """Return what pickle made of Moments of one channel when their count was an int."""
    dtype = (
        b"\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\x8c\x02f8\x94\x89\x88\x87\x94R\x94(K\x03\x8c"
        b"\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b"
    )
    return b"".join([
        b"\x80\x05\x95\xf0\x00\x00\x00\x00\x00\x00\x00\x8c\x11bncore.statistics\x94\x8c\t_restored\x94",
        b"\x93\x94h\x00\x8c\x07Moments\x94\x93\x94}\x94(\x8c\x06_count\x94K" + bytes([count]),
        b"\x8c\x04_low\x94G\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x03_m2\x94\x8c\x13numpy._core.numeric",
        b"\x94\x8c\x0b_frombuffer\x94\x93\x94(C\x08" + np.array(m2, "<f8").tobytes() + b"\x94",
        dtype + b"K\x01\x85\x94\x8c\x01C\x94t\x94R\x94\x8c\x05_mean\x94h\x0b(C\x08",
        np.array(mean, "<f8").tobytes() + b"\x94h\x12K\x01\x85\x94h\x16t\x94R\x94u\x86\x94R\x94.",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ((3, 1.0, 2.0), Moments(3, [1.0], [2.0])),
        ((0, 0.0, 0.0), Moments(0, [np.nan], [0.0])),  # an empty batch had the mean 0
    ],
    ids=["some", "empty"],
)
def test_pickles_with_one_count_for_all_channels_are_read(given, want):
    got = pickle.loads(pickle_of(*given))
    assert got == want and got.count.dtype == np.float64
    for values in (got.count, got.mean, got.m2):
        assert values.shape == (1,) and not values.flags.writeable
    more = Moments(1, [5.0], [0.0])
    assert got.merge(more) == want.merge(more)
    assert pickle.loads(pickle.dumps(got)) == want


# Running statistics


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", "bfloat16"])
def test_every_channel_moves_by_its_own_count(backend, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
    mean, var = np.array([1.0, 2.0, 3.0], dtype), np.array([1.0, 0.1, 2.0], dtype)
    kept = mean[1], var[1]
    moments = Moments([3, 0, 1.5], [5.0, 9.0, 1.0], [4.0, 9.0, 2.0])
    update_running_stats(mean, var, moments, momentum=0.5)
    assert [float(v) for v in mean] == [3.0, 2.0, 2.0]
    assert [float(v) for v in var[[0, 2]]] == [1.5, 3.0]
    assert (mean[1], var[1]) == kept


def test_a_count_that_is_not_above_the_correction_is_refused_before_anything_is_written(backend):
    mean, var = np.zeros(3), np.ones(3)
    text = r"^moments: expected count > correction = 1, got 0\.25 for channel 2$"
    with pytest.raises(ValueError, match=text):
        update_running_stats(mean, var, Moments([2, 0, 0.25], np.ones(3), np.ones(3)))
    assert not mean.any() and (var == 1.0).all()


NORMALIZED = [1.0 + 2.0**-52, 1.0 - 2.0**-53, 1.0 + 2.0**-20, np.float32(1.0) + 2.0**-23]


@pytest.mark.parametrize("count", [*NORMALIZED, 1.000009])
def test_a_count_above_the_correction_by_rounding_has_no_variance(backend, count):
    """Weights that were divided by their sum add up to 1 nearly, and m2 / 2**-52 is no variance."""
    moments = Moments([3.0, count], np.ones(2), np.ones(2))
    mean, var = np.zeros(2), np.ones(2)
    more = " by more than rounding" if count > 1.0 else ""
    text = f"^moments: expected count > correction = 1{more}, got {float(count)!r} for channel 1$"
    with pytest.raises(ValueError, match=text.replace("+", r"\+")):
        update_running_stats(mean, var, moments)
    assert not mean.any() and (var == 1.0).all()
    assert moments.var(1).tolist() == [0.5, np.inf]
    update_running_stats(mean, var, moments, correction=0)


@pytest.mark.parametrize(
    ("count", "correction"), [(1.0001, 1), (3, 2.99999), (200001, 200000), (3, -1)]
)
def test_a_count_above_the_correction_has_its_variance(backend, count, correction):
    moments = Moments(count, [5.0], [2.0])
    mean, var = np.zeros(1), np.zeros(1)
    update_running_stats(mean, var, moments, momentum=1.0, correction=correction)
    assert var == moments.var(correction) == 2.0 / (count - correction)


@pytest.mark.parametrize("correction", [3, 3 - 1e-9, 3 - 1e-4, 2])
def test_mean_var_has_the_same_rule(backend, correction):
    """Whole arrays, which may take the fast path, and weights of 1, which never take it."""
    x = np.array([1.0, 2.0, 6.0])
    _, whole = bncore.mean_var(x, correction=correction)
    _, weighted = bncore.mean_var(x, correction=correction, weights=np.ones(3))
    assert whole == weighted == (14.0 / (3 - correction) if correction < 3 else np.inf)


@pytest.mark.parametrize("rows", [10, 1000, 100_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_were_divided_by_their_sum(backend, rng, rows, dtype):
    x, weights = rng.standard_normal((rows, 3)), rng.random((rows, 1)).astype(dtype)
    weights /= weights.sum()
    moments = bncore.moments(x, weights=weights)
    assert np.isinf(moments.var(1)).all() and np.isfinite(moments.var()).all()
    assert np.isinf(bncore.std(x, axis=0, weights=weights, ddof=1)).all()


# The steps


def counted(rng, dtype=np.float64):
    """x and dy, and moments of a larger batch that has another count in every channel."""
    x, dy = rng.standard_normal((2, 5, 4, 7)).astype(dtype)
    rest = Moments([0, 3, 2.5, 1000], [9.0, 1.0, -1.0, 0.5], [0.0, 4.0, 0.0, 800.0])
    return x, dy, bncore.moments(x).merge(rest)


def test_grad_input_divides_by_the_count_of_each_channel(backend, rng):
    x, dy, moments = counted(rng)
    weight = rng.uniform(0.5, 2.0, 4)
    sums = bncore.grad_sums(dy, x, moments)
    dx = bncore.grad_input(dy, x, moments, sums, weight)
    column = (slice(None), None)
    invstd, xhat = (1.0 / np.sqrt(moments.var() + 1e-5))[column], x - moments.mean[column]
    xhat *= invstd
    np.testing.assert_allclose(sums.sum_dy, dy.sum((0, 2)), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(sums.sum_dy_xhat, (dy * xhat).sum((0, 2)), rtol=1e-12, atol=1e-13)
    part = sums.sum_dy[column] + xhat * sums.sum_dy_xhat[column]
    want = weight[column] * invstd * (dy - part / moments.count[column])
    np.testing.assert_allclose(dx, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_channels_of_equal_counts_do_not_depend_on_the_others(backend, rng, dtype):
    """To the bit, with other counts beside them."""
    x, dy, moments = counted(rng, dtype)
    first = Moments(moments.count[0], moments.mean, moments.m2)
    sums = bncore.grad_sums(dy, x, first)
    assert first.count.tolist() == [35.0] * 4
    got, want = (bncore.grad_input(dy, x, m, sums) for m in (moments, first))
    differs = (got != want).any(axis=(0, 2))
    assert differs.tolist() == [False, True, True, True]


def test_a_channel_that_counts_too_few_values_is_named(backend, rng):
    x, dy, moments = counted(rng)
    counts = moments.count.copy()
    counts[2] = 34.5
    fewer = Moments(counts, moments.mean, moments.m2)
    sums = bncore.grad_sums(dy, x, moments)
    text = r"^moments: expected count >= 35, the values per channel of x, got 34\.5 for channel 2$"
    for call in (bncore.grad_sums, lambda *a: bncore.grad_input(*a, sums)):
        with pytest.raises(ValueError, match=text):
            call(dy, x, fewer)
    text = r"^moments: expected count 35, the values per channel of x .*, got 38 for channel 1$"
    with pytest.raises(ValueError, match=text):
        bncore.batch_norm_train_backward(dy, x, moments)


def test_normalize_gives_nan_in_a_channel_without_a_value(backend, rng):
    x = rng.standard_normal((5, 3, 7))
    y = bncore.normalize(x, Moments([35, 0, 2.5], np.ones(3), np.ones(3)), [1.0, 2.0, 3.0])
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_allclose(y[:, 0], (x[:, 0] - 1) / np.sqrt(1 / 35 + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(y[:, 2], (x[:, 2] - 1) * 3 / np.sqrt(0.4 + 1e-5), rtol=1e-12)
    text = "^moments: expected a count above 0 for an x that is not empty, got 0 for every channel$"
    with pytest.raises(ValueError, match=text):
        bncore.normalize(x, Moments(0, np.ones(3), np.ones(3)))


def test_pieces_with_a_count_of_their_own_in_every_channel(rng):
    """Moments of other processes, whose channels may have holes, among arrays."""
    x = rng.standard_normal((40, 3, 5))
    holes = [Moments([0, 7, 2], [9.0, 0.5, 1.0], [0.0, 3.0, 0.5]),
             Moments([4, 0, 0.25], [0.25, 9.0, 2.0], [1.0, 0.0, 0.0])]  # fmt: skip
    pieces = [holes[0], x[:11], holes[1], x[11:]]
    merged = bncore.merged_moments(pieces)
    assert merged.count.tolist() == [204.0, 207.0, 202.25]
    exactly = [piece if isinstance(piece, Moments) else bncore.moments(piece) for piece in pieces]
    for c in range(3):
        want = merged_exactly(exactly, c)
        np.testing.assert_allclose(merged.mean[c], float(want.mean), rtol=MERGED, atol=MERGED)
        assert oracle.relative_error(merged.m2[c], want.m2) <= MERGED
