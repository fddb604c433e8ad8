"""The options of a run, and the cases that they select."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bncore.programs.bench.cases import (
    ARRAYS_MOVED,
    CACHES,
    DTYPES,
    FUSED,
    LAYOUTS,
    MAIN,
    OUTPUTS,
    SHAPES,
    Case,
    Shape,
    layouts_of,
    outputs_of,
)
from bncore.programs.bench.peers import OTHER_PYTHON, OTHERS, OWN, PEERS

NETWORKS = ("resnet50_n32", "mobilenet_v2_n16")
NARROW_DTYPES = ("bfloat16", "float16")
PARTS = ("infer_backward", "moments", "grad_sums", "grad_input")
FUSED_OPERATIONS = tuple(FUSED)
BESIDE_FUSED = (OWN, "torch", "compile", "alone")
FROM_POOL = (OWN, "torch", "compile", "given")
# These compile for every case, which takes too long for a quick run.
SLOW_PEERS = ("compile", "numba")


@dataclass(frozen=True)
class Section:
    """Cases: the combinations of every shape with all other fields that exist."""

    sets: Sequence[str]
    operations: Sequence[str] = MAIN
    outputs: Sequence[str] = OUTPUTS[:1]
    layouts: Sequence[str] = LAYOUTS
    dtypes: Sequence[str] = DTYPES[:1]
    caches: Sequence[str] = CACHES[:1]
    peers: Sequence[str] = ()  # only these; all peers if it is empty


QUICK = (
    Section(["quick"]),
    Section(["quick"], ["train"], OUTPUTS[1:2]),
    Section(["quick"], FUSED_OPERATIONS),
    Section(["quick/2"], ["train"], OUTPUTS[2:], peers=FROM_POOL),
    Section(["sizes/4"], ["train"], layouts=LAYOUTS[:1], peers=[OWN, "torch"]),
)
FULL = (
    Section([*NETWORKS, "mlp_nc", "volumes", "sequences", "tiny", "awkward"]),
    Section(["resnet50_n32", "tiny"], MAIN, OUTPUTS[1:2]),
    Section(["resnet50_n32"], FUSED_OPERATIONS, ["given", "pooled"], peers=BESIDE_FUSED),
    Section(["resnet50_n32"], ["train"], OUTPUTS[2:], peers=FROM_POOL),
    Section(["quick"], PARTS),
    Section(
        ["resnet50_n32"], dtypes=["float64"], layouts=LAYOUTS[:1], peers=[OWN, "numpy", "torch"]
    ),
    Section(
        ["resnet50_n32"],
        dtypes=NARROW_DTYPES,
        peers=[OWN, "wide", "torch", "torch_onednn", OTHER_PYTHON],
    ),
    Section(["reductions"], ["mean_var"], layouts=LAYOUTS[:1], peers=[OWN, "numpy", "torch"]),
    Section(["sizes"], ["train", "infer"], layouts=LAYOUTS[:1], peers=[OWN, "torch"]),
)
# What promises.py judges of float32 and 16-bit data in the two networks, and no more.
JUDGED = (
    Section(NETWORKS, caches=CACHES, peers=[OWN, "avx2", "torch", "torch_avx2"]),
    Section(NETWORKS[:1], peers=[OWN, "torch_onednn", OTHER_PYTHON]),
    Section(
        NETWORKS[:1],
        dtypes=NARROW_DTYPES,
        peers=[OWN, "wide", "torch", "torch_onednn", OTHER_PYTHON],
    ),
)
JUDGED_PEERS = tuple(dict.fromkeys(k for s in JUDGED for k in s.peers if k != OWN))


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    quick: bool
    judged: bool
    peers: tuple[str, ...]
    shapes: tuple[str, ...]
    operations: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: tuple[str, ...]
    caches: tuple[str, ...]
    threads: tuple[int, ...]
    repeats: int
    output: Path | None
    other_torch: Path | None = None
    json: bool = False

    def sections(self) -> Sequence[Section]:
        """Return the sections of the standard run, or one section with the given shapes."""
        if self.judged:
            return JUDGED
        if not self.shapes:
            return QUICK if self.quick else FULL
        operations = self.operations or MAIN
        return [
            Section(self.shapes, operations, self.outputs, dtypes=self.dtypes, caches=self.caches)
        ]


def shapes_of(name: str) -> list[Shape]:
    """Return the shapes of a set, or read a shape; "sizes/3" is every third shape of the set.

    Raises
    ------
    ValueError
        If the name is neither a set nor a shape.
    """
    set_name, _, step = name.partition("/")
    if set_name in SHAPES:
        return SHAPES[set_name][:: int(step or 1)]
    if re.fullmatch(r"[1-9]\d*([x×][1-9]\d*)+", name):
        return [tuple(map(int, re.split("[x×]", name)))]
    raise ValueError(
        f"{name!r} is neither a shape such as 32x64x56x56 nor one of {', '.join(SHAPES)}"
    )


def groups(options: Options) -> Iterator[tuple[Case, list[str]]]:
    """List the cases, each with the peers that take turns; neighbours share their arrays."""
    seen: dict[Case, list[str]] = {}
    for section in options.sections():
        asked = [k for k in (OWN, *options.peers) if not section.peers or k in section.peers]
        for case in _cases(section, options):
            for key in asked:
                if key not in seen.setdefault(case, []):
                    seen[case].append(key)
    order = {place: i for i, place in enumerate(dict.fromkeys((c.place, c.threads) for c in seen))}
    yield from sorted(seen.items(), key=lambda item: order[item[0].place, item[0].threads])


def _cases(section: Section, options: Options) -> Iterator[Case]:
    chosen = {shape for name in options.shapes for shape in shapes_of(name)}
    for shape in (shape for name in section.sets for shape in shapes_of(name)):
        if chosen and shape not in chosen:
            continue
        for layout in layouts_of(shape):
            if layout not in section.layouts:
                continue
            for dtype in section.dtypes:
                for threads in options.threads:
                    for operation in section.operations:
                        if options.operations and operation not in options.operations:
                            continue
                        for output in section.outputs:
                            if output not in outputs_of(operation):
                                continue
                            for caches in section.caches:
                                yield Case(operation, shape, layout, dtype, threads, output, caches)


def listed(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a parser for an option that lists some of the allowed words."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        return names

    return read


def _shape_names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    try:
        for name in names:
            shapes_of(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def count_from(least: int) -> Callable[[str], int]:
    """Make a parser for an option that is a number of at least `least`."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text}")
        return int(text)

    read.__name__ = "integer"  # argparse names the type where int() refuses the text
    return read


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("numbers of threads start at 1")
    return counts


def parser(prog: str) -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Measure bncore and its peers in turn, each in a process of its own, against "
        "each other and against what the memory allows.",
        epilog=f"Sets of shapes: {', '.join(SHAPES)}. Peers: {', '.join(OTHERS)}. Another "
        "measurement, bncore's threads beside busy processes: --busy N; its options: --busy N "
        "--help.",
    )
    add = made.add_argument
    add("--quick", action="store_true", help="five shapes, in two minutes if nothing else runs")
    add("--judged", action="store_true",
        help="float32 and 16 bits in the shapes of two networks, beside PyTorch; "
        "--shapes takes some of these shapes")  # fmt: skip
    add("--other-torch", type=Path, metavar="PYTHON",
        help="also measure the PyTorch of another interpreter")  # fmt: skip
    add("--peers", type=listed([k for k in PEERS if k != OWN]), metavar="A,B",
        help="the libraries to measure beside bncore, of those below")  # fmt: skip
    add("--shapes", type=_shape_names, default=(), metavar="SET|NxCxHxW,...",
        help="sets or shapes, instead of the standard run")  # fmt: skip
    add(
        "--operations",
        type=listed(list(ARRAYS_MOVED)),
        default=(),
        metavar="A,B",
        help="the operations to measure, such as train,infer",
    )
    add("--outputs", type=listed(OUTPUTS), default=OUTPUTS[:1], metavar="A,B",
        help="with --shapes: given (out=, the default), returned, pooled")  # fmt: skip
    add("--dtypes", type=listed(DTYPES), default=DTYPES[:1], metavar="A,B",
        help="with --shapes: float32 (the default), float64, bfloat16, float16")  # fmt: skip
    add("--caches", type=listed(CACHES), default=CACHES[:1], metavar="A,B",
        help="with --shapes: warm (the default), cold (64 MB written between calls)")  # fmt: skip
    add("--threads", type=_counts, default=(1, 2), metavar="1,2", help="how many threads (1,2)")
    add("--repeats", type=count_from(1),
        help="how often each is measured (5 with --quick, else 11)")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="write results.json and pictures there")
    add("--json", action="store_true", help="print the results as JSON instead of tables")
    return made


def names_peers(arguments: Sequence[str]) -> bool:
    """Tell whether a command line names the peers itself."""
    return parser("").parse_args(arguments).peers is not None


def parse(arguments: Sequence[str] | None, prog: str = "python -m bncore bench") -> Options:
    """Read the command line."""
    given = parser(prog).parse_args(arguments)
    if given.repeats is None:
        given.repeats = 5 if given.quick else 11
    if given.peers is None:
        usual = tuple(k for k in OTHERS if not (given.quick and k in SLOW_PEERS))
        given.peers = JUDGED_PEERS if given.judged else usual
    given.peers = tuple(k for k in given.peers if k != OTHER_PYTHON)
    if given.other_torch:
        given.peers += (OTHER_PYTHON,)
    return Options(**vars(given))
