"""bncore.programs.bench: what the rows of a run show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from bncore.programs import look
from bncore.programs.bench import (
    cases,
    overview,
    peers,
    pictures,
    plan,
    promises,
    tables,
)
from bncore.programs.bench.cases import Case
from bncore.programs.bench.results import Results, Row, geometric_mean, timed, times_of

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


def test_the_overview_shows_ratios_on_the_shapes_of_one_network():
    first, second = (Case("train", shape) for shape in cases.SHAPES["resnet50_n32"][:2])
    rows = rows_of((first, "bncore", 1.0), (first, "PyTorch", 4.0), (first, "JAX", 9.0))
    rows += rows_of((second, "bncore", 2.0), (second, "PyTorch", 1.0))
    rows += rows_of((TINY, "bncore", 1.0), (TINY, "PyTorch", 8.0))
    rows += rows_of((replace(first, threads=2), "PyTorch", 1.0))  # bncore was not timed there
    times = times_of(rows)
    assert overview.ratios(times, 1) == {("train", FIRST): {"PyTorch": [4.0, 0.5]}}
    assert overview.ratios(times, 2) == {}
    (axes,) = overview.overview(times).axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert points == pytest.approx([2**0.5])
    assert axes.texts[0].get_text() == "1.4× PyTorch"


def test_of_two_formats_of_onednn_the_faster_one_counts():
    case = Case("infer", cases.SHAPES["resnet50_n32"][0])
    rows = rows_of((case, "bncore", 1.0), (case, "oneDNN", 4.0), (case, "oneDNN nChw16c", 0.5))
    assert overview.ratios(times_of(rows), 1) == {("infer", FIRST): {"oneDNN": [0.5]}}
    assert pictures.faster(times_of(rows)[case], ("oneDNN", "oneDNN nChw16c")) == 0.5
    assert math.isnan(pictures.faster(None, ("oneDNN",)))


def test_names_of_lines_stand_apart():
    made, panels = look.figure()
    axes = panels[0, 0]
    lines = [(f"line {n}", look.OWN, [0, 1], [0, 1 + n / 100]) for n in (2, 0, 1)]
    axes.set_ylim(0, 2)
    look.names_at_ends(axes, lines)
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places["line 0"] < places["line 1"] < places["line 2"] <= 1.0
    made.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert max(box.x1 for box in boxes) <= made.bbox.x1  # the picture has room for them


def test_the_overview_says_on_which_side_of_the_line_bncore_is_faster():
    first = Case("train", cases.SHAPES["resnet50_n32"][0])
    figure = overview.overview(times_of(rows_of((first, "bncore", 1.0), (first, "PyTorch", 9.0))))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    at_one = axes.transData.transform((1.0, 0.0))[0]
    slower, faster = (text.get_window_extent() for text in axes.texts[-2:])
    assert slower.x1 == pytest.approx(at_one, abs=5)
    assert faster.x0 == pytest.approx(at_one, abs=5)
    ticks = [label.get_window_extent().y0 for label in axes.get_xticklabels()]
    assert slower.y0 < slower.y1 <= min(ticks)


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
    assert table.lines[1][-2:] == ["1 (0.50×)", "0.01 (0.01×)"]
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


def test_where_peers_are_ahead_each_of_the_bncore_with_its_instructions():
    rows = rows_of((TINY, "bncore", 4.0), (TINY, "PyTorch", 5.0), (TINY, "JAX", 3.0),
                   (TINY, "bncore, AVX2", 6.0), (TINY, "PyTorch, AVX2", 5.0),
                   (TINY, "bncore, output given", 1.0))  # fmt: skip
    rows += rows_of((replace(TINY, threads=2), "PyTorch", 1.0))  # bncore was not timed there
    lines = tables.peers_ahead(rows).lines
    assert [line[1:3] for line in lines] == [["JAX", "0.75"], ["PyTorch, AVX2", "0.83"]]


ABOUT = promises.About(["pair"], "train")
SMALL, DENSE = Case("train", (1, 16, 4, 4)), Case("train", (16, 256))


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "pair", [SMALL.shape, DENSE.shape])


def test_a_ratio_takes_the_best_of_its_peers(pair):
    rows = rows_of((SMALL, "bncore", 1.0), (SMALL, "PyTorch", 8.0), (SMALL, "JAX", 2.0),
                   (DENSE, "bncore", 1.0), (DENSE, "PyTorch", 8.0),
                   (DENSE, "JAX", 9.0))  # fmt: skip
    for mean, worst, kept in ((4.0, 2.0, True), (4.1, 0.0, False), (1.0, 2.1, False)):
        promise = promises.Ratio(ABOUT, ["PyTorch", "JAX"], mean, worst)
        (verdict,) = promises.judged(rows, 0, [promise])
        assert (verdict.measured, verdict.worst) == ("4×", "2× at 1×16×4×4")
        assert verdict.kept is kept
    (verdict,) = promises.judged(rows, 0, [promises.Ratio(ABOUT, ["oneDNN"], 1.0)])
    assert verdict.kept is None
    assert not promises.table([verdict]).lines


@pytest.mark.parametrize(
    "present", [3, 5]
)  # bncore was not measured on the other shape, or not all
def test_a_promise_of_which_not_every_shape_was_measured_is_shown_as_such(pair, present):
    rows = rows_of((SMALL, "bncore", 1.0), (SMALL, "PyTorch", 8.0), (SMALL, "JAX", 2.0),
                   (DENSE, "bncore", 1.0), (DENSE, "PyTorch", 8.0))[:present]  # fmt: skip
    (verdict,) = promises.judged(rows, 0, [promises.Ratio(ABOUT, ["PyTorch", "JAX"], 1.0)])
    assert (verdict.kept, verdict.shapes, verdict.of) == (None, 1, 2)
    (line,) = promises.table([verdict]).lines
    assert line[2:] == ["≥ 1×", "2×", "2× at 1×16×4×4", "1 of 2 shapes"]


def test_partly_measured_promises_of_other_kinds(pair):
    about = replace(ABOUT, sets=["pair"])
    two = replace(SMALL, threads=2)
    rows = rows_of((SMALL, "bncore", 3e-6), (two, "bncore", 2e-6), limit=2e-6)
    rows += rows_of((DENSE, "bncore", 1e-6))  # its limit was not measured
    given = [promises.Distance(about, 9.0), promises.Scaling(about, 1.0), promises.Time(about, 1.0)]
    verdicts = promises.judged(rows, 2**20, given)
    assert [(v.threads, v.kept, v.answer) for v in verdicts] == [
        (1, None, "1 of 2 shapes"),
        (2, None, "1 of 2 shapes"),
        (2, None, "1 of 2 shapes"),
        (1, True, "yes"),
        (2, None, "1 of 2 shapes"),
    ]


def test_a_share_compares_with_another_call_and_a_read(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "pair", [SMALL.shape])
    times = ((SMALL, "bncore", 3.0), (SMALL, "other", 2.0))
    for known, and_read, most, measured, kept in (
        ({"read": 0.5}, False, 1.5, "1.5×", True),
        ({"read": 0.5}, True, 1.15, "1.2×", False),
        ({}, False, 1.4, "1.5×", False),
        ({}, True, 9.0, "not measured", None),
    ):
        promise = promises.Share(ABOUT, "other", most, and_read)
        (verdict,) = promises.judged(rows_of(*times, **known), 0, [promise])
        assert (verdict.measured, verdict.kept) == (measured, kept)
        assert verdict.figure.endswith("against other and a read") is and_read


def test_another_instruction_set_of_bncore_is_compared_by_its_own_times(pair):
    rows = rows_of((SMALL, "bncore", 1.0), (SMALL, "bncore, AVX2", 2.0), (SMALL, "PyTorch", 4.0))
    promise = promises.Ratio(ABOUT, ["PyTorch"], 2.0, 1.0, "bncore, AVX2")
    (verdict,) = promises.judged(rows, 0, [promise])
    assert verdict.figure.startswith("bncore, AVX2: train")
    assert verdict.worst == "2× at 1×16×4×4"


@pytest.mark.parametrize(
    ("mean", "worst", "kept"), [(0.4, 0.2, True), (0.5, 0.2, False), (0.4, 0.3, False)]
)
def test_the_reached_share_of_the_limit_counts_both_layouts(monkeypatch, mean, worst, kept):
    monkeypatch.setitem(cases.SHAPES, "pair", [SMALL.shape])
    rows = rows_of((SMALL, "bncore", 1.0), limit=0.8)
    rows += rows_of((replace(SMALL, layout=LAST), "bncore", 1.0), limit=0.25)
    about = replace(ABOUT, layout=promises.BOTH_LAYOUTS)
    (verdict,) = promises.judged(rows, 0, [promises.Reach(about, mean, worst)])
    assert (verdict.measured, verdict.worst) == ("0.447", "0.25 at 1×16×4×4")
    assert verdict.kept is kept
    two = [replace(row, case=replace(row.case, threads=2)) for row in rows]
    assert not promises.judged(two, 0, [promises.Reach(about, mean, worst)])


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
    standard: dict[Case, list[str]] = {}
    for words in ([], ["--judged"]):
        for case, keys in plan.groups(plan.parse(words)):
            standard.setdefault(case, []).extend(keys)
    named = {entry.name: key for key, entry in peers.PEERS.items()}
    for promise in promises.PROMISES:
        others = [
            getattr(promise, "own", "bncore"),
            *getattr(promise, "against", [getattr(promise, "peer", "bncore")]),
        ]
        wanted = promise.about.cases(1)
        assert wanted
        for case in wanted:
            assert {named[name] for name in others} <= set(standard[case]), promise


def test_the_pool_is_promised_for_the_shapes_of_103_megabytes():
    about = next(p.about for p in promises.PROMISES if getattr(p, "peer", "") == promises.GIVEN)
    assert {case.x_bytes for case in about.cases(1)} == {32 * 256 * 56 * 56 * 4}
