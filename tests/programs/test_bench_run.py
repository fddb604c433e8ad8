"""The benchmark: what a run consists of, who takes a turn and who is refused; a tiny run."""

from __future__ import annotations

import ast
import contextlib
import json
import multiprocessing
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bncore.programs.bench import (
    cases,
    command,
    host,
    overview,
    peers,
    pictures,
    plan,
    worker,
)
from bncore.programs.bench.cases import Case
from bncore.programs.bench.results import Results
from bncore.programs.bench.run import measure, run

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
        ["--caches", "hot"],
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


def test_the_judged_run_measures_both_instruction_sets_and_can_be_divided():
    found = dict(plan.groups(options("--judged", "--shapes", "32x512x7x7", "--threads", "1")))
    warm = Case("train", (32, 512, 7, 7))
    assert set(found[warm]) == {"native", "avx2", "torch", "torch_avx2", "torch_onednn"}
    assert set(found[replace(warm, caches="cold")]) == set(found[warm]) - {"torch_onednn"}
    narrow = {"native", "wide", "torch", "torch_onednn"}
    assert set(found[replace(warm, dtype="bfloat16")]) == narrow
    assert {case.shape for case in found} == {warm.shape}
    other = options("--judged", "--other-torch", sys.executable)
    assert "torch_other" in dict(plan.groups(other))[warm]


def test_a_case_of_two_sections_has_the_peers_of_both():
    found = dict(plan.groups(options("--threads", "1")))
    assert set(found[Case("train", (1, 16, 4, 4))]) == {"native", *peers.OTHERS}
    assert found[Case("train", (400, 256, 32, 32))] == ["native", "torch"]


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


def test_a_tiny_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pytest.importorskip("bncore.backends.native.binding", reason="the native module is not built")
    command.main(["--shapes", "1x16x4x4,1x32x4x4", "--peers", "numpy", "--threads", "1,2",
                  "--repeats", "2", "--output", str(tmp_path)])  # fmt: skip
    printed = capsys.readouterr().out
    for expected in ("train, 1 thread", "infer, 2 threads", "1×16×4×4", "NumPy formula", "ulp"):
        assert expected in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert " ".join(printed.split()).endswith("smaller differences are noise.")
    results = Results.parse(json.loads((tmp_path / "results.json").read_text()))
    timed_rows = [row for row in results.rows if not row.refused]
    assert len(timed_rows) == len(results.rows) == 2 * 2 * 3 * 2 * 2
    for row in timed_rows:
        assert 0 < row.low <= row.median <= row.high
        assert row.limit_share > 0
        assert row.ulp < 1e5
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == [
        "limit.png",
        "scaling.png",
        "shapes-infer.png",
        "shapes-train.png",
        "shapes-train_backward.png",
        "sizes.png",
    ]  # the overview needs the shapes of ResNet-50
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


def test_an_interrupted_run_keeps_what_it_has():
    asked = options("--shapes", "2x3x4x4", "--peers", "numpy", "--threads", "1",
                    "--operations", "moments", "--repeats", "1")  # fmt: skip

    def stop(total, done, case):
        if done == 1:
            raise KeyboardInterrupt

    results = run(asked, stop, Local)
    assert results.options["interrupted"]
    assert {row.case.layout for row in results.rows} == {FIRST}


def test_the_picture_of_nothing():
    assert pictures.by_shape({}, "train") is None
    assert pictures.scaling({}) is None
    assert pictures.share_of_limit({}) is None
    assert pictures.throughput({}, []) is None
    assert overview.overview({}) is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"\[bench\]'` .*installs them"):
        command.main(["--quick"])


@pytest.mark.parametrize("words", [["--quick"], [], ["--busy", "1"]])
def test_without_the_native_extension_nothing_is_measured(monkeypatch, words):
    monkeypatch.setattr(command, "native_module", lambda: None)
    monkeypatch.setattr(command, "why_missing", lambda name: f"{name} was not built")
    monkeypatch.setattr(command, "run", None)
    monkeypatch.setattr(command.busy, "run", None)
    with pytest.raises(SystemExit) as left:  # a text goes to stderr, with the exit code 1
        command.main(words)
    assert left.value.code == "The benchmark needs the native extension: native was not built"


def test_whoever_names_peers_measures_them_without_the_native_extension(monkeypatch):
    ran = []
    monkeypatch.setattr(command, "native_module", lambda: None)
    monkeypatch.setattr(command, "run", lambda options, progress: ran.append(options.peers))
    monkeypatch.setattr(command, "show", lambda results, judge: None)
    monkeypatch.setattr(command.summary, "sentences", lambda results: [])
    command.main(["--peers", "numpy"])
    assert ran == [("numpy",)]


def test_one_command_hands_over(monkeypatch, capsys):
    from bncore import __main__ as face

    face.main(["config"])
    face.main(["--help"])
    assert "usage: python -m bncore" in capsys.readouterr().out
    for option in ("--help", "-h"):
        face.main(["config", option])
        assert capsys.readouterr().out == face.CONFIG_USAGE + "\n"
    with pytest.raises(SystemExit, match=r"^unknown command dance\nusage: python -m bncore"):
        face.main(["dance"])
    with pytest.raises(SystemExit, match=r"^usage: python -m bncore"):
        face.main([])
    for name, module in (
        ("bench", "bncore.programs.bench.command"),
        ("demo", "bncore.programs.demo.__main__"),
    ):
        given = []
        monkeypatch.setattr(f"{module}.main", given.append)
        face.main([name, "--quick"])
        assert given == [["--quick"]]


def test_peers_that_may_be_absent_stay_in_their_modules():
    optional = {"torch", "jax", "onnx", "onnxruntime", "matplotlib", "rich", "PIL"}
    folder = Path(cases.__file__).parent
    for path in folder.glob("*.py"):
        if path.name in ("overview.py", "pictures.py"):
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
