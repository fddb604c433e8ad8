"""bncore.bench: what the rows of a run show."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bncore.bench import (
    cases,
    plan,
    promises,
    tables,
)
from bncore.bench.cases import Case
from bncore.bench.results import Results, Row, geometric_mean, timed

TINY = Case("train", (2, 3, 4, 4))
FIRST, LAST = cases.LAYOUTS


def rows_of(*times: tuple[Case, str, float], **known: float) -> list[Row]:
    return [timed(case, peer, [seconds], **known) for case, peer, seconds in times]


def test_results_are_kept_whole(tmp_path):
    rows = [*rows_of((TINY, "bncore", 1e-6), ulp=1.0, read=1e-7, copy=2e-7, limit=5e-7)]
    rows.append(Row(TINY, "JAX", refused="no"))
    results = Results({"processor": "x"}, [{"level": 2, "bytes": 5}], {"repeats": 1}, {}, rows)
    results.write(tmp_path / "results.json")
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["rows"][0]["limit_share"] == 0.5
    assert "median" not in plain["rows"][1]
    again = Results.parse(plain)
    assert again.rows[0] == rows[0]
    assert again.rows[1].refused == "no"
    assert again.resident() == 5


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_tables():
    last = replace(TINY, layout=LAST)
    rows = rows_of((TINY, "bncore", 1e-3), (TINY, "PyTorch", 2e-3), limit=5e-4, ulp=1.5)
    rows += rows_of((last, "bncore", 2e-3), (last, "PyTorch", 1e-3), (last, "JAX", 1e-5), ulp=1.0)
    (table,) = tables.shape_tables(rows)
    assert table.title == "train, 1 thread"
    assert list(table.head[-2:]) == ["PyTorch, ms", "JAX, ms"]
    assert table.lines[0][0] == "2×3×4×4"
    assert table.lines[0][4] == "50%"
    assert table.lines[0][-2:] == ["2 (2.00×)", ""]
    assert table.lines[1][-2:] == ["1 (0.50×)", "10 µs (0.01×)"]
    summary = tables.summary_table(rows)
    assert summary.lines[0] == ["train, 1 thread, channels first", "2.00 (2.00 at 2×3×4×4)", ""]
    assert summary.markdown().splitlines()[1] == "| --- | ---: | ---: |"


def test_who_was_refused_is_told_once():
    rows = [Row(replace(TINY, threads=n), "JAX", refused="no\nand more") for n in (1, 2)]
    table = tables.refusals(Results({}, [], {}, {"torch": "torch is not installed"}, rows))
    assert table.lines == [
        ["PyTorch", "all", "torch is not installed"],
        ["JAX", "train, 1 thread, channels first, 2×3×4×4 and 1 more", "no"],
    ]


ABOUT = promises.About(["pair"], "train")
SMALL, DENSE = Case("train", (1, 16, 4, 4)), Case("train", (16, 256))


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "pair", [SMALL.shape, DENSE.shape])


def test_a_ratio_takes_the_best_of_its_peers(pair):
    rows = rows_of((SMALL, "bncore", 1.0), (SMALL, "PyTorch", 8.0), (SMALL, "JAX", 2.0),
                   (DENSE, "bncore", 1.0), (DENSE, "PyTorch", 8.0))  # fmt: skip
    for mean, worst, kept in ((4.0, 2.0, True), (4.1, 0.0, False), (1.0, 2.1, False)):
        promise = promises.Ratio(ABOUT, ["PyTorch", "JAX"], mean, worst)
        (verdict,) = promises.judged(rows, 0, [promise])
        assert (verdict.measured, verdict.worst) == ("4×", "2× at 1×16×4×4")
        assert verdict.kept is kept
    (verdict,) = promises.judged(rows, 0, [promises.Ratio(ABOUT, ["oneDNN"], 1.0)])
    assert verdict.kept is None
    assert not promises.table([verdict]).lines
    (partly,) = promises.judged(rows[:3], 0, [promises.Ratio(ABOUT, ["PyTorch"], 1.0)])
    assert partly.kept is None


def test_distance_time_and_scaling(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "pair", [SMALL.shape])
    two = replace(SMALL, threads=2)
    rows = rows_of((SMALL, "bncore", 3e-6), limit=2e-6) + rows_of((two, "bncore", 2e-6), limit=2e-6)
    given = [
        promises.Distance(ABOUT, 1.2),
        promises.Time(ABOUT, 2e-6),
        promises.Scaling(ABOUT, 1.8),
        promises.Distance(replace(ABOUT, larger_than=10**6), 1.0),
    ]
    verdicts = promises.judged(rows, 2**20, given)
    assert [(v.threads, v.measured, v.kept) for v in verdicts] == [
        (1, "1.5×", False),
        (2, "1×", True),
        (1, "3 µs", False),
        (2, "2 µs", True),
        (2, "1.5×", False),
        (1, "not measured", None),
        (2, "not measured", None),
    ]
    (out_of_cache,) = promises.judged(rows, 100, given[2:3])
    assert out_of_cache.kept is None
    assert [line[-1] for line in promises.table(verdicts).lines].count("**no**") == 3


def test_promises_name_what_is_measured():
    standard = {case for case, _ in plan.groups(plan.parse([]))}
    for promise in promises.PROMISES:
        about = promise.about
        times = {case: {"bncore": Row(case, "bncore", 1.0)} for case in standard}
        assert about.select(times, 1), about
