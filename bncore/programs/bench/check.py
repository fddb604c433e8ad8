"""Check the results of every peer before anything is timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.programs.bench.cases import BACKWARD, EPS, FORWARD, FUSED, MOMENTS, Array, Case, Problem
from bncore.programs.demo import accuracy, formula

# Errors are in ulp of x's dtype.  A peer that promises no accuracy must still be right to about
# 0.6 %.  A float32 sum of 4e5 values of mean 1, added one after the other, is not more exact.
PLAUSIBLE = {"float32": 1e5, "float64": 1e8}
PROMISED = {
    "float32": {"forward": 3.0, "backward": 8.0, "moments": 4.0},
    # The mean is rounded to float64 as well, and that error is large against a small x - mean.
    "float64": {"forward": 2.0**13, "backward": 2.0**13, "moments": 64.0},
}


class WrongResult(AssertionError):
    """A result that must not be timed."""


def allowed(exact: bool, case: Case) -> float:
    """Return the largest error that is accepted, in ulp."""
    if not exact:
        return PLAUSIBLE[case.dtype]
    promised = PROMISED[case.dtype]
    if case.operation in FORWARD:
        return promised["forward"]
    return promised["backward" if case.operation in BACKWARD else "moments"]


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
    """Compute mean and variance; for float32 values float64 is exact enough, and smaller."""
    wide = np.float64 if p.dtype == "float32" else np.longdouble
    mean, var = formula.statistics(p.take(p.x).astype(wide), p.axes)
    return [(mean, np.sqrt(mean * mean + var)), (var, var)]


def error(outputs: tuple[Array, ...], expected: list[tuple[Any, Any]], p: Problem) -> float:
    """Return the largest error of any output, in ulp of x's dtype; NaN counts as infinite."""
    worst = 0.0
    for output, (exact, magnitude) in zip(outputs, expected, strict=True):
        output = np.asarray(output)
        full = output.shape == p.memory_shape
        got = p.take(output) if full else output.reshape(-1)[p.picks]
        got = got.astype(p.dtype).reshape(exact.shape)
        found = accuracy.max_ulp(got, exact, np.asarray(magnitude))
        worst = max(worst, found if found == found else float("inf"))
    return worst


def assert_right(exact: bool, case: Case, ulp: float) -> None:
    """Raise if a result has a larger error than is accepted.

    Raises
    ------
    WrongResult
        With the error found.
    """
    if not ulp <= allowed(exact, case):
        raise WrongResult(f"{case.operation} is wrong by {ulp:.3g} ulp")
