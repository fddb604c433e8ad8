"""Read bncore.h, and write it as a page of Sphinx's C domain.

The comment above a declaration describes it, and the declarations that follow without an empty line
share it.  A field of a struct is described by the comment before it or behind it.  `Header.gaps`
names what has no description.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "src_c" / "include" / "bncore.h"
NAME = re.compile(r"\b(?:bncore|BNCORE)_\w+")
COMMENT = r"/\*(?P<comment>.*?)\*/"
STATUS = re.compile(r"STATUS\((BNCORE_\w+), (\d+), ((?:\"[^\"]*\"[\s\\]*)+)\)")
ABOVE, BESIDE = r"(?:/\*(?P<above>.*?)\*/\s*)?", r"(?P<beside>[ \t]*/\*.*?\*/)?,?\s*"
FIELD = re.compile(rf"{ABOVE}(?P<what>[^;/]+?);{BESIDE}", re.DOTALL)
VALUE = re.compile(rf"{ABOVE}(?P<what>\w+ = \d+),?{BESIDE}", re.DOTALL)
# Something to describe, at the start of a line: a macro, an enum or a struct, or a function.
DECLARATION = re.compile(
    r"#define (?P<macro>BNCORE_\w+)(?!\w|\()[ ]+(?P<value>[^\\\n]+)\n"
    r"|typedef (?P<kind>enum|struct) (?P<type>bncore_\w+)\s*\{(?P<body>.*?)\n?\} (?P=type);"
    r"|(?P<function>(?:BNCORE_API|static inline) [^;{]*?\))(?:;|\s*\{.*?\n\})",
    re.DOTALL,
)


@dataclass
class Member:
    """A field of a struct, or a value of an enum."""

    declaration: str
    text: str

    @property
    def name(self) -> str:
        """Return its name, without its type."""
        pointer = re.search(r"\(\*(\w+)\)", self.declaration)
        return (pointer or re.search(r"(\w+)(?:\[\d+\])?(?: = .*)?$", self.declaration)).group(1)


@dataclass
class Entry:
    """Declarations that share a description."""

    kind: str  # macro, enum, struct or function
    declarations: list[str]
    text: str
    members: list[Member] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return what is declared."""
        if self.kind != "function":
            return [re.match(r"\w+", d).group() for d in self.declarations]
        return [re.search(r"(\w+)\(", d).group(1) for d in self.declarations]


@dataclass
class Header:
    """The header: its first comment, and the entries in their order."""

    about: str
    entries: list[Entry]

    @property
    def names(self) -> set[str]:
        """Return every name that is declared, fields and values included."""
        named = {name for entry in self.entries for name in entry.names}
        for entry in self.entries:
            inside = "" if entry.kind == "enum" else f"{entry.names[0]}."
            named |= {inside + member.name for member in entry.members}
        return named

    @property
    def gaps(self) -> list[str]:
        """Return what has no description."""
        found = [name for entry in self.entries if not entry.text for name in entry.names]
        for entry in self.entries:
            if entry.kind == "struct":
                found += [f"{entry.names[0]}.{m.name}" for m in entry.members if not m.text]
        return found


def plain(comment: str) -> str:
    """Take the stars and the indentation from a comment."""
    return "\n".join(re.sub(r"^ ?\* ?", "", line.strip()) for line in comment.strip().splitlines())


def one_line(declaration: str) -> str:
    """Write a declaration on one line, without what is only for the compiler."""
    text = " ".join(declaration.split())
    return re.sub(r"^(BNCORE_API|static inline) ", "", text)


def read(path: Path = HEADER) -> Header:
    """Read the header."""
    source = path.read_text(encoding="utf-8")
    statuses = STATUS.findall(source)
    comments = {m.end(): plain(m["comment"]) for m in re.finditer(COMMENT, source, re.DOTALL)}
    entries: list[Entry] = []
    end = 0
    for found in DECLARATION.finditer(source):
        macro = found["macro"]
        if macro == "BNCORE_API":
            continue
        between = source[end : found.start()]
        before = source[: found.start()].rstrip(" ")
        here = comments.get(len(before) - 1, "") if before.endswith("*/\n") else ""
        kind = found["kind"] or ("macro" if macro else "function")
        declared = one_line(macro or found["type"] or found["function"])
        if kind == "function" and between == "\n":
            if entries[-1].kind == kind:
                entries[-1].declarations.append(declared)
                end = found.end()
                continue
            here = entries[-1].text
        entries.append(Entry(kind, [declared], here))
        if found["body"] is not None:
            entries[-1].members += list(members(found["body"], kind, statuses))
            if not here and "STATUS_LIST" in found["body"]:
                entries[-1].text = status_text(source)
        end = found.end()
    return Header(comments[min(comments)], entries)


def status_text(source: str) -> str:
    """Return the comment of the list of statuses, which describes the enum."""
    head = source[: source.index("#define BNCORE_STATUS_LIST")]
    return plain(re.findall(COMMENT, head, re.DOTALL)[-2])


def members(body: str, kind: str, statuses: list[tuple[str, str, str]]) -> Iterator[Member]:
    """Yield the fields or values between two braces."""
    if "STATUS_LIST" in body:
        for name, number, text in statuses:
            yield Member(f"{name} = {number}", "".join(re.findall(r"\"([^\"]*)\"", text)))
        return
    pattern = FIELD if kind == "struct" else VALUE
    for found in pattern.finditer(body.strip()):
        text = plain((found["beside"] or "").strip().strip("/*")) or plain(found["above"] or "")
        for declaration in separate(one_line(found["what"])):
            yield Member(declaration, text)


def separate(declaration: str) -> list[str]:
    """Divide ``int64_t outer, inner`` into its fields."""
    if "(" in declaration or "," not in declaration:
        return [declaration]
    kind, _, names = declaration.partition(" ")
    return [f"{kind} {name.strip()}" for name in names.split(",")]


def linked(text: str, known: set[str]) -> str:
    """Escape what reStructuredText would read as markup, and link names of the header."""

    def link(found: re.Match[str]) -> str:
        name = found.group()
        return f"\\ :c:expr:`{name}`\\ " if name in known else f"\\ ``{name}``\\ "

    parts = []
    end = 0
    for found in NAME.finditer(text):
        parts += [re.sub(r"([*`|\\_])", r"\\\1", text[end : found.start()]), link(found)]
        end = found.end()
    return "".join([*parts, re.sub(r"([*`|\\_])", r"\\\1", text[end:])])


def paragraphs(text: str, known: set[str], indent: str) -> Iterator[str]:
    """Yield the lines of a description."""
    for paragraph in re.split(r"\n\s*\n", text):
        yield ""
        lines = paragraph.splitlines()
        listed = any(line.startswith("  ") for line in lines)
        for line in lines:
            mark = "| " if listed else ""
            yield indent + mark + linked(line.strip(), known)


def rst(header: Header) -> str:
    """Write the reference in reStructuredText."""
    known = header.names
    lines = [*paragraphs(header.about, known, "")]
    titles = {"macro": "Versions", "enum": "Types", "struct": "Types", "function": "Functions"}
    last = ""
    order = list(dict.fromkeys(titles.values()))
    for entry in sorted(header.entries, key=lambda entry: order.index(titles[entry.kind])):
        title = titles[entry.kind]
        if title != last:
            lines += ["", title, "-" * len(title)]
            last = title
        first, *more = entry.declarations
        lines += ["", f".. c:{entry.kind}:: {first}", *(f"             {d}" for d in more)]
        lines += paragraphs(entry.text, known, "   ")
        for member in entry.members:
            kind = "enumerator" if entry.kind == "enum" else "member"
            lines += ["", f"   .. c:{kind}:: {member.declaration}"]
            if member.text:
                lines += paragraphs(member.text, known, "      ")
    return "\n".join(lines) + "\n"
