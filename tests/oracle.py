"""The reference that every backend is measured against.

Moments are exact: integer arithmetic on the stored floats, results as fractions. Batch norm itself
is evaluated in `numpy.longdouble` (64 bits of mantissa or more) from those exact moments; the mean
is carried as a double and the rest, so that `x - mean` keeps its digits where |mean| is far larger
than the standard deviation.

Arrays have their channels on axis 1 here; `arrays.py` handles layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

import tolerances

if np.finfo(np.longdouble).nmant < 63:  # pragma: no cover - depends on the platform
    raise RuntimeError("the oracle needs a long double of 64 bits of mantissa or more")

LIMB_BITS = 14  # products have 28 bits: a double adds 2**23 times four of them exactly
LIMBS = 4  # 4 * 14 >= 53


def exact_sums(values: np.ndarray) -> tuple[Fraction, Fraction]:
    """Exact sum and exact sum of squares of finite floats, as fractions.

    Each value is ±m * 2**e with an integer m of at most 53 bits. m is cut into limbs of 14 bits;
    limbs, and products of limbs, of values with the same e are added by `numpy.bincount`, whose
    doubles stay below 2**53.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size > 2**23:
        raise ValueError("exact_sums takes at most 2**23 values")
    if not np.isfinite(x).all():
        raise ValueError("exact_sums takes finite values")
    fraction, exponent = np.frexp(x)
    mantissa = np.abs(np.ldexp(fraction, 53)).astype(np.int64)  # exact: |fraction| < 1 with 53 bits
    exponent = exponent.astype(np.int64) - 53
    low = int(exponent.min(initial=0))
    bins = exponent - low
    sign = np.sign(fraction)
    limbs = [(mantissa >> (LIMB_BITS * i)) & (2**LIMB_BITS - 1) for i in range(LIMBS)]

    total = Fraction(0)
    for i, limb in enumerate(limbs):
        total += _weigh(np.bincount(bins, weights=limb * sign), 1, low, LIMB_BITS * i)
    squares = Fraction(0)
    for k in range(2 * LIMBS - 1):
        pairs = [(i, k - i) for i in range(LIMBS) if 0 <= k - i < LIMBS]
        product = sum(limbs[i] * limbs[j] for i, j in pairs)
        squares += _weigh(np.bincount(bins, weights=product), 2, low, LIMB_BITS * k)
    return total, squares


def _weigh(binned: np.ndarray, power: int, low: int, shift: int) -> Fraction:
    """sum over bins b of binned[b] * 2**(power*(low + b) + shift), exactly."""
    total = 0
    for b in np.flatnonzero(binned):
        total += int(binned[b]) << (power * int(b))
    return Fraction(total) * Fraction(2) ** (power * low + shift)


@dataclass(frozen=True)
class ExactMoments:
    """Exact moments of one channel."""

    count: int | Fraction
    mean: Fraction
    m2: Fraction  # sum of squared deviations from the mean

    @property
    def var(self) -> Fraction:
        return self.m2 / self.count


def exact_moments(values: np.ndarray) -> ExactMoments:
    """Count, mean and sum of squared deviations of the stored floats, exactly."""
    n = np.size(values)
    total, squares = exact_sums(values)
    return ExactMoments(n, total / n, squares - total * total / n)


def channel_moments(x: np.ndarray) -> list[ExactMoments]:
    """`exact_moments` of every channel of x, channels on axis 1."""
    return [exact_moments(x[:, c]) for c in range(x.shape[1])]


def weighted_moments(x: np.ndarray, w: np.ndarray) -> list[ExactMoments]:
    """Sum of weights, mean and weighted squares of every channel; x is anything where w is 0."""
    found = []
    for c in range(x.shape[1]):
        counts = w[:, c] != 0
        values, unit = _integers(x[:, c][counts])
        weights, share = _integers(w[:, c][counts])
        total = sum(weights)
        products = [weight * value for weight, value in zip(weights, values, strict=True)]
        first = sum(products)
        squares = sum(p * value for p, value in zip(products, values, strict=True))
        m2 = Fraction(squares * total - first * first, total)
        found.append(
            ExactMoments(total * share, Fraction(first, total) * unit, m2 * unit**2 * share)
        )
    return found


def _integers(values: np.ndarray) -> tuple[list[int], Fraction]:
    """Finite floats as integers, and the power of two that these are multiplied by."""
    fraction, exponent = np.frexp(np.asarray(values, np.float64))
    low = int(exponent.min(initial=0))
    pairs = zip(np.ldexp(fraction, 53).tolist(), (exponent - low).tolist(), strict=True)
    return [int(mantissa) << shift for mantissa, shift in pairs], Fraction(2) ** (low - 53)


def relative_error(got: float, exact: Fraction) -> float:
    """|got - exact| / |exact| with no rounding; 0 where both are 0, inf where got is not finite."""
    if not np.isfinite(got):
        return float("inf")
    error = abs(Fraction(float(got)) - exact)
    if error == 0:
        return 0.0
    return float("inf") if exact == 0 else float(error / abs(exact))


def longdouble(value: Fraction) -> np.longdouble:
    """The fraction in extended precision."""
    high, low = split(value)
    return np.longdouble(high) + low


def split(value: Fraction) -> tuple[float, np.longdouble]:
    """The nearest double, and the rest of the value in extended precision."""
    high = float(value)
    middle = float(value - Fraction(high))
    low = float(value - Fraction(high) - Fraction(middle))
    return high, np.longdouble(middle) + np.longdouble(low)


def _column(values: list, ndim: int) -> np.ndarray:
    """One longdouble per channel, shaped to broadcast along axis 1."""
    return np.array(values, dtype=np.longdouble).reshape((-1,) + (1,) * (ndim - 2))


def _parameter(values: np.ndarray | None, default: float, x: np.ndarray) -> np.ndarray:
    if values is None:
        values = np.full(x.shape[1], default)
    return _column([np.longdouble(v) for v in values], x.ndim)


@dataclass(frozen=True)
class Centered:
    """x - mean and invstd of every channel, in extended precision."""

    deviation: np.ndarray
    invstd: np.ndarray
    count: np.ndarray

    @property
    def xhat(self) -> np.ndarray:
        return self.deviation * self.invstd


def centered(x: np.ndarray, moments: list[ExactMoments], eps: float) -> Centered:
    means = [split(m.mean) for m in moments]
    high = _column([m[0] for m in means], x.ndim)
    low = _column([m[1] for m in means], x.ndim)
    var = _column([longdouble(m.var) for m in moments], x.ndim)
    invstd = 1 / np.sqrt(var + np.longdouble(eps))
    count = _column([longdouble(Fraction(m.count)) for m in moments], x.ndim)
    return Centered((x.astype(np.longdouble) - high) - low, invstd, count)


@dataclass(frozen=True)
class Forward:
    """y, the scale |weight * xhat| + |bias| that its error is measured against, and how far an ulp
    of a float64 mean moves it (an ulp of the std where that is larger: means are sums)."""

    y: np.ndarray
    scale: np.ndarray
    mean_ulp: np.ndarray


def forward(
    x: np.ndarray,
    moments: list[ExactMoments],
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
) -> Forward:
    """Batch norm of x with these moments."""
    parts = centered(x, moments, eps)
    factor, shift = _parameter(weight, 1.0, x), _parameter(bias, 0.0, x)
    scaled = parts.xhat * factor
    mean_ulp = np.abs(factor) * parts.invstd * _mean_spacing(moments, x.ndim)
    return Forward(scaled + shift, np.abs(scaled) + np.abs(shift), mean_ulp)


def _mean_spacing(moments: list[ExactMoments], ndim: int) -> np.ndarray:
    """The ulp of a double at |mean|, or at the std where that is larger."""
    sizes = [max(abs(float(m.mean)), float(m.var) ** 0.5) for m in moments]
    return _column([np.spacing(size) for size in sizes], ndim)


@dataclass(frozen=True)
class Backward:
    """Gradients, the largest term of each dx, sums of |terms| of dweight and dbias, and how far an
    ulp of a float64 mean moves dweight."""

    dx: np.ndarray
    largest_term: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    dweight_scale: np.ndarray
    dbias_scale: np.ndarray
    mean_ulp: np.ndarray


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    moments: list[ExactMoments],
    weight: np.ndarray | None = None,
    eps: float = 1e-5,
    frozen: bool = False,
    weights: np.ndarray | float = 1.0,
) -> Backward:
    """Gradients of batch norm: Ioffe & Szegedy (2015), section 3, with the derivatives collected.

    dx = weight * invstd * (dy - sum(dy)/n - xhat * sum(dy * xhat)/n); with frozen statistics the
    first term alone. With weights, the other terms are multiplied by the weight of the value, and n
    is the sum of weights.
    """
    parts = centered(x, moments, eps)
    xhat = parts.xhat
    g = dy.astype(np.longdouble)
    axes = (0, *range(2, x.ndim))
    dbias, dweight = g.sum(axis=axes), (g * xhat).sum(axis=axes)
    factor = _parameter(weight, 1.0, x) * parts.invstd
    terms = [factor * g]
    if not frozen:
        share = factor * weights / parts.count
        terms.append(-share * xhat * _column(dweight, x.ndim))
        terms.append(-share * _column(dbias, x.ndim))
    largest = np.abs(terms[0])
    for term in terms[1:]:
        largest = np.maximum(largest, np.abs(term))
    return Backward(
        sum(terms[1:], terms[0]),
        largest,
        dweight,
        dbias,
        np.abs(g * xhat).sum(axis=axes),
        np.abs(g).sum(axis=axes),
        np.abs(g).sum(axis=axes) * (parts.invstd * _mean_spacing(moments, x.ndim)).ravel(),
    )


def ulp(scale: np.ndarray, dtype: type | np.dtype = np.float32) -> np.ndarray:
    """The spacing of `dtype` at |scale|; never less than its smallest subnormal."""
    info = np.finfo(dtype)
    scale = np.maximum(np.abs(scale).astype(np.longdouble), np.longdouble(info.tiny))
    _, exponent = np.frexp(scale)
    return np.ldexp(np.longdouble(1), exponent - 1 - info.nmant)


def max_ulp(got: np.ndarray, reference: np.ndarray, scale: np.ndarray) -> float:
    """Largest |got - reference| in ulp of got's dtype at `scale`; inf where got is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    error = np.abs(got.astype(np.longdouble) - reference)
    return float(np.max(error / ulp(scale, got.dtype), initial=0))


def max_relative(got: np.ndarray, reference: np.ndarray, scale: np.ndarray) -> float:
    """Largest |got - reference| / scale; an error where scale is 0 counts as inf."""
    error = np.abs(np.asarray(got).astype(np.longdouble) - reference)
    scale = np.broadcast_to(np.abs(scale), error.shape)
    if not np.isfinite(error).all() or (error[scale == 0] != 0).any():
        return float("inf")
    positive = scale > 0
    return float(np.max(error[positive] / scale[positive], initial=0))


def forward_error(y: np.ndarray, expected: Forward, where: np.ndarray | None = None) -> float:
    """What `tolerances.forward` bounds: float32 in ulp of the scale, float64 relative to it.

    `where` tells which values are compared; all of them by default. A saved mean is one double, so
    a float64 result may be off by some ulp of the mean besides.
    """
    if where is not None:
        spacing = np.broadcast_to(expected.mean_ulp, y.shape)[where]
        y, expected = y[where], Forward(expected.y[where], expected.scale[where], spacing)
    if y.dtype == np.float32:
        return max_ulp(y, expected.y, expected.scale)
    error = np.maximum(np.abs(y - expected.y) - tolerances.MEAN_ULP * expected.mean_ulp, 0)
    return max_relative(error, np.longdouble(0), expected.scale)


def gradient_error(dx: np.ndarray, expected: Backward) -> float:
    """What `tolerances.gradient` bounds: against the largest term, in ulp for float32."""
    if dx.dtype == np.float32:
        return max_ulp(dx, expected.dx, expected.largest_term)
    return max_relative(dx, expected.dx, expected.largest_term)


def sums_error(dweight: np.ndarray, dbias: np.ndarray, expected: Backward) -> float:
    """Error of dweight and dbias, relative to the sums of |terms|; `MEAN_ULP` are free."""
    error = np.maximum(
        np.abs(dweight - expected.dweight) - tolerances.MEAN_ULP * expected.mean_ulp, 0
    )
    return max(
        max_relative(error, np.longdouble(0), expected.dweight_scale),
        max_relative(dbias, expected.dbias, expected.dbias_scale),
    )
