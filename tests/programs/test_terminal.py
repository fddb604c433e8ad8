"""What the commands print: lines of the terminal's width, JSON, a summary at the end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO

import pytest

import bncore
from bncore import __main__ as face
from bncore.programs import terminal
from bncore.programs.bench import busy, cases, command, peers, promises, summary, tables
from bncore.programs.bench.cases import Case
from bncore.programs.bench.results import Results, Row
from bncore.programs.demo.__main__ import main as demo

WIDEST = (
    Case("train", (32, 1024, 28, 28)),
    Case("train", (32, 1024, 28, 28), cases.LAYOUTS[1]),
    Case("train_backward", (1, 16, 4, 4), cases.LAYOUTS[1], "bfloat16", 2, "pooled", "cold"),
)


def every_peer():
    """Rows of every peer there is, the first and the last of which are equally fast."""
    rows = []
    for case in WIDEST:
        for number, entry in enumerate(peers.PEERS.values()):
            time = 1.1e-5 * (number or len(peers.PEERS) - 1)
            rows.append(Row(case, entry.name, time, time * 0.98, time * 1.02, 5, 3.2, limit=1e-6))
    return rows


def printed(width, *shown):
    from rich.console import Console

    screen = Console(width=width, file=StringIO())
    for table in shown:
        command.show_table(screen, table)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 132, 240, 500])
def test_tables_keep_to_the_width_and_lose_nothing(width):
    rows = every_peer()
    shown = [
        *tables.shape_tables(rows),
        tables.summary_table(rows),
        tables.peers_ahead(rows),
        promises.table(promises.judged(rows, 2**20)),
        tables.refusals(Results({}, [], {}, {"jax": "jax is not installed " * 9})),
    ]
    for table in shown:
        text = printed(width, table)
        assert max(map(len, text.splitlines())) <= width
        text = " ".join(text.split())
        if table.short is not None and table.lines[0][-1] not in text:
            table = table.short
        for cell in {cell for line in table.lines for cell in line}:
            for word in cell.split():
                assert word in text, (table.title, word)


def test_a_wider_terminal_shows_more():
    table = tables.shape_tables(every_peer())[0]
    assert [len(table.rich(width)) for width in (80, 132, 240, 500)] == [3, 2, 1, 1]
    assert "quartiles" not in printed(240, table)
    assert "quartiles" in printed(500, table)


@pytest.mark.parametrize("words", [["--help"], ["config"], ["config", "--help"], ["--version"]])
def test_what_the_face_prints_fits_in_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    face.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or line.startswith("path") for line in lines)  # a path has no spaces


def test_the_help_names_every_command(capsys):
    face.main(["--help"])
    said = capsys.readouterr().out
    for word in ("bench", "demo", "study", "config", "--version", "--busy", "--json", "--quick"):
        assert word in said
    face.main(["--version"])
    assert capsys.readouterr().out == f"{bncore.__version__}\n"


def test_long_lines_of_the_configuration_are_broken(monkeypatch, capsys):
    reason = "the extension was not built because of what the compiler said " * 3
    monkeypatch.setattr("bncore.runtime.config._state", lambda name: reason)
    monkeypatch.setenv("COLUMNS", "80")
    bncore.show_config()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("path")]
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(" " * 10) for line in lines) >= 6


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_demo_keeps_to_the_width(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    demo(["--quick"])
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if not line.startswith("path")]
    assert 70 < max(map(len, lines)) <= int(columns)
    assert "─" not in err  # tables are on the output, the progress on the error stream


def test_json_is_all_there_is_on_the_output(capsys, monkeypatch):
    face.main(["config", "--json"])
    assert json.loads(capsys.readouterr().out)["versions"]["bncore"] == bncore.__version__
    demo(["--quick", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 6
    assert found["with batch norm"][-1]["accuracy"] > 0.8
    spread = busy.Spread(1.0, math.inf)
    monkeypatch.setattr(busy, "measured", lambda e, s, t, c: busy.Line(e, s, spread, spread))
    monkeypatch.setattr(command, "native_module", lambda: object())
    monkeypatch.setattr(command.machine, "facts", lambda keys: {"load": "none"})
    command.main(["--busy", "0", "--shapes", "2x3", "--json"])
    (line,) = json.loads(capsys.readouterr().out)["lines"]
    assert line["one"] == {"median": 1.0, "high": None}  # JSON has no infinity


def test_progress_goes_to_the_error_stream(capsys):
    with terminal.progress_bar() as show:
        show(2, 1, "half of it")
    assert capsys.readouterr().out == ""


def three(rows, **facts):
    return summary.sentences(Results({"load": "1.5 processes running before"}, [], {}, {}, rows))


def test_the_summary_is_three_sentences_that_follow_from_the_numbers():
    case = Case("train", (2, 3, 4, 4))
    own = Row(case, "bncore", 2.0, 1.9, 2.1, 5, 1.25)
    rows = [own, Row(case, "PyTorch", 6.0), Row(case, "JAX", 1.0), Row(case, "NumPy formula", 9.0)]
    other = replace(case, layout=cases.LAYOUTS[1])
    rows += [replace(own, case=other, ulp=2.5), Row(other, "PyTorch", 24.0)]
    speed, behind, trust = three(rows)
    assert speed == (
        "On average over shapes and operations, PyTorch takes 6.0 times bncore's time, "
        "NumPy formula 4.5 and JAX 0.5."
    )
    assert "in 1 of 4 comparisons, and most clearly against JAX in train, 1 thread" in behind
    assert "takes 0.50 times bncore's time." in behind
    assert "to within 2.5 ulp, and its times vary by 5%" in trust
    assert "with 1.5 processes running before" in trust
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in three(rows))


def test_the_summary_of_little():
    own = Row(Case("train", (2, 3)), "bncore", 2.0, 1.9, 2.1, 5, 1.0)
    assert three([own])[0].startswith("No other library was timed")
    assert three([own])[1] == "bncore is the slower one in none of 0 comparisons."
    assert three([])[2] == "bncore itself was not timed."
