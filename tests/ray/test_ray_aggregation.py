"""`bncore.ray.MomentsOf` in a Ray cluster of this machine: digits, bits, and a worker that dies."""

from __future__ import annotations

import itertools
import os
import signal
from fractions import Fraction

import numpy as np
import pytest

import bncore
import oracle
import tolerances
from checkout import blocks_of
from processes import python

pytestmark = [
    pytest.mark.needs_ray,
    pytest.mark.filterwarnings("default"),  # those of Ray's own code are no errors
]
ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from bncore.extras import pip_install  # noqa: E402
from bncore.ray import MomentsOf  # noqa: E402

CPUS = 2


@pytest.fixture(scope="module")
def cluster():
    """Two workers, which stay until the last test."""
    # Ray gives its workers the lowest priority; on a busy machine they would not even start.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # its name
    ray.init(
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 << 20,
    )
    yield
    ray.shutdown()


def table(rng, rows=400):
    return rng.normal([1e6, 0.0, 7.0], [1.0, 2.0, 0.0], (rows, 3))


def blocks(x, number=7):
    return ray.data.from_numpy(np.array_split(x, number))


def test_moments_of_a_data_set(cluster, rng):
    x = table(rng)
    found = blocks(x).aggregate(MomentsOf("data"))["moments(data)"]
    assert found.count.tolist() == [400.0] * 3 and found.m2[2] == 0.0
    for channel in range(2):
        exact = oracle.exact_moments(x[:, channel])
        assert abs(Fraction(float(found.mean[channel])) - exact.mean) <= 2.0**-33
        error = abs(Fraction(float(found.m2[channel])) / exact.m2 - 1)
        assert error <= tolerances.VARIANCE_FLOAT64 * 100  # each block's mean is rounded


def test_blocks_in_another_order(cluster, rng):
    """Ray puts small blocks together in their order, so the last digits may differ."""
    x = table(rng)
    one, two = (
        data.aggregate(MomentsOf("data", alias_name="m"))["m"]
        for data in (blocks(x), blocks(x).randomize_block_order(seed=1))
    )
    assert one.count.tolist() == two.count.tolist()
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-15, atol=1e-14)
    np.testing.assert_allclose(one.m2, two.m2, rtol=tolerances.VARIANCE_FLOAT64 * 100)


def test_groups_gaps_and_integers(cluster, rng):
    x = table(rng, 60)
    x[::4, 1] = np.nan
    kind = np.arange(60) % 2
    images = rng.integers(0, 256, (60, 4, 5, 3), np.uint8)
    rows = {"b": x[:, 1], "kind": kind, "image": images}
    data = ray.data.from_items([{n: v[i] for n, v in rows.items()} for i in range(60)])
    numbers = MomentsOf("b", nan_policy="omit")
    pixels = MomentsOf("image", axis=-1, scale=1 / 255, alias_name="pixels")
    grouped = data.groupby("kind").aggregate(numbers, pixels).take_all()
    assert len(grouped) == 2
    for row in grouped:
        mine = kind == row["kind"]
        for found, want in (
            (row["moments(b)"], bncore.moments(x[mine, 1:2], nan_policy="omit")),
            (row["pixels"], bncore.moments(images[mine], axis=-1, scale=1 / 255)),
        ):
            assert found.count.tolist() == want.count.tolist()
            np.testing.assert_allclose(found.mean, want.mean, rtol=1e-14)
            np.testing.assert_allclose(found.m2, want.m2, rtol=tolerances.MERGED)


def test_a_worker_that_dies_counts_once(cluster, rng, tmp_path):
    x = rng.normal(size=(200, 2))
    flag = tmp_path / "died"

    def dies_once(batch):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    found = blocks(x, 4).map_batches(dies_once).aggregate(MomentsOf("data"))["moments(data)"]
    assert flag.exists() and found.count.tolist() == [200.0, 200.0]
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-14)
    np.testing.assert_allclose(found.var(), x.var(0), rtol=1e-12)


def test_the_example_of_the_page_runs(cluster):
    (example,) = blocks_of("docs/ray.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "ray.md", "exec"), names)
    want = names["images"].reshape(-1, 3) / 255
    np.testing.assert_allclose(names["moments"].mean, want.mean(0), rtol=1e-14)


def test_states_merge_in_any_order(rng):
    """Without a cluster: what tasks return, combined in every order."""
    aggregation = MomentsOf("data")
    parts = [bncore.moments(rng.normal(1e6, 1.0, (9, 2))) for _ in range(4)]
    from bncore.statistics.travel import packed

    states = [[packed(part).tobytes()] for part in parts]
    results = []
    for order in itertools.permutations(states):
        total: list[bytes] = []
        for state in order:
            total = aggregation.combine(total, state)
        results.append(aggregation.finalize(total))
    assert all(result == results[0] for result in results)
    assert results[0].count.tolist() == [36.0, 36.0]
    assert aggregation.finalize([]) is None


def test_blocks_of_other_channels_are_refused():
    aggregation = MomentsOf("data")
    with pytest.raises(ValueError, match=r"same number of channels in every block, got \[1, 2\]"):
        aggregation.finalize([bytes(32), bytes(64)])


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"on": 3}, TypeError, "on: expected the name of a column, got 3"),
    ({"on": ""}, TypeError, "on: expected the name of a column, got ''"),
    ({"on": ["a", "b"]}, TypeError, "on: expected the name of a column, got list"),
    ({"axis": 0.5}, TypeError, r"axis: expected an integer, got 0\.5"),
    ({"nan_policy": "skip"}, ValueError, "nan_policy: expected None, 'propagate'"),
    ({"n_threads": 0}, ValueError, "n_threads"),
    ({"scale": "a"}, TypeError, "scale: expected a real number"),
])  # fmt: skip
def test_bad_arguments(given, error, text):
    with pytest.raises(error, match=text):
        MomentsOf(**{"on": "data", **given})


def test_without_ray_the_error_names_the_extra():
    said = python("""
        import sys
        sys.modules["ray"] = None
        try:
            import bncore.ray
        except ImportError as error:
            print(error)
    """)
    assert pip_install("ray") in said
