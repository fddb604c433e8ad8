"""The fast path updates canonical running statistics; others go through the checks first."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import variants
from bncore import backends

pytestmark = pytest.mark.skipif(
    "native" not in variants.FOUND.names(), reason="the native module is missing"
)


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


@pytest.fixture
def moved(monkeypatch):
    """Record for each update of running statistics whether the fast path did the work."""
    calls: dict[str, list[bool]] = {}
    with bncore.use_backend("native"):
        active = backends.current()
        monkeypatch.setattr(active, "fast", variants.watched_fast_path(active.fast, calls))
        yield calls["fast_running"]


def update(mean, var, moments, **options) -> tuple[np.ndarray, np.ndarray]:
    bncore.update_running_stats(mean, var, moments, **options)
    return mean, var


@pytest.mark.parametrize("correction", [0, 1, 0.5, -3.0])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_the_short_way_of_running_statistics_gives_the_same_bits(moved, rng, momentum, correction):
    moments = bncore.moments(rng.normal(1e3, 1.0, (7, 300)))
    start = rng.normal(size=300), rng.uniform(0.5, 2.0, 300)
    options = {"momentum": momentum, "correction": correction}
    short = update(*(a.copy() for a in start), moments, **options)
    strided = update(*(a.repeat(2)[::2] for a in start), moments, **options)
    assert moved == [True, False]
    for one, other in zip(short, strided, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"momentum": 1}, id="an integer momentum"),
        pytest.param({"correction": np.float64(1)}, id="a correction of NumPy's"),
        pytest.param({"mean": np.zeros(2, np.float32)}, id="float32"),
        pytest.param({"var": np.ones(2, ">f8")}, id="big-endian"),
        pytest.param({"var": np.ones(4)[::2]}, id="a stride"),
        pytest.param({"correction": -(1 << 60)}, id="a huge correction"),
    ],
)
def test_other_running_statistics_take_the_long_way(moved, change):
    moments = bncore.Moments(2, [1.0, 2.0], [2.0, 4.0])
    given = {"mean": np.zeros(2), "var": np.ones(2), "moments": moments} | change
    update(given.pop("mean"), given.pop("var"), given.pop("moments"), **given)
    assert moved == [False]


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 1.5}, {"momentum": float("nan")}, {"correction": 2}, {"correction": 2.0},
        {"correction": float("nan")}, {"mean": np.zeros(3)}, {"mean": np.broadcast_to(0.0, 2)},
        {"mean": None}, {"mean": read_only(np.zeros(2))}, {"var": np.zeros((2, 1))}, {"same": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_short_way_refuses_nothing_by_itself(moved, change):
    given = {"mean": np.zeros(2), "var": np.ones(2), **change}
    if given.pop("same", False):
        given["var"] = given["mean"]
    moments = bncore.Moments(2, [1.0, 2.0], [2.0, 4.0])
    with pytest.raises((TypeError, ValueError), match="expected"):
        update(given.pop("mean"), given.pop("var"), moments, **given)
    assert moved == [False]
