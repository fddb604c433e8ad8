"""Time bncore.sklearn.StandardScaler against scikit-learn's, and show the digits of both.

    python benchmarks/scaler.py [--rows 10000000] [--features 50] [--repeats 3] [--threads N]

The table is float32, mean 3 and standard deviation 2; it takes 2 GB at the default size, and
scikit-learn three times as much while it computes.  Both take turns; medians.  Their results are
compared.  Then `partial_fit` of float64 batches is compared with exact rational arithmetic.
"""

from __future__ import annotations

import argparse
import time
from fractions import Fraction
from statistics import median
from typing import Any

import numpy as np
import sklearn
from sklearn.preprocessing import StandardScaler as Theirs

import bncore
from bncore.sklearn import StandardScaler

ROWS, BATCHES = 4000, 1000  # of the comparison of digits


def table(rows: int, features: int) -> np.ndarray:
    """Return normal values, made some rows at a time."""
    rng = np.random.default_rng(0)
    x = np.empty((rows, features), np.float32)
    for start in range(0, rows, 1 << 16):
        part = x[start : start + (1 << 16)]
        rng.standard_normal(part.shape, np.float32, part)
        part *= 2
        part += 3
    return x


def timed(scaler: Any, x: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return the seconds of fit and of transform, and some rows of the result."""
    start = time.perf_counter()
    scaler.fit(x)
    fitted = time.perf_counter()
    y = scaler.transform(x)
    return fitted - start, time.perf_counter() - fitted, y[::9973].copy()


def variance_error(scaler: Any, x: np.ndarray) -> float:
    """Return the relative error of the variance of one feature after many batches."""
    for part in np.array_split(x, BATCHES):
        scaler.partial_fit(part)
    values = [Fraction(float(v)) for v in x[:, 0]]
    mean = sum(values) / len(values)
    exact = sum((v - mean) ** 2 for v in values) / len(values)
    return float(abs(Fraction(float(scaler.var_[0])) / exact - 1))


def main() -> None:
    """Print times, their ratio, and errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    x = table(options.rows, options.features)
    print(
        f"{options.rows} x {options.features} float32, {x.nbytes / 2**30:.2f} GiB; scikit-learn "
        f"{sklearn.__version__}, bncore {bncore.__version__}",
        flush=True,
    )
    kinds = {
        "scikit-learn": Theirs,
        "bncore": lambda: StandardScaler(n_threads=options.threads),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(options.repeats):
        results = {}
        for name, kind in kinds.items():
            fit, transform, results[name] = timed(kind(), x)
            found[name].append((fit, transform))
        # Theirs rounds mean and deviation to float32 before it uses them.
        np.testing.assert_allclose(results["bncore"], results["scikit-learn"], atol=2e-6)
    totals = {}
    for name, times in found.items():
        fit, transform = (median(column) for column in zip(*times, strict=True))
        totals[name] = median(map(sum, times))
        print(f"{name}: fit {fit:.3f} s, transform {transform:.3f} s, both {totals[name]:.3f} s")
    print(f"ratio of both: {totals['scikit-learn'] / totals['bncore']:.1f}")
    for far in (1e3, 1e6, 1e9, 1e12):
        y = np.random.default_rng(1).normal(far, 1.0, (ROWS, 1))
        errors = [f"{name} {variance_error(kind(), y):.1e}" for name, kind in kinds.items()]
        print(f"mean/std {far:.0e}, {BATCHES} batches, error of the variance: {', '.join(errors)}")


if __name__ == "__main__":
    main()
