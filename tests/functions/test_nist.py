"""float64 variance on NIST's certified data, against the exact rational of the stored input."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import bncore
import oracle
import tolerances

ANOVA = Path(scipy.stats.__file__).parent / "tests" / "data" / "nist_anova"
# An optional folder of certified data: measured univariate sets, as decimal strings.
FOLDER = Path(
    os.environ.get("BNCORE_NIST_DIR", Path(__file__).parents[3] / "shared" / "data" / "nist")
)


def smls(number: int) -> np.ndarray:
    """Read SmLs01 ... SmLs09: lines of treatment and response from line 61 on."""
    lines = (ANOVA / f"SmLs{number:02d}.dat").read_text().splitlines()[60:]
    table = np.array([line.split() for line in lines if line.strip()], dtype=np.float64)
    return table


def generated() -> dict[str, np.ndarray]:
    """NumAcc1 to NumAcc4, from NIST's description of how they were made."""
    alternating = np.where(np.arange(1000) % 2 == 0, 1, 3)

    def decimal(whole: int) -> np.ndarray:
        tenths = [2, *alternating]
        return np.array([float(f"{whole}.{t}") for t in tenths])

    return {
        "NumAcc1": np.array([10000001.0, 10000003.0, 10000002.0]),
        "NumAcc2": decimal(1),
        "NumAcc3": decimal(1000000),
        "NumAcc4": decimal(10000000),
    }


def measured() -> dict[str, np.ndarray]:
    path = FOLDER / "nist_univariate.json"
    if not path.exists():
        return {}
    sets = json.loads(path.read_text())["sets"]
    return {name: np.array([float(v) for v in one["y"]]) for name, one in sets.items()}


UNIVARIATE = {**measured(), **generated()}


def check(moments: bncore.Moments, channels: list[np.ndarray]) -> None:
    for c, values in enumerate(channels):
        exact = oracle.exact_moments(values)
        error = abs(Fraction(float(moments.var()[c])) - exact.var) / exact.var
        assert float(error) <= tolerances.VARIANCE_FLOAT64


@pytest.mark.parametrize("name", UNIVARIATE)
def test_univariate(backend, name):
    y = UNIVARIATE[name]
    check(bncore.moments(y[:, None]), [y])
    check(bncore.moments(np.stack([y, y[::-1]], axis=1)), [y, y])


@pytest.mark.parametrize("number", range(1, 10))
def test_smls(backend, number):
    table = smls(number)
    treatment, y = table[:, 0], table[:, 1]
    check(bncore.moments(y[:, None]), [y])
    columns = [y[treatment == t] for t in np.unique(treatment)]
    assert len(columns) == 9
    check(bncore.moments(np.stack(columns, axis=1)), columns)  # NC: axis-0 statistics
    check(bncore.moments(np.stack(columns), axis=0), columns)


def test_certified_standard_deviation():
    """The files are read correctly: NIST's figure for NumAcc4 is 0.1, its mean 10000000.2."""
    y = generated()["NumAcc4"]
    moments = bncore.moments(y[:, None])
    assert y.size == 1001
    assert abs(moments.mean[0] - 10000000.2) < 1e-8
    assert abs(moments.std(correction=1)[0] - 0.1) < 1e-8
