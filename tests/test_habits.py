"""What the documents and the build promise: examples run, links lead somewhere, facts agree."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

import bncore

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def test_the_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["moments"].count == 32 * 14 * 14


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_header_has_the_version_of_the_package():
    header = (ROOT / "src_c" / "bncore.h").read_text()
    assert re.findall(r'#define BNCORE_VERSION "(.*?)"', header) == [bncore.__version__]


def test_make_lists_what_contributing_explains():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    explained = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert explained <= targets
    assert targets - explained <= {"help", "demo"}


@pytest.mark.skipif(
    "BNCORE_EXPECT_NATIVE" not in os.environ, reason="the Makefile says whether native must exist"
)
def test_native_is_there_exactly_when_it_must_be():
    found = importlib.util.find_spec("bncore.backends.native") is not None
    assert found == (os.environ["BNCORE_EXPECT_NATIVE"] == "1")
    if found:
        assert importlib.import_module("bncore.backends.native").isa()
