"""Check the results of every peer before anything is timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.programs.bench.cases import (
    BACKWARD,
    EPS,
    FORWARD,
    FUSED,
    ITEM_BYTES,
    MOMENTS,
    Array,
    Case,
    Problem,
    numpy_dtype,
)
from bncore.programs.demo import accuracy, formula

# Errors are in ulp of an output's dtype.  A peer that promises no accuracy must still be right to
# about 0.6 %.  A float32 sum of 4e5 values of mean 1, added one after the other, is not more exact.
# An ulp of bfloat16 is 0.4 to 0.8 %; two are accepted, because a peer may round more than once.
PLAUSIBLE = {"float32": 1e5, "float64": 1e8, "float16": 12.0, "bfloat16": 2.0}
# A 16-bit result is rounded once, from a float32 value that keeps the promise of float32.
ROUNDED_ONCE = {"forward": 0.51, "backward": 0.52, "moments": 0.51}
PROMISED = {
    "float16": ROUNDED_ONCE,
    "bfloat16": ROUNDED_ONCE,
    "float32": {"forward": 3.0, "backward": 8.0, "moments": 4.0},
    # The mean is rounded to float64 as well, and that error is large against a small x - mean.
    "float64": {"forward": 2.0**13, "backward": 2.0**13, "moments": 64.0},
}
# Bits of the fraction, least exponent, and how many binary digits terms may cancel before float32's
# own error, 3 or 8 ulp of the terms, is more than 0.01 or 0.02 ulp of the 16-bit result.
NARROW = {"float16": (10, -14, 4), "bfloat16": (7, -126, 6)}


class WrongResult(AssertionError):
    """A result that must not be timed."""


def allowed(exact: bool, operation: str, dtype: str) -> float:
    """Return the largest error that is accepted of an output of this dtype, in ulp."""
    if not exact:
        return PLAUSIBLE[dtype]
    promised = PROMISED[dtype]
    if operation in FORWARD:
        return promised["forward"]
    return promised["backward" if operation in BACKWARD else "moments"]


def reference(operation: str, p: Problem) -> list[tuple[Any, Any]]:
    """Return each output's exact value, and the magnitude in which its errors are measured."""
    if operation in MOMENTS:
        return _moments_reference(p)
    x = p.take(p.x).astype(np.longdouble)
    w, b, stored_mean, stored_var = accuracy.extended(
        *(p.per_channel(a[p.picks]) for a in (p.weight, p.bias, p.running_mean, p.running_var))
    )
    if operation in ("infer", "infer_backward"):
        mean, var = stored_mean, stored_var
    else:
        mean, var = formula.statistics(x, p.axes)
    if operation in FORWARD or operation in FUSED:
        y, magnitude = accuracy.forward_reference(x, mean, var, w, b, EPS)
    if operation in FUSED:
        residual = p.take(p.residual).astype(np.longdouble)
        y, magnitude = np.maximum(y + residual, 0.0), magnitude + np.abs(residual)
    if operation in FORWARD:
        return [(y, magnitude)]

    dy = p.take(p.dy).astype(np.longdouble)
    if operation in FUSED:
        dy *= y > 0
    sum_dy, sum_dy_xhat = formula.sums(dy, x, mean, var, p.axes, EPS)
    # The sums of absolute values, which take dy and x - mean as positive.
    of_sums = formula.sums(np.abs(dy), mean + np.abs(x - mean), mean, var, p.axes, EPS)
    sums = [(sum_dy, of_sums[0]), (sum_dy_xhat, of_sums[1])]
    if operation == "grad_sums":
        return sums
    if operation == "infer_backward":
        dx = formula.infer_backward(dy, x, mean, var, w, p.axes, EPS)[0]
        return [(dx, np.abs(dx)), *sums[::-1]]
    dx_and_terms = accuracy.backward_reference(dy, x, mean, var, w, p.axes, EPS)
    if operation == "grad_input":
        return [dx_and_terms]
    return [dx_and_terms, *sums[::-1], *([(dy, np.abs(dy))] if operation in FUSED else [])]


def _moments_reference(p: Problem) -> list[tuple[Any, Any]]:
    """Compute mean and variance; if values are no float64, that is exact enough, and smaller."""
    wide = np.longdouble if p.dtype == "float64" else np.float64
    mean, var = formula.statistics(p.take(p.x).astype(wide), p.axes)
    return [(mean, np.sqrt(mean * mean + var)), (var, var)]


def errors(
    outputs: tuple[Array, ...], expected: list[tuple[Any, Any]], p: Problem
) -> dict[str, float]:
    """Return the largest error of the outputs of each dtype, in its ulp; NaN counts as infinite.

    Outputs like x have its dtype; those per channel that of the parameters, or of x (`mean_var`).
    """
    worst: dict[str, float] = {}
    for output, (exact, magnitude) in zip(outputs, expected, strict=True):
        output = np.asarray(output)
        full = output.shape == p.memory_shape
        got = p.take(output) if full else output.reshape(-1)[p.picks]
        like_x = full or output.dtype == p.x.dtype
        dtype = p.dtype if like_x else str(p.weight.dtype)
        got = got.astype(numpy_dtype(dtype)).reshape(exact.shape)
        measure = _narrow_ulp if ITEM_BYTES[dtype] == 2 else accuracy.max_ulp
        found = measure(got, exact, np.asarray(magnitude))
        worst[dtype] = max(worst.get(dtype, 0.0), found if found == found else float("inf"))
    return worst


def error(outputs: tuple[Array, ...], expected: list[tuple[Any, Any]], p: Problem) -> float:
    """Return the largest error of the outputs in x's dtype, or of all if none has it."""
    return of_data(errors(outputs, expected, p), p.dtype)


def of_data(found: dict[str, float], dtype: str) -> float:
    """Take the error of the outputs in x's dtype, or the largest of all if none has it."""
    return found.get(dtype, max(found.values()))


def _narrow_ulp(got: Array, exact: Array, magnitude: Array) -> float:
    """Find the largest error of 16-bit values, in ulp of the result.

    If its terms cancel further than float32 allows, it is in ulp of a part of the terms.
    """
    bits, least, cancelled = NARROW[got.dtype.name]
    exponent = np.frexp(np.maximum(np.abs(exact), np.ldexp(magnitude, -cancelled)))[1] - 1
    ulp = np.ldexp(1.0, np.maximum(exponent, least) - bits)
    return float(np.max(np.abs(got.astype(np.float32) - exact) / ulp))


def assert_right(exact: bool, case: Case, found: dict[str, float]) -> None:
    """Raise if a result has a larger error than is accepted.

    Raises
    ------
    WrongResult
        With the error found.
    """
    for dtype, ulp in found.items():
        if not ulp <= allowed(exact, case.operation, dtype):
            raise WrongResult(f"{case.operation} is wrong by {ulp:.3g} ulp")
