"""bncore.bench: what a run consists of, who is refused, what the rows show; and a tiny run."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import multiprocessing
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bncore.bench import (
    cases,
    check,
    command,
    host,
    limit,
    machine,
    peers,
    pictures,
    plan,
    promises,
    tables,
    worker,
)
from bncore.bench.cases import Case
from bncore.bench.results import Results, Row, geometric_mean, timed
from bncore.bench.run import measure, run

TINY = Case("train", (2, 3, 4, 4))
FIRST, LAST = cases.LAYOUTS


class Local:
    """A worker without a process of its own."""

    def __init__(self, key: str, threads: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        self.connection = ours
        self.thread = threading.Thread(target=worker.serve, args=(theirs, key, threads))
        self.thread.start()

    post = host.Remote.post
    answer = host.Remote.answer

    def close(self) -> None:
        self.post("close")
        self.thread.join()


def options(*words: str) -> plan.Options:
    return plan.parse(list(words))


# Shapes, arrays, results


def test_shapes_are_those_of_the_file():
    listed = json.loads(Path(cases.__file__).with_name("shapes.json").read_text())
    assert cases.SHAPES["resnet50_n32"] == [tuple(e["shape"]) for e in listed["resnet50_n32"]]
    assert (1, 16, 4, 4) in cases.SHAPES["quick"]
    kilobytes = [4 * math.prod(shape) / 1024 for shape in cases.SHAPES["sizes"]]
    assert kilobytes[0] == 1
    assert kilobytes[-2:] == [256 * 1024, 400 * 1024]
    assert all(b / a == 2 for a, b in pairwise(kilobytes[:-1]))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_arrays_of_a_problem(layout, dtype):
    p = Case("train", (5, 3, 7, 2), layout, dtype).problem()
    assert p.x.shape == ((5, 7, 2, 3) if layout == LAST else (5, 3, 7, 2))
    for array in (p.x, p.dy, p.out):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
    assert not np.array_equal(p.x, p.dy)
    assert abs(p.x.mean() - 1.0) < 0.5
    assert list(p.picks) == [0, 1, 2]


def test_large_arrays_go_round_the_pool_and_few_channels_are_checked():
    p = cases.Problem((4, 20, 256, 256))
    pool = cases._pool("float32")
    assert p.x.size > pool.size
    np.testing.assert_array_equal(p.x.reshape(-1)[: pool.size], pool + np.float32(1.0))
    assert p.x.reshape(-1)[pool.size] == p.x.reshape(-1)[0]
    assert list(p.picks) == [0, 9, 19]
    assert list(cases.Problem((1, 1, 1_000_003)).picks) == [0]


def test_axes_that_statistics_reduce():
    for shape, memory, axes in (
        ((6, 4), (6, 4), (0,)),
        ((1, 4, 6), (4, 6), (1,)),
        ((1, 1, 24), (24,), None),
        ((2, 3, 4, 5), (2, 3, 4, 5), (0, 2, 3)),
    ):
        x, reduced = cases.Problem(shape).reduced
        assert (x.shape, reduced) == (memory, axes)


LIGHT = ("native", "numba", "twin", "numpy")


@pytest.mark.parametrize("key", LIGHT)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_every_operation_of_the_peers_at_hand_is_right(key, operation):
    try:
        peer = peers.load(key)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))
    for shape in ((3, 4, 5, 6), (40, 9), (1, 4, 50), (1, 1, 60)):
        for output in cases.outputs_of(operation):
            for dtype in cases.DTYPES:
                layout = LAST if len(shape) == 4 else FIRST
                case = Case(operation, shape, layout, dtype, 1, output)
                p = case.problem()
                assert peer.can(case)
                with peer.active(1):
                    outputs = peer.arrays(case, peer.call(case, p)(), p)
                ulp = check.error(outputs, check.reference(operation, p), p)
                check.assert_right(peer.exact, case, ulp)
                shares = [np.shares_memory(outputs[0], p.out)]
                assert shares == [output == "given" and operation not in cases.WRITES_NOTHING_LARGE]


@pytest.mark.parametrize("wrong", [1.01, math.nan, math.inf])
def test_a_wrong_result_is_caught(wrong):
    p = TINY.problem()
    expected = check.reference("train", p)
    right = expected[0][0].astype(np.float32)
    check.assert_right(True, TINY, check.error((right,), expected, p))
    y = right.copy()
    y[1, 2, 3, 0] *= wrong
    ulp = check.error((y,), expected, p)
    with pytest.raises(check.WrongResult, match="train is wrong by"):
        check.assert_right(True, TINY, ulp)
    assert check.allowed(False, TINY) > check.allowed(True, TINY)


# The limit


@pytest.mark.parametrize(
    ("operation", "fits", "does_not"),
    [
        ("train", (0, 1), (1, 1)),
        ("infer", (0, 1), (0, 1)),
        ("train_backward", (1, 1), (3, 1)),
        ("infer_backward", (1, 1), (1, 1)),
        ("grad_sums", (2, 0), (2, 0)),
        ("moments", (1, 0), (1, 0)),
    ],
)
def test_passes_of_the_limit(operation, fits, does_not):
    case = Case(operation, (32, 64, 56, 56))
    assert limit.passes(case, 2**20) == fits
    assert limit.passes(case, 2**18) == does_not
    # With ordinary arrays of 4 bytes: the traffic of docs/performance.md.
    reads, copies = limit.passes(case, 2**20)
    assert 4 * (reads + 2 * copies) * math.prod(case.shape) == case.minimal_bytes


def test_bytes_of_a_channel():
    assert limit.slab_bytes(Case("train", (32, 64, 56, 56))) == 32 * 56 * 56 * 4
    assert limit.slab_bytes(Case("train", (32, 64, 56, 56), LAST)) == 32 * 56 * 56 * 64
    assert limit.slab_bytes(Case("train", (100, 3), dtype="float64")) == 100 * 3 * 8


def test_share_of_the_limit():
    assert limit.Passes(3, 1).seconds(2.0, 5.0) == 11.0
    row = timed(TINY, "bncore", [4.0, 2.0, 8.0], limit=1.0)
    assert (row.median, row.low, row.high, row.repeats) == (4.0, 3.0, 6.0, 3)
    assert row.limit_share == 0.25
    assert row.gb_per_s == pytest.approx(2 * 96 * 4 / 4.0 / 1e9)


def test_streams_take_any_size_and_check_themselves(monkeypatch):
    streams = pytest.importorskip("bncore.bench.streams", reason="Numba is not installed")
    for size, threads in ((64, 1), (100_000, 2)):
        made = streams.Streams(size, threads)
        assert made.x.nbytes >= size
        assert made.call["read"]() == pytest.approx(made.values)
        made.y[...] = 0.0
        made.call["copy"]()
        np.testing.assert_array_equal(made.y, 1.0)

    def nothing(x, y, first, last):
        return np.float32(0.0)

    monkeypatch.setitem(streams.FORMS, "copy", (nothing,))
    with pytest.raises(AssertionError, match="streaming copy is wrong"):
        streams.Streams(64, 1)


def test_caches_are_read(tmp_path):
    for name, level, kind, size, shared in (
        ("index0", "1", "Data", "48K", "0"),
        ("index1", "1", "Instruction", "32K", "0"),
        ("index2", "2", "Unified", "1M", "0,4"),
        ("index3", "3", "Unified", "32768K", "0-7"),
        ("index4", "4", "Unified", "?", "0"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("level", level), ("type", kind), ("size", size)):
            (folder / file).write_text(text + "\n")
        (folder / "shared_cpu_list").write_text(shared + "\n")
    found = machine.caches(tmp_path)
    assert [(c.name, c.size, c.shared_by) for c in found] == [
        ("L1", 48 * 1024, 1),
        ("L2", 2**20, 2),
        ("L3", 2**25, 8),
    ]
    assert machine.cache_share(2, found) == 2**19
    assert machine.cache_share(2, machine.caches(tmp_path / "none")) == 2**20
    assert {"processor", "system", "bncore", "numpy"} <= machine.facts(("numpy",)).keys()


# Options and plan


def test_options():
    quick, full = options("--quick"), options()
    assert (quick.repeats, full.repeats) == (5, 11)
    assert set(full.peers) - set(quick.peers) == {"compile", "numba"}
    named = options("--peers", "torch,onednn", "--threads", "1,4", "--repeats", "2")
    assert (named.peers, named.threads, named.repeats) == (("torch", "onednn"), (1, 4), 2)


@pytest.mark.parametrize(
    "words",
    [
        ["--peers", "tensorflow"],
        ["--peers", "native"],
        ["--shapes", "resnet"],
        ["--shapes", "3x0x2"],
        ["--operations", "forward"],
        ["--threads", "0"],
        ["--threads", "two"],
    ],
)
def test_bad_options(words, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert words[0] in capsys.readouterr().err


def test_shapes_by_name_and_by_size():
    assert plan.shapes_of("tiny") == cases.SHAPES["tiny"]
    assert plan.shapes_of("sizes/4") == cases.SHAPES["sizes"][::4]
    assert plan.shapes_of("2x3x4") == plan.shapes_of("2×3×4") == [(2, 3, 4)]


def test_groups_of_named_shapes():
    asked = options("--shapes", "2x3x4x4,5x6", "--peers", "numpy", "--threads", "1",
                    "--outputs", "given,returned", "--operations", "train,moments")  # fmt: skip
    found = list(plan.groups(asked))
    assert all(keys == ["native", "numpy"] for _, keys in found)
    listed = [(c.shape, c.layout, c.operation, c.output) for c, _ in found]
    assert len(listed) == len(set(listed)) == 3 * 3
    assert ((5, 6), LAST, "train", "given") not in listed


@pytest.mark.parametrize("words", [["--quick"], []])
def test_standard_runs_measure_each_case_once_and_keep_arrays_together(words):
    found = [case for case, _ in plan.groups(options(*words))]
    assert len(found) == len(set(found))
    places = [(case.place, case.threads) for case in found]
    changes = sum(a != b for a, b in pairwise(places))
    assert changes + 1 == len(set(places))
    assert all(case.output in cases.outputs_of(case.operation) for case in found)


def test_a_case_of_two_sections_has_the_peers_of_both():
    found = dict(plan.groups(options("--threads", "1")))
    assert set(found[Case("train", (1, 16, 4, 4))]) == {"native", *peers.OTHERS}
    assert found[Case("train", (400, 256, 32, 32))] == ["native", "torch"]


# Turns


def test_everybody_takes_a_turn_in_each_round_and_who_fails_is_left_out():
    log = []

    class Recorder:
        def __init__(self, key, threads):
            self.key = key

        def post(self, name, *arguments):
            log.append((self.key, name))

        def answer(self):
            if self.key == "c" and log.count(("c", "turn")) == 2:
                raise host.Failed("enough")
            return 1.0

        def close(self):
            log.append((self.key, "close"))

    team = host.Team(1, Recorder)
    keys = ["a", "b", "c"]
    assert team.prepare(keys, TINY) == dict.fromkeys(keys, 1.0)
    taken = team.take_turns(keys, 20)
    assert taken == {"a": [1.0] * 20, "b": [1.0] * 20}
    order = [key for key, name in log if name == "turn"]
    assert sorted(order[:3]) == sorted(order[3:6]) == keys
    assert len({tuple(order[i : i + 2]) for i in range(6, len(order), 2)}) == 2
    team.release()
    team.close()
    assert [entry for entry in log if entry[1] == "close"] == [(key, "close") for key in keys]


def test_a_turn_is_one_call_untimed_then_some_timed():
    calls = []
    assert worker.seconds_of_turn(lambda: calls.append(1)) < worker.SAMPLE
    assert len(calls) > worker.MOST_SAMPLES
    worker.settle()


def test_what_the_environment_of_a_worker_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with host._environment(worker.environment(worker.STREAMS, 2)):
        assert host.os.environ["OMP_NUM_THREADS"] == "2"
        assert host.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert host.os.environ["OMP_NUM_THREADS"] == "7"
    assert "OMP_WAIT_POLICY" not in host.os.environ


class Liar:
    """A peer whose mean is wrong."""

    name, exact = "liar", False

    def can(self, case):
        return case.operation == "train"

    def active(self, threads):
        return contextlib.nullcontext()

    def call(self, case, p):
        return lambda: p.x + 1.0

    def arrays(self, case, result, p):
        return (result,)


def test_who_is_wrong_is_refused_and_who_does_not_offer_it_is_not_mentioned(monkeypatch):
    monkeypatch.setattr(peers, "load", lambda key: Liar())
    team = host.Team(1, Local)
    rows = list(measure(team, TINY, ["numpy"], 1, 2**20))
    assert [row.peer for row in rows] == ["NumPy formula"]
    assert "train is wrong by" in rows[0].refused
    assert not list(measure(team, replace(TINY, operation="infer"), ["numpy"], 1, 2**20))
    team.close()


def test_a_worker_answers_before_it_has_anything_to_time():
    local = Local("numpy", 1)
    local.post("turn")
    with pytest.raises(host.Failed, match="nothing is prepared"):
        local.answer()
    local.close()


def test_a_peer_that_is_not_installed(monkeypatch):
    entry = peers.Entry("Absent", "numpy_formula", (), ("no-such-package",))
    monkeypatch.setitem(peers.PEERS, "absent", entry)
    with pytest.raises(peers.Unavailable, match="no-such-package is not installed"):
        peers.load("absent")
    broken = peers.Entry("Broken", "no_such_module")
    monkeypatch.setitem(peers.PEERS, "broken", broken)
    with pytest.raises(peers.Unavailable, match="no_such_module"):
        peers.load("broken")


def test_a_process_takes_its_turn_and_its_end_is_noticed():
    remote = host.Remote("numpy", 1)
    remote.post("prepare", TINY)
    assert 0 <= remote.answer() < 1000
    remote.post("turn")
    assert 0 < remote.answer() < 1
    remote.process.kill()
    remote.process.join()
    remote.post("turn")
    with pytest.raises(host.Failed, match="its process ended"):
        remote.answer()
    remote.close()


# Results


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


ABOUT = promises.About(["tiny"], "train")
SMALL, DENSE = Case("train", (1, 16, 4, 4)), Case("train", (16, 256))


def test_a_ratio_takes_the_best_of_its_peers():
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


def test_distance_time_and_scaling():
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
    standard = {case for case, _ in plan.groups(options())}
    for promise in promises.PROMISES:
        about = promise.about
        times = {case: {"bncore": Row(case, "bncore", 1.0)} for case in standard}
        assert about.select(times, 1), about


# A tiny run, from end to end


def test_a_tiny_run(tmp_path, capsys):
    pytest.importorskip("bncore.backends.native", reason="the native module is not built")
    command.main(["--shapes", "1x16x4x4,1x32x4x4", "--peers", "numpy", "--threads", "1,2",
                  "--repeats", "2", "--output", str(tmp_path)])  # fmt: skip
    printed = capsys.readouterr().out
    for expected in ("train, 1 thread", "infer, 2 threads", "1×16×4×4", "NumPy formula", "ulp"):
        assert expected in printed
    results = Results.parse(json.loads((tmp_path / "results.json").read_text()))
    timed_rows = [row for row in results.rows if not row.refused]
    assert len(timed_rows) == len(results.rows) == 2 * 2 * 3 * 2 * 2
    for row in timed_rows:
        assert 0 < row.low <= row.median <= row.high
        assert row.limit_share > 0
        assert row.ulp < 1e5
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["limit.png", "scaling.png", "sizes.png", "speed-1.png", "speed-2.png"]
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 100_000


def test_a_run_in_this_process_reports_who_is_absent(monkeypatch):
    entry = peers.Entry("Absent", "own", (), ("no-such-package",))
    monkeypatch.setitem(peers.PEERS, "jax", entry)
    seen = []
    asked = options("--shapes", "2x3x4x4", "--peers", "numpy,jax", "--threads", "1",
                    "--operations", "moments", "--repeats", "1")  # fmt: skip
    results = run(asked, lambda total, done, case: seen.append((total, done)), Local)
    assert results.absent == {"jax": "no-such-package is not installed"}
    assert seen == [(2, 0), (2, 1)]
    assert {row.peer for row in results.rows} == {"bncore", "NumPy formula"}


def test_the_picture_of_nothing():
    assert pictures.speed({}, 1) is None
    assert pictures.share_of_limit({}) is None
    assert pictures.throughput({}, []) is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install 'bncore\[bench\]'"):
        command.main(["--quick"])


def test_one_command_hands_over(monkeypatch, capsys):
    from bncore import __main__ as face

    face.main(["config"])
    face.main(["--help"])
    assert "usage: python -m bncore" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="usage"):
        face.main(["dance"])
    for name, module in (("bench", "bncore.bench.command"), ("demo", "bncore.demo.__main__")):
        given = []
        monkeypatch.setattr(f"{module}.main", given.append)
        face.main([name, "--quick"])
        assert given == [["--quick"]]


def test_peers_that_may_be_absent_stay_in_their_modules():
    optional = {"torch", "jax", "onnx", "onnxruntime", "matplotlib", "rich", "PIL"}
    folder = Path(cases.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "pictures.py":
            continue
        tree = ast.parse(path.read_text())
        at_import = {
            alias.name.partition(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").partition(".")[0]
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
        }
        assert not at_import & optional, path.name
