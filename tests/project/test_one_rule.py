"""Some rules may be written only once: if a second place computes the same, these tests fail."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bncore
from checkout import ROOT

PACKAGE = Path(bncore.__file__).parent
# The library; programs measure it and do arithmetic of their own.
PYTHON = [p for p in sorted(PACKAGE.rglob("*.py")) if "programs" not in p.parts]
# The backends take what is (outer, channels, inner) already.
KERNELS = PACKAGE / "backends"
SIZES = re.compile(r"shape|sizes?$|dims|dimensions")


def name_of(node: ast.AST) -> str:
    """Return the last name of an expression such as x.shape or sizes."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def computes_canonical_sizes(tree: ast.AST) -> list[int]:
    """Return the lines that multiply a part of an array's sizes, as the three sizes need it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == "prod":
            if any(isinstance(part, ast.Slice) for part in ast.walk(node)):
                found.append(node.lineno)
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
            value = node.value
            if isinstance(value, ast.Subscript) and SIZES.search(name_of(value.value)):
                found.append(node.lineno)
        elif (  # the number of all values, divided by the channels
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.FloorDiv)
            and isinstance(node.left, ast.Call)
            and name_of(node.left.func) == "numel"
        ):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("code", [
    "outer = math.prod(x.shape[:axis])",
    "inner = np.prod(sizes[at + 1 :])",
    "n = math.prod(x.shape[i] for i in order[:at])",
    "outer *= x.shape[i]",
    "count = x.numel() // x.shape[1]",
])  # fmt: skip
def test_the_search_finds_what_it_is_for(code):
    assert computes_canonical_sizes(ast.parse(code)) == [1]


@pytest.mark.parametrize("code", [
    "size = math.prod(shape) * dtype.itemsize",
    "total *= 2",
    "part = x.shape[:axis]",
])  # fmt: skip
def test_the_search_leaves_other_products_alone(code):
    assert computes_canonical_sizes(ast.parse(code)) == []


def test_outer_channels_inner_are_computed_in_one_place_of_python():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PYTHON
        if KERNELS not in path.parents
        and computes_canonical_sizes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {"arguments/layout.py"}


# A product of sizes that is a step in memory is another rule.
PRODUCT = re.compile(r"(?<!\bstep )\*=\s*[\w.>()-]*?(shape|sizes?|dims|dimensions)\b\s*[\[(]")


def test_outer_channels_inner_are_computed_in_one_place_of_c():
    """Of C, C++ and Cython: everything includes the function of the public header."""
    if not (ROOT / "src_c").exists():  # an installed package
        pytest.skip("the C sources are not here")
    sources = [
        path
        for folder in (ROOT / "src_c", ROOT / "bncore")
        for path in folder.rglob("*")
        if path.suffix in (".c", ".h", ".cpp", ".pyx", ".pxi", ".pxd")
        and path.parent != ROOT / "bncore" / "include"  # the header as it is installed
    ]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.name != "binding.c" and PRODUCT.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"src_c/include/bncore.h"}


def test_the_search_in_c_finds_what_it_is_for():
    for line in ("outer *= x.size(d);", "(i < at ? outer : inner) *= shape[i];", "n *= sizes[i]"):
        assert PRODUCT.search(line), line
    assert not PRODUCT.search("step *= shape[i]")
