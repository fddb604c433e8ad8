"""Check a site that was built: every public name has its entry, and every link leads somewhere.

python docs/site/check.py build/docs
"""

from __future__ import annotations

import ast
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import c_header

PACKAGE = Path(__file__).resolve().parents[2] / "bncore"


INTERNAL = ("statistics",)  # folders whose names are public in `bncore` itself, or not at all


def public_names() -> set[str]:
    """Return every public name of Python, adapters included: what the sources list in `__all__`."""
    modules = {"bncore": PACKAGE / "__init__.py", "bncore.c_library": PACKAGE / "c_library.py"}
    modules |= {f"bncore.{path.parent.name}": path for path in PACKAGE.glob("*/__init__.py")}
    for name in INTERNAL:
        del modules[f"bncore.{name}"]
    found = set()
    for module, path in modules.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    return found


def documented(site: Path) -> set[str]:
    """Return every name that has an entry: those of Python, and those of C."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    return {name for entries in inventory.values() for name in entries}


class Page(HTMLParser):
    """The links of a page, and the places in it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to, and its own name."""
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and name in ("id", "name"):
                self.places.add(value)


def broken(site: Path) -> list[str]:
    """Return the links inside the site that lead nowhere."""
    own = (path for path in site.rglob("*.html") if "_static" not in path.parts)
    pages = {path.resolve(): Page(path) for path in own}
    found = []
    for path, page in pages.items():
        for link in page.links:
            address = urlparse(link)
            if address.scheme or address.netloc:
                continue
            target, place = urldefrag(unquote(address._replace(query="").geturl()))
            there = (path.parent / target).resolve() if target else path
            if not there.exists():
                found.append(f"{path.relative_to(site.resolve())}: {link}")
            elif place and there in pages and place not in pages[there].places:
                found.append(f"{path.relative_to(site.resolve())}: {link} (no such place)")
    return sorted(found)


def main(site: Path) -> None:
    """Print what was checked, and end with an error if something is missing."""
    there = documented(site)
    python, header = public_names(), c_header.read().names
    missing = sorted((python | header) - there)
    bad = broken(site)
    print(f"{len(python - there)} of {len(python)} public names of Python have no entry")
    print(f"{len(header - there)} of {len(header)} names of bncore.h have no entry")
    print(f"{len(bad)} links inside the site are broken")
    if missing or bad:
        sys.exit("\n".join(["no entry: " + name for name in missing] + bad))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
