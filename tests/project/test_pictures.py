"""docs/data and docs/images: pictures are drawn from data files, which keep what was measured."""

from __future__ import annotations

import math
import sys

import pytest

from bncore.programs.bench.cases import SHAPES, Case
from bncore.programs.bench.results import Row
from checkout import ROOT

DATA = ROOT / "docs" / "data"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in ("data_files", "drawings", "history"):
        sys.modules.pop(name, None)


def test_rows_are_read_as_they_were_written(tmp_path):
    import data_files

    case = Case("train", (32, 64, 56, 56), "channels last", "bfloat16", 2, "returned", "cold")
    row = Row(case, "bncore", 2e-3, 1e-3, 3e-3, 0, 1.5, math.nan, 4e-4, 1e-3)
    data_files.write_rows(tmp_path / "rows.csv", [row, Row(case, "JAX", refused="no")])
    (read,) = data_files.read_rows(tmp_path / "rows.csv")
    assert read.case == case
    for name in ("median", "low", "high", "ulp", "copy", "limit"):
        assert getattr(read, name) == pytest.approx(getattr(row, name), rel=1e-3)


def test_no_share_of_the_limit_is_above_1():
    import data_files

    shares = [row.limit_share for row in data_files.read_rows(DATA / "benchmarks.csv")]
    shares = [share for share in shares if not math.isnan(share)]
    assert len(shares) > 100 and max(shares) <= 1.0


def test_the_history_gets_an_entry_and_replaces_one_of_the_same_day(tmp_path):
    import data_files
    import history

    case = Case("infer", SHAPES["resnet50_n32"][0])
    rows = [Row(case, "bncore", 2e-6), Row(case, "PyTorch", 6e-6), Row(case, "oneDNN", 3e-6)]
    path = tmp_path / "history.csv"
    for date in ("2030-01-01", "2030-02-01", "2030-02-01"):
        history.append(rows, date, "9.9", "a processor", path)
    first, second = data_files.read_csv(path)
    assert (first["date"], second["date"]) == ("2030-01-01", "2030-02-01")
    assert [second[name] for name in ("bncore_us", "PyTorch", "oneDNN", "NumPy")] == [
        "2", "3", "1.5", "",
    ]  # fmt: skip


def test_every_picture_of_the_data_can_be_drawn(tmp_path):
    import drawings

    drawings.main(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    committed = {path.name for path in (ROOT / "docs" / "images").glob("*.png")}
    assert drawn == committed
    assert all(path.stat().st_size < 100_000 for path in tmp_path.glob("*.png"))
