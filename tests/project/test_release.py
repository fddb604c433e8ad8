"""What a release needs agrees with the package: versions, names, addresses, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import bncore
from checkout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_file_names_this_version():
    version = re.escape(bncore.__version__)
    assert re.search(rf"^version: {version}$", text("CITATION.cff"), re.M)
    assert re.search(rf'^  version: "{version}"$', text("conda/recipe.yaml"), re.M)
    newest, *older = re.findall(r"^## \[(.*?)\] - (.*)$", text("CHANGELOG.md"), re.M)
    assert newest[0] == bncore.__version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in older)
    assert [version for version, _ in (newest, *older)] == re.findall(
        r"^\[([\d.]+)\]: https", text("CHANGELOG.md"), re.M
    )


def test_dir_shows_the_public_names_alone():
    assert sorted([*bncore.__all__, "__version__"]) == dir(bncore)
    code = "import bncore, sys; import bncore.layer; print(*dir(bncore))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == dir(bncore)


def test_the_recipe_asks_for_what_the_package_asks_for():
    build = tomllib.loads(text("pyproject.toml"))["build-system"]["requires"]
    recipe = text("conda/recipe.yaml").replace(" >=", ">=")
    for requirement in [*build, *PROJECT["dependencies"]]:
        assert f"- {requirement}\n" in recipe
    assert f"- {PROJECT['optional-dependencies']['numba'][0]}\n" in recipe


def test_addresses_are_those_of_one_repository():
    home = PROJECT["urls"]["Repository"]
    site = PROJECT["urls"]["Documentation"]
    assert set(PROJECT["urls"]) >= {"Documentation", "Repository", "Issues", "Changelog"}
    for url in PROJECT["urls"].values():
        assert url.startswith((home, site))
    for name in ("CITATION.cff", "SECURITY.md", "conda/recipe.yaml", "CHANGELOG.md"):
        assert home in text(name)
    assert f'SOURCES = "{home}/blob/main/"' in text("docs/site/bncore_site.py")


def test_the_workflows_run_commands_that_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.M))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        called |= set(re.findall(r"run: make ([a-z0-9-]+)", path.read_text()))
        assert "permissions:\n  contents: read\n" in path.read_text(), path.name
    assert called and called <= targets
    assert ".ci/run" in text(".github/workflows/ci.yml")


def test_classifiers_say_what_the_package_needs():
    least = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in PROJECT["classifiers"]
    assert f"Python {least} or newer" in text("README.md")
