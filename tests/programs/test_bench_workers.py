"""The benchmark's workers: processes that time one peer each, and what they are told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bncore.programs.bench import host, machine, peers, worker
from bncore.programs.bench.cases import Case

TINY = Case("train", (2, 3, 4, 4))


def test_a_turn_is_one_call_untimed_then_some_timed():
    calls = []
    assert worker.seconds_of_turn(lambda: calls.append(1)) < worker.SAMPLE
    assert len(calls) > worker.MOST_SAMPLES
    worker.settle()


def test_with_cold_caches_a_large_array_is_written_before_each_call(monkeypatch):
    log = []
    monkeypatch.setattr(worker, "sweeper", lambda: lambda: log.append("sweep"))
    assert worker.seconds_of_cold_turn(lambda: log.append("call")) > 0
    assert log == ["call", *["sweep", "call"] * worker.COLD_SAMPLES]


def test_the_instruction_set_of_a_worker_is_chosen_before_it_starts(monkeypatch):
    monkeypatch.delenv("BNCORE_ISA", raising=False)
    assert worker.environment("avx2", 1)["BNCORE_ISA"] == "avx2"
    assert "BNCORE_ISA" not in worker.environment("native", 1)


def test_what_the_environment_of_a_worker_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with host._environment(worker.environment(worker.STREAMS, 2)):
        assert host.os.environ["OMP_NUM_THREADS"] == "2"
        assert host.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert host.os.environ["OMP_NUM_THREADS"] == "7"
    assert "OMP_WAIT_POLICY" not in host.os.environ


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


def test_a_worker_under_a_named_interpreter_is_a_worker():
    remote = host.Remote("numpy", 1, Path(sys.executable))
    for case, least in ((TINY, 0), (replace(TINY, caches="cold"), 0)):
        remote.post("prepare", case)
        assert least <= remote.answer() < 1000
        remote.post("turn")
        assert 0 < remote.answer() < 1
    assert remote.process.is_alive()
    assert remote.process.exitcode is None
    remote.close()
    assert remote.process.exitcode == 0


def test_an_interpreter_that_does_not_run_is_named():
    with pytest.raises(peers.Unavailable, match="no-such-python has no torch"):
        machine.version_elsewhere("torch", Path("no-such-python"))
    assert machine.version_elsewhere("numpy", Path(sys.executable)) == np.__version__
