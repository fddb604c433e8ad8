"""Checks of the documents and the build: examples run, links lead somewhere, facts agree."""

from __future__ import annotations

import importlib.util
import os
import re

import numpy as np
import pytest

import bncore
from checkout import ROOT, blocks_of

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def test_the_example_of_the_readme_runs():
    (example,) = blocks_of("README.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (names["moments"].count == 32 * 14 * 14).all()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_examples_of_the_guide_run():
    whole, reduction, in_pieces, layer, gaps, half, integers = blocks_of("docs/guide.md", "python")
    names: dict[str, object] = {}
    exec(compile(whole, "guide.md", "exec"), names)
    assert (names["moments"].count == 32 * 14 * 14).all()
    gradients = [names[name] for name in ("dx", "dweight", "dbias")]
    exec(compile(reduction, "guide.md", "exec"), names)
    np.testing.assert_allclose(names["var"], np.var(names["x"], (0, 2, 3), np.float64), rtol=1e-6)
    exec(compile(in_pieces, "guide.md", "exec"), names)
    for before, name in zip(gradients, ("dx", "dweight", "dbias"), strict=True):
        np.testing.assert_allclose(names[name], before, rtol=1e-4, atol=1e-6)
    exec(compile(layer, "guide.md", "exec"), names)
    assert names["layer"].frozen and names["saved"]["num_batches_tracked"] == 1
    exec(compile(gaps, "guide.md", "exec"), names)
    assert names["y"][2, 0, 3:].tolist() == [0.0] * 6
    np.testing.assert_allclose(names["grid_without_gaps"], [[1, 5, 4], [3, 5, 4]])
    np.testing.assert_allclose(names["mean"], 7100 / 700)
    exec(compile(half, "guide.md", "exec"), names)
    assert names["y16"].dtype == names["dx16"].dtype == np.float16
    assert names["dweight32"].dtype == np.float32
    exec(compile(integers, "guide.md", "exec"), names)
    pixels = names["images"] / 255.0
    np.testing.assert_allclose(names["std"], pixels.std((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(names["y"].std((0, 1, 2)), 1.0, rtol=1e-3)
    assert names["y"].dtype == np.float32


def test_the_reference_lists_every_public_name():
    rows = re.findall(r"^\|(.*?)\|", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(bncore.__all__) <= listed


BUILT = ("auto_gallery/", "auto_teaching/")  # folders that the build of the site makes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http") and not any(folder in target for folder in BUILT):
            assert (page.parent / target).exists(), target


def test_the_tour_names_files_and_folders_that_exist():
    page = (ROOT / "docs" / "tour.md").read_text()
    named = re.findall(r"`([\w/]+(?:\.(?:py|pyx|pxi|pxd|pyi|c|h|cpp|def)|/))`", page)
    assert len(named) > 50
    there = (
        {
            path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
            for folder in ("bncore", "src_c", "tests", "docs", "benchmarks")
            for path in (ROOT / folder).rglob("*")
        }
        | {f"{folder}/" for folder in ("bncore", "src_c", "tests", "docs", "benchmarks")}
        | {"setup.py"}
    )
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)]
    assert not missing


def test_source_files_stay_below_400_lines():
    kinds = (".py", ".pyx", ".pxi", ".pxd", ".pyi", ".c", ".h", ".cpp", ".def")
    sources = [ROOT / "setup.py", ROOT / "Makefile"]
    for folder in ("bncore", "src_c", "benchmarks"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    generated = ROOT / "bncore" / "backends" / "native" / "binding.c"
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in sources
        if path != generated and (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_the_header_has_the_version_of_the_package():
    header = (ROOT / "src_c" / "include" / "bncore.h").read_text()
    assert re.findall(r'#define BNCORE_VERSION "(.*?)"', header) == [bncore.__version__]


def test_make_lists_what_contributing_explains():
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    explained = set(re.findall(r"`make ([a-z0-9-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert explained <= targets
    assert targets - explained <= {"help", "demo"}


@pytest.mark.skipif(
    "BNCORE_EXPECT_NATIVE" not in os.environ, reason="the Makefile says whether native must exist"
)
def test_native_is_there_exactly_when_it_must_be():
    found = importlib.util.find_spec("bncore.backends.native.binding") is not None
    assert found == (os.environ["BNCORE_EXPECT_NATIVE"] == "1")
    if found:
        assert importlib.import_module("bncore.backends.native.binding").isa()


def test_what_the_compiler_says_of_source_is_an_error_unless_it_is_of_other_packages(
    tmp_path, monkeypatch
):
    """They are installed without bytecode, so a test may be the first to compile them."""
    for folder, name in (("site-packages", "theirs"), ("checkout", "ours")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(r'ESCAPE = "\d"')
        monkeypatch.syspath_prepend(tmp_path / folder)
    assert importlib.import_module("theirs").ESCAPE == r"\d"
    with pytest.raises(SyntaxError, match="invalid escape"):
        importlib.import_module("ours")
