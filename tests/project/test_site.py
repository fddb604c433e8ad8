"""The pages of the site: examples run, names have entries, pages can be reached."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

import bncore
from checkout import ROOT, blocks_of

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "site"))

import c_header  # noqa: E402
import check  # noqa: E402

HEADER = c_header.HEADER.read_text(encoding="utf-8")


def run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks_of(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_first_page_and_getting_started(monkeypatch, tmp_path, capsys):
    run("docs/index.md", monkeypatch, tmp_path)
    assert capsys.readouterr().out.split()[1] == "1.0"
    names = run("docs/start.md", monkeypatch, tmp_path)
    assert abs(names["moments"].std() - 2).max() < 0.2
    assert names["y"].shape == (32, 64, 14, 14)


def test_the_guide_to_images(monkeypatch, tmp_path):
    names = run("docs/guides/images.md", monkeypatch, tmp_path)
    pixels = names["images"] / 255
    np.testing.assert_allclose(names["mean"], pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(names["moments"].mean, names["mean"], rtol=1e-12)
    np.testing.assert_allclose(names["moments"].var(), names["var"], rtol=1e-12)
    assert names["y"].dtype == np.float32


def test_the_guide_to_networks(monkeypatch, tmp_path):
    names = run("docs/guides/network.md", monkeypatch, tmp_path)
    assert names["losses"][-1] < 0.1 < 0.5 < names["losses"][0]
    assert names["accuracy"] > 0.95
    assert "running_mean" in np.load(tmp_path / "layer.npz")


def test_the_guide_to_gaps(monkeypatch, tmp_path):
    names = run("docs/guides/gaps.md", monkeypatch, tmp_path)
    table = names["table"]
    np.testing.assert_allclose(names["mean"], np.nanmean(table, axis=0), rtol=1e-12)
    np.testing.assert_allclose(names["var"], np.nanvar(table, axis=0, ddof=1), rtol=1e-12)
    there = ~np.isnan(table)
    assert (names["scores"][~there] == 0).all()
    np.testing.assert_allclose(names["restored"][there], table[there], rtol=1e-9)
    assert names["moments"].count.tolist() == there.sum(axis=0).tolist()


def test_the_page_of_populations(monkeypatch, tmp_path):
    names = run("docs/populations.md", monkeypatch, tmp_path)
    whole, moments = np.concatenate(names["pieces"]), names["batch"].moments
    np.testing.assert_allclose(moments.mean, whole.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(names["dx"].sum((0, 2, 3)) / 1e3, 0, atol=0.1)
    values = np.concatenate(names["batches"])
    np.testing.assert_allclose(names["network"].layers[0].running_mean, values.mean(0), rtol=1e-12)


def test_every_public_name_is_in_the_reference():
    found = set()
    for page in ("python.rst", "frameworks.rst"):
        module = ""
        for line in (DOCS / "api" / page).read_text().splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.rpartition(" ")[2]
            elif re.fullmatch(r"   \w+", line):
                found.add(f"{module}.{line.strip()}")
    public = check.public_names()
    assert found == public, "docs/api/python.rst and frameworks.rst list what __all__ lists"
    assert {"bncore.torch.convert", "bncore.c_library.Problem"} <= public
    assert {f"bncore.{name}" for name in bncore.__all__} <= public


def test_everything_in_the_header_is_described():
    header = c_header.read()
    assert header.gaps == []
    functions = set(
        re.findall(r"^(?:BNCORE_API|static inline) [^;{]*?(bncore_\w+)\(", HEADER, re.M)
    )
    types = set(re.findall(r"^(?:\} (bncore_\w+);|typedef enum (bncore_status))", HEADER, re.M))
    values = set(re.findall(r"^ +(BNCORE_\w+) = \d", HEADER, re.M))
    statuses = set(re.findall(r"STATUS\((BNCORE_\w+), \d+", HEADER))
    fields = {name for name in header.names if "." in name}
    expected = functions | {a or b for a, b in types} | values | statuses
    expected |= {"BNCORE_VERSION", "BNCORE_ABI_VERSION"}
    assert len(functions) > 30 and len(statuses) == 14
    assert header.names - fields == expected
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\n\} (\w+);", HEADER, re.DOTALL):
        code = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        count = sum(1 if "(" in part else part.count(",") + 1 for part in code.split(";")[:-1])
        assert count == sum(field.startswith(f"{name}.") for field in fields), name


def test_a_declaration_without_a_description_is_a_gap(tmp_path):
    path = tmp_path / "bncore.h"
    undescribed = HEADER.replace("/* Return what a status means, in English. */\n", "\n")
    path.write_text(undescribed.replace("double eps;", "double new_field;\n    double eps;"))
    assert c_header.read(path).gaps == ["bncore_status_string", "bncore_problem.new_field"]


def test_the_c_reference_links_names_and_escapes_markup():
    page = c_header.rst(c_header.read())
    assert ".. c:function:: int bncore_abi_version(void)" not in page  # it shares a description
    assert "             int bncore_abi_version(void)" in page
    assert ":c:expr:`BNCORE_ERROR_STRUCT`" in page
    assert "H\\*W" in page and "H*W" not in page


def test_every_page_can_be_reached():
    """The pages of docs/ that no list has are guides, and the site lists them itself."""
    listed = ""
    for page in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]:
        listed += "".join(re.findall(r"\{toctree\}(.*?)```", page.read_text(), re.DOTALL))
    assert "other-guides" in listed and "decisions/0*" in listed
    for page in DOCS.glob("*/*.md"):
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        if not name.startswith("decisions/0"):
            assert re.search(rf"\b({name}|{page.stem})\b", listed), name


@pytest.mark.parametrize("claim", ["Batch norm makes deep networks trainable", "Nobody said so"])
def test_the_verdict_of_a_claim_comes_from_the_study(claim):
    pytest.importorskip("matplotlib", reason="for the pictures of the site")
    import bncore_figures

    if claim.startswith("Nobody"):
        with pytest.raises(ValueError, match="expected one of the study's"):
            bncore_figures.verdict(claim)
    else:
        assert "In the study: higher test accuracy" in " ".join(
            bncore_figures.verdict(claim).split()
        )


def test_links_that_are_broken_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a id="here"></a><a href="b.html#there"></a><img src="c.png">'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#here"></a><a href="https://example.org/x">')
    assert check.broken(tmp_path) == ["a.html: b.html#there (no such place)", "a.html: c.png"]
