"""Moments, GradSums and running statistics: they are exact, immutable and can be merged."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bncore
import oracle
from bncore import GradSums, Moments, update_running_stats
from merging import FAR, STD, far_values, merged_exactly
from tolerances import EPS64, MERGED


def exact(values: list[float]) -> tuple[Fraction, Fraction]:
    """Mean and sum of squared deviations, as rationals."""
    exactly = [Fraction(v) for v in values]
    mean = sum(exactly, Fraction(0)) / len(exactly)
    return mean, sum(((v - mean) ** 2 for v in exactly), Fraction(0))


def of_values(values: list[float]) -> Moments:
    mean, m2 = exact(values) if values else (Fraction(0), Fraction(0))
    return Moments(len(values), [float(mean)], [float(m2)])


# ------------------------------------------------------------------------------------------ Moments


numbers = st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), max_size=9)


@given(numbers, numbers)
def test_merge_gives_the_moments_of_both(a, b):
    merged = of_values(a).merge(of_values(b))
    expected = of_values(a + b)
    np.testing.assert_array_equal(merged.count, expected.count)
    # Up to 18 values of at most 125: the terms that cancel are at most this large.
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=0, atol=125 * MERGED)
    np.testing.assert_allclose(merged.m2, expected.m2, rtol=MERGED, atol=18 * 125**2 * MERGED)


@given(st.floats(allow_nan=False, allow_infinity=False, width=64), st.integers(1, 2**40),
       st.integers(1, 2**40))  # fmt: skip
def test_equal_means_merge_exactly(mean, n, m):
    merged = Moments(n, [mean], [0.0]).merge(Moments(m, [mean], [0.0]))
    assert merged == Moments(n + m, [mean], [0.0])


def test_merging_nothing_changes_nothing():
    some, none = Moments(3, [1.0, np.nan], [2.0, np.inf]), Moments(0, [5.0, 5.0], [1.0, 1.0])
    assert some.merge(none) is some
    assert none.merge(some) is some
    assert none.merge(none) is none


def test_merging_nan_and_infinity_is_silent_and_stays_in_its_channel():
    a = Moments(3, [np.inf, np.nan, 1e308, 2.0], [np.nan, np.nan, 0.0, 1.0])
    b = Moments(3, [np.inf, 1.0, -1e308, 2.0], [np.nan, 1.0, 0.0, 1.0])
    merged = a.merge(b)
    assert np.isnan(merged.mean[:2]).all()
    assert merged.mean[3] == 2.0 and merged.m2[3] == 2.0


def test_merge_refuses_what_does_not_fit():
    a = Moments(3, [1.0], [2.0])
    with pytest.raises(ValueError, match=r"^other: expected 1 channels, got 2$"):
        a.merge(Moments(3, [1.0, 2.0], [2.0, 2.0]))
    with pytest.raises(TypeError, match=r"^other: expected Moments, got tuple$"):
        a.merge((3, [1.0], [2.0]))


def test_variance_std_and_invstd():
    moments = Moments(4, [1.0, 2.0], [12.0, 0.0])
    assert moments.var().tolist() == [3.0, 0.0]
    assert moments.var(1).tolist() == moments.var(correction=1.0).tolist() == [4.0, 0.0]
    assert moments.std(1).tolist() == [2.0, 0.0]
    assert moments.invstd(1.0).tolist() == [0.5, 1.0]
    assert moments.invstd(0.0).tolist()[1] == np.inf
    with pytest.raises(ValueError, match=r"^eps: expected a finite number >= 0, got -1$"):
        moments.invstd(-1)


@pytest.mark.parametrize(("count", "correction"), [(1, 1), (1, 2.5), (0.5, 1), (3, 3)])
def test_variance_with_no_degree_of_freedom_is_silent(count, correction):
    moments = Moments(count, [1.0, 1.0], [0.0, 2.0])
    assert np.isnan(moments.var(correction)[0])
    assert moments.var(correction)[1] == np.inf
    assert np.isnan(moments.std(correction)[0])


def test_moments_of_many_batches_match_those_of_the_whole(rng):
    whole = rng.standard_normal((600, 3, 4)) + 1e6
    merged = Moments(0, np.zeros(3), np.zeros(3))
    for piece in np.array_split(whole, [1, 2, 90, 91, 400]):
        merged = merged.merge(bncore.moments(piece))
    expected = bncore.moments(whole)
    assert merged.count.tolist() == expected.count.tolist() == [2400.0] * 3
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=8 * EPS64)
    # Six means near 1e6 are rounded to EPS64 * 1e6 each, beside a standard deviation of 1.
    np.testing.assert_allclose(merged.m2, expected.m2, rtol=6 * 2e6 * EPS64)


@pytest.mark.parametrize("order", ["one by one", "by halves"])
def test_single_values_far_from_zero_merge_to_the_exact_variance(rng, order):
    """Means of single values are exact, so nothing is lost however many merge."""
    x = far_values(rng, 2048)
    pieces = [bncore.moments(row.reshape(1, 2)) for row in x]
    if order == "one by one":
        merged = reduce(Moments.merge, pieces)
    else:
        while len(pieces) > 1:
            pieces = [a.merge(b) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
        (merged,) = pieces
    for c in range(2):
        exact = oracle.exact_moments(x[:, c])
        assert oracle.relative_error(merged.m2[c], exact.m2) <= MERGED
        assert merged.mean[c] == float(exact.mean)


def test_pieces_far_from_zero_lose_what_their_own_means_lost(rng):
    """Merging is exact but for its inputs; docs/numerics.md states the bound of those."""
    pieces, size = 100, 1000
    x = far_values(rng, pieces * size)
    parts = [bncore.moments(piece) for piece in np.split(x, pieces)]
    merged = reduce(Moments.merge, parts)
    rounding = EPS64 * FAR / STD
    for c in range(2):
        assert oracle.relative_error(merged.m2[c], merged_exactly(parts, c).m2) <= MERGED
        error = oracle.relative_error(merged.m2[c], oracle.exact_moments(x[:, c]).m2)
        assert error <= rounding**2 + 2 * rounding / size**0.5


def test_what_a_merged_mean_lost_is_kept_by_copies(rng):
    pieces = [bncore.moments(row.reshape(1, 2)) for row in far_values(rng, 512)]
    expected = reduce(Moments.merge, pieces)
    half = reduce(Moments.merge, pieces[:256])
    for again in (copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        assert again(half) == half
        assert reduce(Moments.merge, pieces[256:], again(half)) == expected


def test_counts_that_add_up_to_infinity_are_refused():
    most = Moments([1.0, 1e308], [1.0, 1.0], [2.0, 2.0])
    with pytest.raises(ValueError) as raised:
        most.merge(most)
    assert str(raised.value) == "other: expected counts with a finite sum, got inf for channel 1"


# ---------------------------------------------------------------------------------- both, as values


ONES = np.ones((4, 2))
VALUES = [
    pytest.param(Moments(4, [1.0, np.nan], [0.1, 0.2]), id="Moments"),
    pytest.param(GradSums([1.0, np.nan], [0.1, 0.2]), id="GradSums"),
    pytest.param(Moments(0, [], []), id="no-channels"),
    pytest.param(Moments([2.5, 0.0], [1.0, 1.0], [0.1, 0.2]), id="counts"),
    pytest.param(bncore.moments(ONES), id="computed-moments"),
    pytest.param(bncore.grad_sums(ONES, ONES, bncore.moments(ONES)), id="computed-sums"),
]


def arrays_of(values: Moments | GradSums) -> list[np.ndarray]:
    if isinstance(values, Moments):
        return [values.count, values.mean, values.m2]
    return [values.sum_dy, values.sum_dy_xhat]


@pytest.mark.parametrize("values", VALUES)
def test_nothing_can_be_changed(values):
    for name in ("count", "mean", "m2", "sum_dy", "sum_dy_xhat", "other"):
        with pytest.raises(AttributeError):
            setattr(values, name, 1)
    for array in arrays_of(values):
        assert array.dtype == np.float64 and array.ndim == 1
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_copy_is_equal_and_read_only(values, again):
    other = again(values)
    assert other == values
    assert all(not array.flags.writeable for array in arrays_of(other))


@pytest.mark.parametrize("values", VALUES)
def test_repr_shows_it(values):
    text = repr(values)
    assert eval(text, {"array": np.array, "nan": np.nan, "Moments": Moments,
                       "GradSums": GradSums, "float64": np.float64}) == values  # fmt: skip


def test_equality_is_by_content():
    a = Moments(4, [1.0], [2.0])
    assert a == Moments(4, [1.0], [2.0])
    assert a != Moments(5, [1.0], [2.0])
    assert Moments([4, 5], [1.0] * 2, [2.0] * 2) != Moments([4, 4], [1.0] * 2, [2.0] * 2)
    assert a != Moments(4, [1.5], [2.0])
    assert a != Moments(4, [1.0], [2.5])
    assert a != Moments(4, [1.0, 1.0], [2.0, 2.0])
    assert a != GradSums([1.0], [2.0])
    assert GradSums([1.0], [2.0]) != GradSums([1.0], [2.5])
    assert GradSums([1.0], [2.0]) != a
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


def test_the_constructor_copies():
    mean, m2 = np.array([1.0]), np.array([2.0])
    moments, sums = Moments(4, mean, m2), GradSums(mean, m2)
    mean[0] = m2[0] = 9.0
    assert moments == Moments(4, [1.0], [2.0]) and sums == GradSums([1.0], [2.0])


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", ">f8"])
def test_any_float_dtype_becomes_float64(dtype):
    moments = Moments(np.int32(4), np.array([1.5, 0, 2.5], dtype)[::2], np.array([1, 2], dtype))
    assert moments == Moments(4, [1.5, 2.5], [1.0, 2.0])


def test_gradient_sums_add_up():
    a, b = GradSums([1.0, np.inf], [2.0, 1e308]), GradSums([3.0, -np.inf], [0.5, 1e308])
    total = a + b
    assert total == a.merge(b) == GradSums([4.0, np.nan], [2.5, np.inf])
    with pytest.raises(ValueError, match=r"^other: expected 2 channels, got 1$"):
        a + GradSums([1.0], [1.0])
    with pytest.raises(TypeError, match=r"^other: expected GradSums, got Moments$"):
        a.merge(Moments(1, [1.0, 1.0], [1.0, 1.0]))
    with pytest.raises(TypeError, match="unsupported operand"):
        a + 1.0


# ------------------------------------------------------------------------------- running statistics


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", ">f4"])
@pytest.mark.parametrize("step", [1, -1, 2])
def test_running_statistics_move_towards_the_batch(dtype, step):
    memory = np.full((2, 6), 7.0, dtype)
    mean, var = memory[0, ::step][:3], memory[1, ::step][:3]
    mean[...], var[...] = [0.0, 1.0, -2.0], [1.0, 4.0, 0.5]
    moments = Moments(5, [4.0, 4.0, 4.0], [8.0, 0.0, 16.0])
    update_running_stats(mean, var, moments, momentum=0.25)
    assert mean.tolist() == [1.0, 1.75, -0.5]
    assert var.tolist() == [1.25, 3.0, 1.375]
    assert (memory == 7.0).sum() == 6


def test_running_statistics_by_convention():
    moments = Moments(4, [8.0], [12.0])
    for options, expected in (
        ({}, (0.1 * 8.0, 0.9 + 0.1 * 4.0)),
        ({"correction": 0}, (0.1 * 8.0, 0.9 + 0.1 * 3.0)),
        ({"momentum": 1}, (8.0, 4.0)),
        ({"momentum": 0}, (0.0, 1.0)),
    ):
        mean, var = np.zeros(1), np.ones(1)
        assert update_running_stats(mean, var, moments, **options) is None
        np.testing.assert_allclose((mean[0], var[0]), expected, rtol=2 * EPS64)


def test_interleaved_running_statistics_do_not_overlap():
    both = np.zeros((5, 2), np.float32)
    update_running_stats(both[:, 0], both[:, 1], Moments(2, np.ones(5), np.ones(5)), momentum=1.0)
    assert (both == 1.0).all()


def test_float32_running_statistics_are_computed_in_float64():
    mean, var = np.full(1, 16777216.0, np.float32), np.ones(1, np.float32)
    moments = Moments(2, [16777220.0], [0.0])
    update_running_stats(mean, var, moments, momentum=0.75)
    assert mean[0] == np.float32(0.25 * 16777216.0 + 0.75 * 16777220.0)


def test_what_float16_cannot_hold_becomes_infinite_in_silence():
    mean, var = np.zeros(1, np.float16), np.ones(1, np.float16)
    update_running_stats(mean, var, Moments(2, [1e9], [1e9]), momentum=1.0)
    assert np.isinf(mean).all() and np.isinf(var).all()


class NamedMoments(bncore.Moments):
    pass


class SlottedSums(bncore.GradSums):
    __slots__ = ()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_copy_of_a_subclass_is_of_the_subclass(again):
    moments = NamedMoments(3, [1.0], [2.0])
    moments.name = "layer 1"
    copied = again(moments)
    assert type(copied) is NamedMoments
    assert (copied, copied.name) == (moments, "layer 1")
    sums = SlottedSums([1.0], [2.0])
    assert type(again(sums)) is SlottedSums and again(sums) == sums


def test_what_arrives_at_an_odd_address_can_be_computed_with():
    """A process that gets a pickle with its buffers beside it (PEP 574) puts them anywhere."""
    x = np.arange(12.0).reshape(4, 3)
    moments = bncore.moments(x)
    sums = bncore.grad_sums(x, x, moments)
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps((moments, sums), protocol=5, buffer_callback=buffers.append)
    received = [memoryview(b"\0" + buffer.raw())[1:] for buffer in buffers]
    assert len(received) >= 5
    arrived = pickle.loads(message, buffers=received)
    assert arrived == (moments, sums)
    dx = bncore.grad_input(x, x, *arrived)
    assert np.array_equal(dx, bncore.grad_input(x, x, moments, sums))
