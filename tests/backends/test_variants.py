"""Show which backends the suite ran on, and the reason for each that is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bncore
import variants

# What each instruction set needs, in the words of /proc/cpuinfo.
FLAGS = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "bmi2"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
}
CPUINFO = Path("/proc/cpuinfo")


def test_every_backend_is_here():
    """Numba is a dependency; native may be absent, unless BNCORE_EXPECT_NATIVE=1, never broken."""
    absent = {"native": "No module named 'bncore.backends.native.binding'"}
    missing = variants.FOUND.missing
    assert missing in ({}, absent)
    expected = os.environ.get("BNCORE_EXPECT_NATIVE")
    if expected:
        assert ("native" not in missing) == (expected == "1"), missing
    if missing and not expected:
        pytest.skip(f"the suite runs without {missing}")


@pytest.mark.skipif(
    "native" in variants.FOUND.missing or not CPUINFO.exists(),
    reason="instruction sets are those of the native extension, compared with Linux's list",
)
def test_native_runs_at_every_instruction_set_of_this_cpu():
    lines = [line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")]
    flags = set(lines[0].split()) if lines else set()
    supported = {isa for isa, needed in FLAGS.items() if needed <= flags}
    assert set(variants.native_module().available_isas()) == supported
    assert {v.isa for v in variants.FOUND.present if v.name == "native"} == supported


def chosen(config: dict) -> tuple[str, str | None]:
    isa = config["native"]["instruction_set"] if config["backend"] == "native" else None
    return config["backend"], isa


def test_the_fixture_activates_what_it_names(backend):
    assert chosen(bncore.show_config(mode="dicts")) == (backend.name, backend.isa)


@pytest.mark.parametrize("variant", variants.FOUND.present, ids=str)
def test_the_environment_activates_it_in_another_process(variant):
    script = "import bncore, json; print(json.dumps(bncore.show_config(mode='dicts')))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variant.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert chosen(json.loads(run.stdout)) == (variant.name, variant.isa)
