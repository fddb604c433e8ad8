"""Is the result right? Asked of every contestant before the clock starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncore.demo import accuracy, formula
from cases import BACKWARD, EPS, FORWARD, Problem
from contestants import Contestant

# Errors are in ulp of float32. A contestant without a promise must still be right to some 0.6 %:
# 4e5 values of mean 1 summed one after the other in float32 leave no more.
PLAUSIBLE = 1e5


def allowed(contestant: Contestant, operation: str) -> float:
    if not contestant.exact:
        return PLAUSIBLE
    if operation in FORWARD:
        return 3.0
    return 8.0 if operation in BACKWARD else 4.0


def reference(operation: str, p: Problem) -> list[tuple[Any, Any]]:
    """For each output its exact value, and the magnitude that errors are measured in."""
    x, dy = accuracy.extended(p.take(p.x), p.take(p.dy))
    w, b, stored_mean, stored_var = accuracy.extended(
        *(p.per_channel(a[p.picks]) for a in (p.weight, p.bias, p.running_mean, p.running_var))
    )
    batch = formula.statistics(x, p.axes)
    if operation in ("train", "infer"):
        mean, var = batch if operation == "train" else (stored_mean, stored_var)
        return [accuracy.forward_reference(x, mean, var, w, b, EPS)]
    if operation in ("moments", "mean_var"):
        mean, var = batch
        return [(mean, np.sqrt((x * x).mean(axis=p.axes, keepdims=True))), (var, var)]

    mean, var = (stored_mean, stored_var) if operation == "infer_backward" else batch
    sum_dy, sum_dy_xhat = formula.sums(dy, x, mean, var, p.axes, EPS)
    # The sums of absolute values: dy and x - mean made positive.
    of_sums = formula.sums(np.abs(dy), mean + np.abs(x - mean), mean, var, p.axes, EPS)
    sums = [(sum_dy, of_sums[0]), (sum_dy_xhat, of_sums[1])]
    if operation == "grad_sums":
        return sums
    if operation == "infer_backward":
        dx = formula.infer_backward(dy, x, mean, var, w, p.axes, EPS)[0]
        return [(dx, np.abs(dx)), *sums[::-1]]
    dx_and_terms = accuracy.backward_reference(dy, x, mean, var, w, p.axes, EPS)
    return [dx_and_terms] if operation == "grad_input" else [dx_and_terms, *sums[::-1]]


def error(contestant: Contestant, operation: str, p: Problem, result: Any) -> float:
    """Largest error of any output, in ulp of float32."""
    worst = 0.0
    outputs = contestant.arrays(operation, result, p)
    for output, (exact, magnitude) in zip(outputs, reference(operation, p), strict=True):
        full = output.shape == p.x.shape
        got = p.take(output) if full else output.reshape(-1)[p.picks]
        worst = max(
            worst,
            accuracy.max_ulp(
                got.astype(np.float32).reshape(exact.shape), exact, np.asarray(magnitude)
            ),
        )
    return worst


def assert_right(contestant: Contestant, operation: str, p: Problem, result: Any) -> float:
    worst = error(contestant, operation, p, result)
    limit = allowed(contestant, operation)
    assert worst <= limit, f"{contestant.name}: {operation} is wrong by {worst:.3g} ulp"
    return worst
