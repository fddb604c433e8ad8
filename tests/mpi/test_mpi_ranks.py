"""`bncore.mpi` on 1 to 4 ranks against one process with the whole batch."""

from __future__ import annotations

import doctest
import importlib
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import bncore
import mpi_ranks
import oracle
import tolerances
from bncore.mpi import reduction
from checkout import ROOT, blocks_of

pytestmark = pytest.mark.needs_scale

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
NAMES = ("y", "dx", "dweight", "dbias", "count", "mean", "m2")


def run(ranks: int, *command: str) -> str:
    """Start a program on some ranks, and return what they print."""
    if MPIEXEC is None:
        pytest.skip("mpiexec is not installed")
    done = subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, *command],
        capture_output=True,
        cwd=ROOT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=mpi_ranks.SPLITS, ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each rank of a job found."""
    folder = tmp_path_factory.mktemp("ranks")
    if request.param == 1:  # this process is one
        mpi_ranks.main(folder)
    else:
        run(request.param, mpi_ranks.__file__, str(folder))
    return [dict(np.load(folder / f"{request.param}-{r}.npz")) for r in range(request.param)]


def whole(case):
    """The same by the functions for one process."""
    given, how = mpi_ranks.data(case), mpi_ranks.options(case)
    how |= mpi_ranks.counted(given, slice(None))
    y, moments = bncore.batch_norm_train(given["x"], given["weight"], given["bias"], **how)
    dx, dweight, dbias = bncore.batch_norm_train_backward(
        given["dy"], given["x"], moments, given["weight"], **how
    )
    found = y, dx, dweight, dbias, moments.count, moments.mean, moments.m2
    return dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("case", mpi_ranks.CASES)
def test_parts_are_those_of_the_whole(ranks, case):
    for name, want in whole(case).items():
        got = ranks[0][f"{case} {name}"]
        if name in ("y", "dx"):
            got = np.concatenate([rank[f"{case} {name}"] for rank in ranks])
        scale = max(1.0, float(np.nanmax(np.abs(want))))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.SYNCHRONIZED * scale)


@pytest.mark.parametrize("case", mpi_ranks.CASES)
def test_every_rank_gets_the_same_bits(ranks, case):
    for rank in ranks[1:]:
        for name in NAMES[2:]:
            np.testing.assert_array_equal(rank[f"{case} {name}"], ranks[0][f"{case} {name}"])


def test_merging_keeps_the_digits_and_follows_the_ranks_alone(ranks):
    moments = [mpi_ranks.far(rank) for rank in range(len(ranks))]
    for rank in ranks:
        assert rank["far again"]
        for name in ("count", "mean", "m2"):
            np.testing.assert_array_equal(rank[f"far {name}"], ranks[0][f"far {name}"])
    values = [np.random.default_rng(r).normal(1e12, 1.0, (50 + r, 3)) for r in range(len(ranks))]
    assert ranks[0]["far count"][0] == sum(map(len, values))
    for channel in range(3):
        exact = oracle.exact_moments(np.concatenate(values)[:, channel])
        # The mean of each part is rounded, by up to 6e-5 here, before it is merged.
        assert abs(Fraction(float(ranks[0]["far mean"][channel])) - exact.mean) <= 2.0**-13
    assert moments[0].count[0] == 50


def test_no_value_at_all(ranks):
    assert ranks[0]["none"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("error", "others", "own"), [
    ("kind", "TypeError: value: expected Moments on every rank as on rank 0, got GradSums", None),
    ("channels", "ValueError: value: expected 1 channels on every rank as on rank 0, got 2", None),
    ("type", "RuntimeError: comm: expected no error on any rank, got one on rank 1",
     "TypeError: value: expected Moments or GradSums, got 'a'"),
    ("x", "RuntimeError: comm: expected no error on any rank, got one on rank 1", "TypeError: x: "),
    ("weight", "RuntimeError: comm: expected no error on any rank", "ValueError: weight: expected"),
    ("weight of backward", "RuntimeError: comm: expected no error on any rank",
     "ValueError: weight: expected"),
    ("one value", "ValueError: Expected more than 1 value per channel when training, got 1", None),
    ("no comm", "TypeError: comm: expected an mpi4py.MPI.Intracomm, got None", None),
])  # fmt: skip
def test_every_rank_raises_if_one_does(ranks, error, others, own):
    if len(ranks) == 1:
        pytest.skip("no other rank")
    for at, rank in enumerate(ranks):
        want = own if own and at == 1 else others
        assert str(rank[f"error {error}"]).startswith(want)


def test_slabs_of_channels_change_no_bit(rng, monkeypatch):
    from mpi4py import MPI

    part = bncore.moments(rng.normal(size=(9, 1000)))
    monkeypatch.setattr(reduction, "SLAB_BYTES", 1000)
    assert bncore.mpi.allreduce(part, MPI.COMM_SELF) == part


@pytest.mark.parametrize("module", ["reduction", "batch_norm"])
def test_the_examples_of_the_docstrings_run(module):
    failed, tried = doctest.testmod(importlib.import_module(f"bncore.mpi.{module}"))
    assert failed == 0 and tried >= 4


def test_the_example_of_features_runs(tmp_path):
    """Four processes standardize a table as one process does."""
    table = np.random.default_rng(3).normal([5.0, 1e9, 7.0], [2.0, 1.0, 0.0], (1001, 3))
    table[::7, 0] = np.nan
    np.save(tmp_path / "table.npy", table)
    example = ROOT / "docs" / "examples" / "features_mpi.py"
    said = run(4, str(example), str(tmp_path / "table.npy"), str(tmp_path / "scaled.npy"))
    want, moments = bncore.standardize(table, nan_policy="omit")
    got = np.load(tmp_path / "scaled.npy")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # numbers around 1e9 have 1e-7 steps
    assert f"1001 rows on 4 ranks; values per feature: {moments.count}" in said


def test_the_example_of_the_page_runs():
    (example,) = blocks_of("docs/mpi.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "mpi.md", "exec"), names)
    assert (names["moments"].count == 32 * 14 * 14).all()
    np.testing.assert_allclose(names["running_mean"], 0.1 * names["moments"].mean)
