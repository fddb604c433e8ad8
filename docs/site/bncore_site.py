"""What the site needs besides ready-made extensions.

- ``c-header``: a directive that writes the reference of bncore.h (see `c_header`).
- Mathematics as MathML, which browsers show themselves, without a script from elsewhere.
- Links from a page to a file of the checkout outside docs/ lead to the file on GitHub.
- ``other-guides``: a toctree of the pages of docs/ that no other toctree has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import c_header
from docutils import nodes
from docutils.statemachine import StringList
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
SOURCES = "https://github.com/bncore/bncore/blob/main/"
LINK = re.compile(r"\]\(((?:\.\./)+[^)\s#]+)(#[^)\s]*)?\)")


class CHeader(SphinxDirective):
    """Insert the reference of the C header."""

    def run(self) -> list[nodes.Node]:
        """Read the header and parse what `c_header` makes of it."""
        self.env.note_dependency(str(c_header.HEADER))
        header = c_header.read()
        if header.gaps:
            raise self.error(f"bncore.h: expected a description of {', '.join(header.gaps)}")
        lines = c_header.rst(header).splitlines()
        container = nodes.section()
        container.document = self.state.document
        content = StringList(lines, str(c_header.HEADER))
        nested_parse_with_titles(self.state, content, container)
        return container.children


def outside(name: str, page: Path, target: str) -> str | None:
    """Return the address of a file that is not a page, or None if the target is in docs/."""
    path = (page.parent / target).resolve()
    if path.is_relative_to(DOCS) or not path.exists():
        return None
    return SOURCES + path.relative_to(ROOT).as_posix()


def lead_outside(app: Sphinx, name: str, content: list[str]) -> None:
    """Rewrite the links of a page that leave docs/."""
    page = Path(app.env.doc2path(name))

    def rewritten(found: re.Match[str]) -> str:
        address = outside(name, page, found[1])
        return f"]({address}{found[2] or ''})" if address else found[0]

    content[0] = LINK.sub(rewritten, content[0])


def other_guides(app: Sphinx, name: str, content: list[str]) -> None:
    """Replace ``other-guides`` by the pages of docs/ that no toctree has."""
    if "other-guides" not in content[0]:
        return
    listed = set()
    for page in [*DOCS.glob("*.md"), *DOCS.glob("*/index.md")]:
        for block in re.findall(r"\{toctree\}(.*?)```", page.read_text("utf-8"), re.DOTALL):
            listed |= {Path(line.split("<")[-1].strip("> ")).name for line in block.split("\n")}
    others = sorted({page.stem for page in DOCS.glob("*.md")} - listed - {"index"})
    content[0] = content[0].replace("other-guides", "\n".join(f"/{page}" for page in others))


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_directive("c-header", CHeader)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )
    app.config.html_math_renderer = "mathml"
    app.connect("env-get-outdated", lambda *_: ["guides/index"])  # a new page is listed there
    app.connect("source-read", other_guides)
    app.connect("source-read", lead_outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
