"""Weighted calls of a backend's own functions, on arrays (outer, channels, inner).

A `WeightedCase` has the weights that the contract takes; `run` gives the results of all functions
by name. bfloat16 is uint16 here, as backends take it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bncore import backends
from bncore.arguments.problem import Fusion
from bncore.arguments.weights import Weights

EPS = 1e-5


def shared(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], 1, shape[2]


def mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.random(shape) < 0.8).astype(np.uint8)


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape) * 3.0 * mask(rng, shape)


def late(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nothing counts at the begin, where the first blocks are, and everything afterwards."""
    w = np.ones(shape, np.uint8)
    begin = w.size * 2 // 3 if shape[0] > 1 else 0
    w.reshape(-1)[:begin] = 0
    w[..., : shape[2] * 2 // 3 if shape[0] == 1 else 0] = 0
    return w


# Weights by name: their values, and whether NaN is omitted.
KINDS = {
    "mask shared": lambda rng, shape: (mask(rng, shared(shape)), False),
    "mask": lambda rng, shape: (mask(rng, shape), False),
    "numbers shared": lambda rng, shape: (numbers(rng, shared(shape)), False),
    "numbers": lambda rng, shape: (numbers(rng, shape), False),
    "late": lambda rng, shape: (late(rng, shape), False),
    "omit": lambda rng, shape: (None, True),
    "mask, omit": lambda rng, shape: (mask(rng, shared(shape)), True),
    "numbers, omit": lambda rng, shape: (numbers(rng, shape), True),
}

# All of these are the plain call.
ONES = {
    "mask shared": lambda shape: Weights(np.ones(shared(shape), np.uint8), False, None, None),
    "mask": lambda shape: Weights(np.ones(shape, np.uint8), False, None, None),
    "numbers shared": lambda shape: Weights(np.ones(shared(shape)), False, None, None),
    "numbers": lambda shape: Weights(np.ones(shape), True, None, None),
    "omit": lambda shape: Weights(None, True, None, None),
    "fill": lambda shape: Weights(None, False, 7.0, None),
}


@dataclass(frozen=True)
class WeightedCase:
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    given: Weights | None
    activation: str | None = None
    residual: np.ndarray | None = None

    @property
    def w(self) -> np.ndarray:
        """The weight of every value."""
        values = 1.0 if self.given.values is None else self.given.values
        w = np.array(np.broadcast_to(values, self.x.shape), np.float64)
        if self.given.omit_nan:
            w[np.isnan(in_numbers(self.x))] = 0.0
        return w

    def with_values(self, name: str, where: np.ndarray, value: float) -> WeightedCase:
        """The same case with this value at these places of x or dy."""
        array = getattr(self, name).copy()
        array[where] = stored(np.array(value), array.dtype)
        return replace(self, **{name: array})

    def plain(self) -> WeightedCase:
        return replace(self, given=None)


def stored(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """float32 or float64 in a storage type."""
    if dtype != np.uint16:
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)  # upper half; tests need no rounding
    return (bits >> 16).astype(np.uint16)


def in_numbers(values: np.ndarray) -> np.ndarray:
    """Data as float32 or float64."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.promote_types(values.dtype, np.float32))


def make_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    dtype: type,
    kind: str,
    fill: float | None = None,
    fused: bool = False,
    mean: float = 3.0,
) -> WeightedCase:
    """Normal values; some of dy are 0, and where nothing counts there is NaN here and there."""
    values, omit = KINDS[kind](rng, shape)
    given = Weights(values, omit, fill, np.empty(shape[1]))
    x = rng.standard_normal(shape) + mean
    dy = rng.standard_normal(shape) * (rng.random(shape) < 0.9)
    if omit:
        x[rng.random(shape) < 0.1] = np.nan
    elif values is not None:
        x[(np.broadcast_to(values, shape) == 0) & (rng.random(shape) < 0.5)] = np.nan
    weight, bias = rng.uniform(0.5, 2.0, (2, shape[1]))
    residual = stored(rng.standard_normal(shape), dtype) if fused else None
    activation = "leaky_relu" if fused else None
    data = stored(x, dtype), stored(dy, dtype)
    return WeightedCase(*data, weight, bias, given, activation, residual)


def run_sums(case: WeightedCase, n_threads: int = 1) -> dict[str, np.ndarray]:
    """The moments and the gradient sums of the backend in use."""
    kernels, found = backends.current().kernels, {}
    for name, float64_sums in (("moments", False), ("float64", True)):
        mean, m2, (w, count) = per_channel(case), per_channel(case), weights(case)
        kernels.moments(mean, m2, case.x, n_threads, float64_sums, w)
        found |= {f"{name}.mean": mean, f"{name}.m2": m2, f"{name}.count": count}
    with np.errstate(all="ignore"):
        mean, var = found["moments.mean"], found["moments.m2"] / found["moments.count"]
    sums = per_channel(case), per_channel(case)
    kernels.grad_sums(*sums, case.dy, case.x, mean, var, EPS, n_threads, weights(case)[0])
    return found | {"steps.dbias": sums[0], "steps.dweight": sums[1]}


def run(case: WeightedCase, n_threads: int = 1) -> dict[str, np.ndarray]:
    """The results of all functions of the backend in use."""
    kernels, results = backends.current().kernels, run_sums(case, n_threads)

    def fusion(dresidual: np.ndarray | None = None) -> Fusion | None:
        return Fusion(case.activation, 0.25, case.residual, None, dresidual, case.bias).asked()

    mean, m2, (w, count) = per_channel(case), per_channel(case), weights(case)
    given_forward = case.weight, case.bias, EPS, n_threads
    y = np.empty_like(case.x)
    kernels.train(y, mean, m2, case.x, *given_forward, fusion(), w)
    results |= {"train.y": y, "train.mean": mean, "train.m2": m2, "train.count": count}
    with np.errstate(all="ignore"):
        var = m2 / count
    y = np.empty_like(case.x)
    kernels.normalize(y, case.x, mean, var, *given_forward, fusion(), w)
    results["normalize.y"] = y
    sums, dx = (results["steps.dbias"], results["steps.dweight"]), np.empty_like(case.x)
    statistics = mean, var, *sums, count, case.weight, EPS
    kernels.grad_input(dx, case.dy, case.x, *statistics, n_threads, w)
    results["steps.dx"] = dx
    for name in ("train_backward", "infer_backward"):
        for target in (None, np.empty_like(case.x)):
            dx, sums = np.empty_like(case.x), (per_channel(case), per_channel(case))
            arrays = dx, *sums, case.dy, case.x, mean, var, case.weight, EPS, n_threads
            getattr(kernels, name)(*arrays, fusion(target), w)
            found = {"dx": dx, "dbias": sums[0], "dweight": sums[1]}
            found |= {} if target is None else {"dresidual": target}
            key = name if target is None else f"{name} of both"
            results |= {f"{key}.{part}": value for part, value in found.items()}
    return results


def per_channel(case: WeightedCase) -> np.ndarray:
    """An output per channel, to be overwritten."""
    return np.full(case.x.shape[1], 99.0)


def weights(case: WeightedCase) -> tuple[Weights | None, np.ndarray]:
    """The weights with a count of their own, and this count."""
    if case.given is None:
        channels = case.x.shape[1]
        return None, np.full(channels, case.x.size / channels)
    count = per_channel(case)
    return case.given._replace(count=count), count


def one_nan(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same results with one NaN for all, since its bits may differ."""
    found = {}
    for name, values in results.items():
        values = values.copy()
        values[np.isnan(in_numbers(values))] = stored(np.array(np.nan), values.dtype)
        found[name] = values
    return found
