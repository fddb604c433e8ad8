"""python -m bncore bench --busy: the busy processes always end, and what is shown is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bncore
from bncore.programs.bench import busy, check, command
from variants import FOUND

SHAPE = (2, 3, 4, 4)
NATIVE = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="the executors are those of the native extension"
)
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def seconds_of(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@PROC
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_busy_processes_compute_and_are_gone_afterwards(error):
    pids = []
    try:
        with busy.busy(2) as processes:
            pids += [process.pid for process in processes]
            assert len(pids) == 2
            assert not any(map(is_gone, pids))
            before = sum(map(seconds_of, pids))
            end = time.monotonic() + 60
            while sum(map(seconds_of, pids)) == before and time.monotonic() < end:
                time.sleep(0.02)
            assert sum(map(seconds_of, pids)) > before
            if error:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert type(raised) is error
    assert all(map(is_gone, pids))


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(busy, "COMPUTE", "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ended before it began"), busy.busy(1):
        pass


@PROC
def test_busy_processes_end_with_the_process_that_started_them():
    script = (
        "import time\n"
        "from bncore.programs.bench.busy import busy\n"
        "with busy(2) as processes:\n"
        "    print(*(process.pid for process in processes), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    end = time.monotonic() + 60
    while not all(map(is_gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    alive = [pid for pid in pids if not is_gone(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert alive == []


def test_what_times_have_in_common():
    found = busy.spread([1.0] * 18 + [2.0, 22.0])
    assert found.median == 1.0
    assert 1.0 <= found.high <= 22.0


def test_each_number_of_threads_is_called_equally_often(monkeypatch):
    real, asked = bncore.batch_norm_train, []

    def counting(*arguments, n_threads, **options):
        asked.append(n_threads)
        return real(*arguments, n_threads=n_threads, **options)

    monkeypatch.setattr(bncore, "batch_norm_train", counting)
    one, three = busy.times(SHAPE, 3, busy.TURN + 5)
    assert len(one) == len(three) == busy.TURN + 5
    assert min(*one, *three) > 0
    expected = [1, 3] + [1] * busy.TURN + [3] * busy.TURN + [1] * 5 + [3] * 5
    assert asked == expected


def test_a_wrong_result_is_not_timed(monkeypatch):
    real, calls = bncore.batch_norm_train, []

    def wrong(*arguments, **options):
        y, moments = real(*arguments, **options)
        calls.append(options["n_threads"])
        return y + (options["n_threads"] - 1), moments

    monkeypatch.setattr(bncore, "batch_norm_train", wrong)
    with pytest.raises(check.WrongResult):
        busy.times(SHAPE, 2, 100)
    assert calls == [1, 2]


def test_the_table_shows_ratios_and_why_something_was_not_measured():
    one, two = busy.Spread(1e-4, 2e-4), busy.Spread(2e-4, 3e-4)
    lines = [
        busy.Line("own", (4, 2), one, two),
        busy.Line("own", (8, 2), two, two),
        busy.Line("openmp", (4, 2), refused="it was not built in"),
    ]
    made = busy.table(lines, 2, 1)
    assert made.title == "Training forward beside 1 busy process: 2 threads in times of 1 thread"
    assert "2 threads, median" in made.head
    assert made.lines == [
        ["4×2", "own", "100 µs", "200 µs", "2.00", "1.50"],
        ["8×2", "own", "200 µs", "200 µs", "1.00", "1.00"],
        ["4×2", "openmp", "not timed"],
        ["geometric mean", "own", "", "", "1.41", "1.22"],
    ]
    assert busy.verdicts(lines, 2) == [
        "own executor: 2 threads are slower than 1 thread (1.41 times its time).",
        "openmp executor, 4×2: it was not built in",
    ]


@pytest.mark.parametrize(("ratio", "said"), [
    (0.5, "4 threads are faster than 1 thread (0.50"),
    (0.96, "4 threads are about as fast as 1 thread (0.96"),
    (1.04, "4 threads are about as fast as 1 thread (1.04"),
    (1.1, "4 threads are slower than 1 thread (1.10"),
])  # fmt: skip
def test_the_verdict_is_one_line(ratio, said):
    line = busy.Line("own", (4, 2), busy.Spread(1.0, 2.0), busy.Spread(ratio, 2.0))
    assert busy.verdicts([line], 4) == [f"own executor: {said} times its time)."]
    assert busy.verdicts([], 4) == ["Nothing was timed."]


def test_times_of_a_row_have_one_unit():
    assert busy.in_one_unit(9.5e-4, 1.25e-3) == ["950 µs", "1250 µs"]
    assert busy.in_one_unit(1.25e-3, 0.02) == ["1.25 ms", "20.0 ms"]


def test_the_table_fits_in_80_columns():
    from io import StringIO

    from rich.console import Console

    spread = busy.Spread(0.1234, 0.5)
    lines = [busy.Line("openmp", (24, 1152, 14, 14), spread, spread)]
    screen = Console(width=80, file=StringIO())
    screen.print(*busy.table(lines, 2, 2).rich(80))
    text = screen.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    for whole in ("24×1152×14×14", "geometric mean", "openmp", "123 ms", "2 threads,", "ratio of",
                  "beside 2 busy processes: 2 threads in times of 1 thread"):  # fmt: skip
        assert whole in text


@NATIVE
def test_an_executor_is_measured_in_a_process_of_its_own():
    line = busy.measured("serial", SHAPE, 2, 3)
    assert (line.executor, line.shape, line.refused) == ("serial", SHAPE, "")
    assert 0 < line.one.median <= line.one.high
    assert 0 < line.several.median <= line.several.high
    refused = busy.measured("nobody", SHAPE, 2, 3)
    assert refused.one is None
    assert "BNCORE_EXECUTOR: expected one of" in refused.refused


@NATIVE
def test_the_command(capsys):
    command.main(
        ["--busy", "1", "--shapes", "2x3x4x4", "--executors", "own,serial", "--calls", "2"]
    )
    shown = capsys.readouterr().out
    assert "beside 1 busy process" in shown
    for word in ("2×3×4×4", "own", "serial", "geometric mean", "processor", "load", "2 calls of",
                 "own executor: 2 threads are", "serial executor: 2 threads are"):  # fmt: skip
        assert word in shown


def test_ctrl_c_shows_what_was_measured(monkeypatch, capsys):
    spread = busy.Spread(1.0, 1.0)
    started = []

    def measured(executor, shape, threads, calls):
        if started:
            raise KeyboardInterrupt
        started.append(executor)
        return busy.Line(executor, shape, spread, spread)

    monkeypatch.setattr(busy, "measured", measured)
    lines = busy.run(busy.parse(["--busy", "0", "--executors", "own,openmp"]))
    assert lines == [busy.Line("own", busy.parse(["--busy", "0"]).shapes[0], spread, spread)]
    assert "interrupted" in capsys.readouterr().err


def test_quick_and_busy_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        command.main(["--quick", "--busy", "2"])
    assert "error: --quick and --busy exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--busy", "-1"], ["--busy", "many"], ["--busy"], ["--busy=1", "--threads", "1"],
    ["--busy=1", "--executors", "nobody"], ["--busy=1", "--shapes", "3x0"],
    ["--busy=1", "--calls", "1"], ["--busy=1", "--peers", "torch"],
])  # fmt: skip
def test_bad_options(words, capsys):
    assert busy.asked_for(words)
    with pytest.raises(SystemExit):
        busy.parse(words)
    assert "error: " in capsys.readouterr().err
