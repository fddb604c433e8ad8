"""docs/batch-norm.md: its examples run, and the functions that it names exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

import bncore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "batch-norm.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NAMES = sorted(set(re.findall(r"`bncore\.([\w.]+)`", TEXT)))


def test_the_examples_run():
    example = doctest.DocTestParser().get_doctest("".join(BLOCKS), {}, PAGE.name, str(PAGE), 0)
    assert len(BLOCKS) >= 11
    failed, tried = doctest.DocTestRunner().run(example)
    assert failed == 0
    assert tried == "".join(BLOCKS).count(">>> ")


def test_every_block_is_an_example_or_mathematics():
    fences = re.findall(r"^```(\w*)$", TEXT, re.MULTILINE)
    assert set(fences[::2]) == {"python", "math"}
    assert set(fences[1::2]) == {""}
    assert fences.count("python") == len(BLOCKS)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_exists(name):
    assert resolve_name(f"bncore.{name}") is not None


def test_every_function_of_batch_norm_has_its_line():
    said = {name.partition(".")[0] for name in NAMES}
    computing = {
        name
        for name in bncore.__all__
        if name.startswith(("batch_norm_", "grad_", "moments", "normalize", "update_"))
    }
    assert computing | {"Moments", "GradSums", "BatchNorm"} <= said
