"""Arrays of integers: exact moments against Python's integers, and y against calls with floats."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import allocations
import arrays
import bncore
import tolerances
import variants
from arrays import LAYOUTS
from bncore.backends import integers as shared

NARROW = [np.bool_, np.uint8, np.int8, np.uint16, np.int16]
DTYPES = [*NARROW, np.uint32, np.int32]

# Planes and rows, with and without a rest beside whole lines and tiles; one channel, many of them,
# more columns than are summed at once, and more rows than are read as one.
SHAPES = [
    (5, 3, 7, 11),
    (3, 2, 20),
    (2, 5, 513),
    (1, 2, 5000),
    (40, 1),
    (1000, 3),
    (700, 5, 3),
    (9, 1100),
    (33, 257, 2),
]


def extremes(dtype):
    """The least and the largest value."""
    if dtype == np.bool_:
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def drawn(rng, shape, dtype):
    """Values of the whole range, with both ends of it."""
    low, high = extremes(dtype)
    x = rng.integers(low, high, shape, endpoint=True).astype(dtype)
    x.reshape(-1)[:2] = low, high
    return x


def rounded(values, scale=1):
    """The exact mean and m2 of integers, each rounded once."""
    values = [int(v) for v in values.reshape(-1)]
    n, total, squares = len(values), sum(values), sum(v * v for v in values)
    return total / n, (n * squares - total * total) / n


def exact(x, axis=1):
    """Those of every channel."""
    channels = np.moveaxis(x, axis, 0)
    pairs = [rounded(channel) for channel in channels]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def assert_exact(got, x, axis=1):
    mean, m2 = exact(x, axis)
    assert arrays.same_bits(got.mean, mean)
    assert arrays.same_bits(got.m2, m2)


def assert_every_backend_is_exact(x):
    mean, m2 = exact(x)
    for variant in variants.FOUND.present:
        with variant.active():
            for threads in (1, 2):
                got = bncore.moments(x, n_threads=threads)
                assert arrays.same_bits(got.mean, mean), (variant, threads)
                assert arrays.same_bits(got.m2, m2), (variant, threads)


# Moments


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_exact(rng, shape, dtype):
    assert_every_backend_is_exact(drawn(rng, shape, dtype))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout(backend, rng, layout, dtype):
    for shape in ((6, 3, 5, 4), (70, 2, 33)):
        plain = drawn(rng, shape, dtype)
        x = layout.build(plain)
        assert_exact(bncore.moments(x, axis=layout.axis(x.ndim)), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_ends_of_the_range(dtype):
    low, high = extremes(dtype)
    for shape in ((70000, 2), (3, 2, 40001)):
        for values in ([low], [high], [low, high]):
            x = np.resize(np.array(values, dtype), shape)
            x[..., 0] = low
            assert_every_backend_is_exact(x)
        constant = np.full(shape, high, dtype)
        for variant in variants.FOUND.present:
            with variant.active():
                got = bncore.moments(constant)
            assert got.mean.tolist() == [high] * 2 and got.m2.tolist() == [0.0] * 2, variant


@pytest.mark.parametrize("shape", [(600001, 3), (2, 3, 300001), (40000, 3, 17), (5, 1, 400000)])
def test_many_values_on_many_threads(backend, rng, shape):
    x = rng.integers(0, 256, shape, np.uint8)
    channels = np.moveaxis(x, 1, 0).reshape(3 if shape[1] == 3 else 1, -1)
    n, total = channels.shape[1], channels.sum(1, dtype=np.int64).tolist()
    squares = (channels.astype(np.int64) ** 2).sum(1).tolist()
    m2 = [(n * q - s * s) / n for s, q in zip(total, squares, strict=True)]
    for threads in (1, 2, 7):
        got = bncore.moments(x, n_threads=threads)
        assert got.mean.tolist() == [s / n for s in total] and got.m2.tolist() == m2


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_few_values(backend, dtype):
    low, high = extremes(dtype)
    one = bncore.moments(np.array([[low, high]], dtype))
    assert one.mean.tolist() == [low, high] and one.m2.tolist() == [0.0, 0.0]
    two = bncore.moments(np.array([[low], [high]], dtype))
    assert two.mean.tolist() == [(low + high) / 2] and two.m2.tolist() == [(high - low) ** 2 / 2]
    none = bncore.moments(np.zeros((0, 3), dtype))
    floats = bncore.moments(np.zeros((0, 3), np.float32))
    assert none == floats
    assert bncore.moments(np.zeros((4, 0), dtype)).mean.shape == (0,)


def test_a_small_variance_far_from_zero(backend):
    """The squares have 62 digits, and what is left of them has few."""
    x = np.full((3001, 1), 2**31 - 1, np.int32)
    x[7] -= 1
    got = bncore.moments(x)
    assert got.m2.tolist() == [3000 / 3001]
    assert got.mean.tolist() == [float(Fraction((2**31 - 1) * 3001 - 1, 3001))]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_sums_beyond_64_bits_in_the_python_backends(rng, dtype, monkeypatch):
    """They are then Python's integers."""
    x = drawn(rng, (40, 3, 17), dtype)
    monkeypatch.setattr(shared, "MOST", 10)
    for name in {"numpy", "numba"} & variants.FOUND.names():
        with bncore.use_backend(name):
            assert_exact(bncore.moments(x), x)


def test_mean_var(backend, rng):
    x = drawn(rng, (4, 5, 6), np.uint8)
    for axis in (None, 0, (0, 2), (1, 2), -1):
        mean, var = bncore.mean_var(x, axis=axis, correction=1)
        assert mean.dtype == var.dtype == np.float64
        np.testing.assert_allclose(mean, x.mean(axis), rtol=4 * tolerances.EPS64)
        np.testing.assert_allclose(var, x.var(axis, ddof=1), rtol=8 * tolerances.EPS64)
    mean, var = bncore.mean_var(x, keepdims=True, scale=0.5)
    assert mean.shape == (1, 1, 1)
    assert mean[0, 0, 0] == x.mean() / 2
    only, m2 = rounded(x)
    assert bncore.mean_var(x) == (only, m2 / x.size)
    assert bncore.mean_var(x, dtype=np.float64) == (only, m2 / x.size)


def test_the_scale_of_moments(backend, rng):
    x = drawn(rng, (50, 3), np.uint8)
    plain, scaled = bncore.moments(x), bncore.moments(x, scale=1 / 255)
    assert arrays.same_bits(scaled.mean, plain.mean * (1 / 255))
    assert arrays.same_bits(scaled.m2, plain.m2 * ((1 / 255) * (1 / 255)))
    assert bncore.moments(x, scale=np.float32(2)).mean.tolist() == (2 * plain.mean).tolist()


def test_streams(backend, rng, tmp_path):
    x = drawn(rng, (3000, 7, 3), np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = bncore.moments(x, axis=-1, scale=0.25)
    for array in (x, mapped):
        got = bncore.stream_moments(array, axis=-1, block_bytes=4096, scale=0.25)
        assert np.array_equal(got.count, whole.count)
        np.testing.assert_allclose(got.mean, whole.mean, rtol=tolerances.MERGED)
        np.testing.assert_allclose(got.m2, whole.m2, rtol=tolerances.MERGED)
    one_block = bncore.stream_moments(mapped, axis=-1, scale=0.25)
    assert one_block == whole
    pieces = bncore.merged_moments([x[:1000], x[1000:]], axis=-1, scale=0.25)
    np.testing.assert_allclose(pieces.m2, whole.m2, rtol=tolerances.MERGED)


# Inference


def statistics(rng, channels, dtype):
    low, high = extremes(dtype)
    mean = rng.uniform(low, high, channels)
    var = (rng.uniform(0.1, 1.0, channels) * (high - low)) ** 2
    weight, bias = arrays.parameters(rng, channels)
    return mean, var, weight, bias


def fused(rng, shape):
    yield {}
    residual = rng.standard_normal(shape).astype(np.float32)
    yield {"activation": "relu"}
    yield {"activation": "leaky_relu", "negative_slope": 0.25, "residual": residual}


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_infer_is_that_of_float32(backend, rng, shape, dtype):
    x = drawn(rng, shape, dtype)
    given = statistics(rng, shape[1], dtype)
    for options in fused(rng, shape):
        expected = bncore.batch_norm_infer(x.astype(np.float32), *given, **options)
        for threads in (1, 2):
            got = bncore.batch_norm_infer(x, *given, n_threads=threads, **options)
            assert arrays.same_bits(got, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_infer_of_32_bits(backend, rng, shape, dtype):
    """A mean of 1e9 std: float32 would not hold what is left of x."""
    x = (2**30 + rng.integers(-3, 4, shape)).astype(dtype)
    mean = 2.0**30 + rng.standard_normal(shape[1])
    var, (weight, bias) = rng.uniform(0.5, 2.0, shape[1]), arrays.parameters(rng, shape[1])
    given = mean, var, weight, bias
    per_channel = (1, -1, *[1] * (len(shape) - 2))
    exact = bncore.batch_norm_infer(x.astype(np.float64), *given)
    terms = abs(exact - bias.reshape(per_channel)) + abs(bias).reshape(per_channel)
    got = bncore.batch_norm_infer(x, *given)
    assert got.dtype == np.float32
    ulp = np.spacing(terms.astype(np.float32)).astype(np.float64)
    assert (abs(got - exact) <= tolerances.FORWARD_ULP * ulp).all()
    for options in fused(rng, shape):
        got = bncore.batch_norm_infer(x, *given, **options)
        with bncore.use_backend("numpy"):
            assert arrays.same_bits(got, bncore.batch_norm_infer(x, *given, **options))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_infer_in_every_layout(backend, rng, layout, dtype):
    for shape in ((6, 3, 5, 4), (70, 2, 33)):
        plain = drawn(rng, shape, dtype)
        x, given = layout.build(plain), statistics(rng, shape[1], dtype)
        axis = layout.axis(x.ndim)
        expected = bncore.batch_norm_infer(plain, *given)
        got = bncore.batch_norm_infer(x, *given, axis=axis)
        assert arrays.same_bits(layout.plain(got), expected)
        out = np.empty_like(got)
        assert bncore.batch_norm_infer(x, *given, axis=axis, out=out) is out
        assert arrays.same_bits(layout.plain(out), expected)


def test_infer_with_a_scale(backend, rng):
    x = drawn(rng, (20, 3, 5), np.uint8)
    mean, var, weight, bias = statistics(rng, 3, np.uint8)
    scale = 1 / 255
    x32, pixels = x.astype(np.float32), x * scale
    got = bncore.batch_norm_infer(x, mean * scale, var, weight, bias, scale=scale)
    same = bncore.batch_norm_infer(x32, (mean * scale) / scale, var, weight * scale, bias)
    assert arrays.same_bits(got, same)
    bare = bncore.batch_norm_infer(x, mean * scale, var * scale**2, scale=scale)
    wide = bncore.batch_norm_infer(pixels, mean * scale, var * scale**2)
    assert abs(bare - wide).max() <= 8 * tolerances.EPS32 * abs(wide).max()


def test_infer_may_write_over_the_residual(backend, rng):
    x = drawn(rng, (40, 3, 50), np.uint8)
    given = statistics(rng, 3, np.uint8)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    expected = bncore.batch_norm_infer(x, *given, residual=residual)
    got = bncore.batch_norm_infer(x, *given, residual=residual, out=residual)
    assert got is residual and arrays.same_bits(got, expected)


@pytest.mark.parametrize("shape", [(2, 3, 1500001), (3000001, 3), (40001, 3, 77)])
def test_an_output_that_passes_the_caches(backend, rng, shape):
    x = rng.integers(0, 256, shape, np.uint8)
    given = statistics(rng, 3, np.uint8)
    got = bncore.batch_norm_infer(x, *given, n_threads=2)
    assert arrays.same_bits(got, bncore.batch_norm_infer(x.astype(np.float32), *given))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_statistics_that_are_not_finite(backend, dtype):
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    y = bncore.batch_norm_infer(x, [np.nan, np.inf, 1.0], [1.0, 1.0, np.nan])
    assert np.isnan(y).all()
    assert bncore.batch_norm_infer(x, [1.0] * 3, [np.inf] * 3).tolist() == [[0.0] * 3] * 2


def test_infer_of_nothing(backend):
    y = bncore.batch_norm_infer(np.zeros((0, 3), np.uint8), [0.0] * 3, [1.0] * 3)
    assert y.shape == (0, 3) and y.dtype == np.float32


# Memory, and what is refused


@pytest.mark.parametrize("shape, axis", [((400, 64, 64, 3), -1), ((40, 3, 300, 200), 1)])
def test_no_temporary_of_the_size_of_the_data(backend, shape, axis):
    x = np.ones(shape, np.uint8)
    least = x.nbytes // 4
    assert allocations.bytes_of_large(lambda: bncore.moments(x, axis=axis), least) == 0
    assert allocations.bytes_of_large(lambda: bncore.mean_var(x, axis=(0, 1, 2)), least) == 0
    y = np.empty(shape, np.float32)
    mean, var = np.zeros(3), np.ones(3)
    infer = lambda: bncore.batch_norm_infer(x, mean, var, axis=axis, out=y)  # noqa: E731
    assert allocations.bytes_of_large(infer, least) == 0


X8, X32 = np.ones((4, 3), np.uint8), np.ones((4, 3), np.float32)
ONES = np.ones(3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: bncore.moments(X8.astype(np.int64)), TypeError,
         "x: expected float16, bfloat16, float32, float64, bool or integers of 8 to 32 bits, "
         "got int64 (convert with .astype(np.float64), or to int32 if it fits)"),
        (lambda: bncore.mean_var(X8.astype(np.uint64)), TypeError, "got uint64"),
        (lambda: bncore.stream_moments(X8.astype(complex)), TypeError, "got complex128"),
        (lambda: bncore.moments(X8, scale=0), ValueError,
         "scale: expected a finite number > 0, got 0"),
        (lambda: bncore.moments(X8, scale=-1.0), ValueError, "scale: expected a finite number"),
        (lambda: bncore.mean_var(X8, scale=np.inf), ValueError, "scale: expected a finite number"),
        (lambda: bncore.stream_moments(X8, scale="1"), TypeError, "scale: expected a real number"),
        (lambda: bncore.moments(X32, scale=1.0), TypeError,
         "scale: expected None for an x of float32, since it is for integers, got 1.0"),
        (lambda: bncore.mean_var(X32, scale=0.5), TypeError, "scale: expected None"),
        (lambda: bncore.stream_moments(X32, scale=0.5), TypeError, "scale: expected None"),
        (lambda: bncore.batch_norm_infer(X32, ONES, ONES, scale=0.5), TypeError, "scale: expected"),
        (lambda: bncore.batch_norm_infer(X8, ONES, ONES, scale=np.nan), ValueError, "scale: "),
        (lambda: bncore.batch_norm_infer(X8, ONES, ONES, out=X8.copy()), TypeError,
         "out: expected float32, got uint8"),
        (lambda: bncore.batch_norm_infer(X8, ONES, ONES, out=np.ones((4, 3))), TypeError,
         "out: expected float32, got float64"),
        (lambda: bncore.batch_norm_infer(X8, ONES, ONES, residual=X8), TypeError,
         "residual: expected float16, bfloat16, float32 or float64, got uint8"),
        (lambda: bncore.batch_norm_train(X8), TypeError,
         "x: expected float16, bfloat16, float32 or float64, got uint8"),
        (lambda: bncore.moments(np.ones(3, np.uint8)), ValueError, "at least 2 dimensions"),
    ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_an_output_may_not_overlap_the_integers(backend):
    memory = np.zeros(48, np.uint8)
    x, out = memory[:12].reshape(4, 3), memory.view(np.float32).reshape(4, 3)
    with pytest.raises(ValueError, match="out: expected x itself or memory apart from it"):
        bncore.batch_norm_infer(x, ONES, ONES, out=out)
